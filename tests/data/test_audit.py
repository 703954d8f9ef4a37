"""Planted leaks, each of another kind, are each named; a clean store has none."""

import json

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.audit import audit, verify_store
from bitllm.data.splits import make_split, save_split
from bitllm.data.store import open_store
from bitllm.errors import DataError


def edit(path, change) -> None:
    table = pd.read_parquet(path)
    change(table)
    table.to_parquet(path, index=False)


def rows_of(store, part: str) -> pd.DataFrame:
    table = pd.read_parquet(store / "stimuli.parquet")
    return table[table["part"] == part]


def plant_statistics(store):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"statistics": "session"}))


def plant_shared_outside(store):
    first = rows_of(store, "test").index[0]
    edit(store / "stimuli.parquet", lambda table: table.__setitem__("part", moved(table, first)))


def moved(table: pd.DataFrame, row: int) -> pd.Series:
    part = table["part"].copy()
    part[row] = "train"
    return part


def plant_photograph(store):
    test, train = rows_of(store, "test").index[0], rows_of(store, "train").index[0]
    edit(
        store / "stimuli.parquet",
        lambda t: t.__setitem__("coco_id", t["coco_id"].where(t.index != test, t["coco_id"][train])),
    )


def plant_repeats(store):
    edit(store / "subjects/subj01/trials.parquet", lambda t: t.__setitem__("shared", ~t["shared"]))


def plant_repetition(store):
    edit(store / "subjects/subj01/trials.parquet", lambda t: t.__setitem__("repetition", t["repetition"] * 0))


def plant_trial(store):
    trials = pd.read_parquet(store / "subjects/subj02/trials.parquet")
    betas = np.load(store / "subjects/subj02/betas.npy")
    part = (
        pd.read_parquet(store / "stimuli.parquet")
        .set_index("nsd_id")["part"]
        .loc[trials["nsd_id"]]
        .to_numpy()
    )
    betas[np.flatnonzero(part == "train")[0]] = betas[np.flatnonzero(part == "test")[0]]
    np.save(store / "subjects/subj02/betas.npy", betas)


def plant_captions(store, *, change: str = ""):
    test, train = rows_of(store, "test")["nsd_id"].iloc[0], rows_of(store, "train")["nsd_id"].iloc[0]
    captions = pd.read_parquet(store / "captions.parquet")
    long = [f"a {word} standing beside the old red house by the river at night" for word in ("dog", "cat")]
    new = [(test, c) for c in long] + [(train, c + change) for c in long]
    kept = captions[~captions["nsd_id"].isin([test, train])]
    pd.concat([kept, pd.DataFrame(new, columns=["nsd_id", "caption"])]).to_parquet(
        store / "captions.parquet", index=False
    )


def plant_near_captions(store):
    plant_captions(store, change=" again")


def plant_pictures(store):
    pictures = np.load(store / "pictures.npy")
    test, train = rows_of(store, "test").index[0], rows_of(store, "train").index[0]
    pictures[train] = np.clip(pictures[test].astype(int) + 1, 0, 255)
    np.save(store / "pictures.npy", pictures)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (plant_statistics, "test trials in the statistics"),
        (plant_shared_outside, "shared image outside the test part"),
        (plant_photograph, "one photograph on two sides"),
        (plant_repeats, "repeats on two sides: subj01"),
        (plant_repetition, "repeats miscounted: subj01"),
        (plant_trial, "test trial in training: subj02"),
        (plant_captions, "duplicated captions"),
        (plant_near_captions, "near-duplicate captions"),
        (plant_pictures, "near-duplicate pictures"),
    ],
)
def test_a_planted_leak_of_the_store_is_named_and_no_other(copied_store, plant, name, capsys):
    plant(copied_store)
    leaks = audit(open_store(copied_store))["leaks"]
    assert len(leaks) == 1 and leaks[0].startswith(name), leaks
    with pytest.raises(SystemExit, match="1"):
        main(["audit", str(copied_store)])
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (
            lambda s: {"train_subjects": (*s.train_subjects, *s.test_subjects)},
            "test subject in training: subj03",
        ),
        (lambda s: {"test_images": s.test_images | {min(s.train_images)}}, "test image in training"),
        (
            lambda s: {
                "train_images": s.train_images - {min(s.train_images)},
                "test_images": s.test_images | {min(s.train_images)},
            },
            "test image in the statistics",
        ),
        (lambda s: {"train_images": s.train_images | s.validation_images}, "validation image in training"),
        (lambda s: {"validation_images": s.test_images}, "choice made on test"),
        (
            lambda s: {
                "train_images": s.train_images | {max(s.test_images)},
                "test_images": s.test_images - {max(s.test_images)},
            },
            "another subject's shared image in training",
        ),
    ],
)
def test_a_planted_leak_of_the_split_is_named(store, changed, change, name):
    split = make_split(store, "poster")
    leaks = audit(store, split=changed(split, **change(split)))["leaks"]
    assert any(leak.startswith(name) for leak in leaks), leaks


@pytest.mark.parametrize(
    ("statistics", "preset", "is_seen"),
    [
        ("training", "develop", False),
        ("across-sessions", "develop", False),
        ("not-shared", "poster", False),
        ("not-shared", "develop", True),
        ("session", "poster", True),
        ("session", "develop", True),
        ("none", "develop", False),
        ("as-delivered", "develop", False),
    ],
)
def test_whose_trials_the_statistics_saw_is_read_from_the_store(copied_store, statistics, preset, is_seen):
    manifest = json.loads((copied_store / "manifest.json").read_text())
    (copied_store / "manifest.json").write_text(json.dumps(manifest | {"statistics": statistics}))
    store = open_store(copied_store)
    split = make_split(store, preset)
    leaks = [leak for leak in audit(store, split=split)["leaks"] if leak.startswith("test image in the")]
    assert len(leaks) == is_seen
    if is_seen:
        assert f"nsd_id {min(split.test_images)} ({len(split.test_images)} in all)" in leaks[0]
        assert leaks[0].endswith(f"by the normalization `{statistics}`")


def test_a_clean_store_and_run_have_no_leak(store, tmp_path, capsys):
    split = make_split(store, "poster")
    save_split(split, tmp_path / "split.json")
    (tmp_path / "scores.json").write_text(json.dumps({"split_sha256": split.sha256}))
    main(["audit", str(store.path), str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["leaks"] == []
    (tmp_path / "scores.json").write_text(json.dumps({"split_sha256": "0" * 64}))
    assert audit(store, run=tmp_path)["leaks"][0].startswith("result of another split")
    with pytest.raises(DataError, match=r"split.json: expected the split of the run, found none"):
        audit(store, run=tmp_path / "elsewhere")


def test_a_flipped_byte_is_found(copied_store):
    assert verify_store(open_store(copied_store)) == 12
    path = copied_store / "subjects/subj02/betas.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"subj02/betas.npy: expected the checksum .*manifest.json.*found"):
        verify_store(open_store(copied_store))
