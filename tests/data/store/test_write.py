"""The road into a store from plain tables: what goes in, what is refused, and going on after a kill."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bitllm.data.inspect import inspect_store, inspect_text
from bitllm.data.store import open_store
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.write import write_store
from bitllm.errors import DataError, OutputError
from bitllm.files import sha256_of_file

SETTINGS = StoreSettings(source="table", validation_fraction=0.3)


def contents(n_sessions: int = 2, betas=None, **changes) -> StoreContents:
    rng = np.random.default_rng(0)
    values = betas if betas is not None else rng.normal(2, 3, (n_sessions, 24, 5)).astype(np.float32)
    ids = np.tile(np.arange(12), 2 * n_sessions)
    trials = pd.DataFrame({"session": np.repeat(np.arange(1, n_sessions + 1), 24), "nsd_id": ids})
    voxels = pd.DataFrame(rng.normal(size=(5, 3)), columns=["x_mm", "y_mm", "z_mm"])
    subject = SubjectContents("subj01", trials, voxels, lambda session: values[session - 1], "table.tsv")
    stimuli = pd.DataFrame({"nsd_id": np.arange(12), "shared": np.arange(12) < 3})
    captions = pd.DataFrame({"nsd_id": np.arange(12), "caption": [f"thing {n}" for n in range(12)]})
    whole = StoreContents([subject], stimuli, captions, "images.json")
    of_subject = {
        k: v for k, v in changes.items() if k in ("trials", "voxels", "is_z_scored", "read_session")
    }
    rest = {k: v for k, v in changes.items() if k not in of_subject}
    return replace(whole, **({"subjects": [replace(subject, **of_subject)]} | rest))


def test_betas_are_z_scored_with_training_trials_and_tables_completed(tmp_path):
    whole = contents()
    write_store(tmp_path / "store", whole, SETTINGS)
    store = open_store(tmp_path / "store")
    data = store.subject("subj01")
    is_train = (store.stimuli["part"].loc[data.trials["nsd_id"]] == "train").to_numpy()
    for session in (1, 2):
        values = whole.subjects[0].read_session(session).astype(np.float64)
        here = (data.trials["session"] == session).to_numpy()
        train = values[is_train[here]]
        expected = (values - train.mean(axis=0)) / train.std(axis=0)
        np.testing.assert_allclose(data.betas[here], expected, rtol=2e-3, atol=1e-3)
    assert data.trials["repetition"].tolist() == [n // 12 for n in range(48)]
    with pytest.raises(DataError, match="expected pictures, found a store without"):
        store.pictures([0])


def objects_of(*nsd_ids: int, **changes) -> pd.DataFrame:
    table = pd.DataFrame({"nsd_id": nsd_ids, "category": "dog", "supercategory": "animal", "is_crowd": False})
    return table.assign(**{"x": 0.5, "y": 0.25, "w": 0.5, "h": 0.1, "area": 0.01} | changes)


def test_objects_of_its_images_are_in_the_store_with_a_checksum(tmp_path):
    write_store(tmp_path / "with", contents(objects=objects_of(7, 2, 99, 7, is_crowd=[0, 0, 0, 1])), SETTINGS)
    store = open_store(tmp_path / "with")
    assert store.objects.index.tolist() == [2, 7, 7]
    assert store.objects["is_crowd"].tolist() == [False, False, True]
    assert store.manifest.sha256["objects.parquet"] == sha256_of_file(tmp_path / "with/objects.parquet")
    text = inspect_text(inspect_store(store))
    assert "2 and 1 crowds of 1 categories in 2 of 12 images" in text
    write_store(tmp_path / "without", contents(), SETTINGS)
    store = open_store(tmp_path / "without")
    assert not store.has_objects and inspect_store(store)["objects"] is None
    with pytest.raises(DataError, match="found a store without; add COCO"):
        _ = store.objects


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (objects_of(2).drop(columns="w"), "images.json: expected the column `w` in the table of objects"),
        (objects_of(2, 3, x=[0.5, 320]), r"as fractions of the picture .*of the image 3 \(1 in all\)"),
        (objects_of(2, 3, h=[np.nan, 0.1]), r"as fractions of the picture .*of the image 2"),
    ],
)
def test_objects_that_are_no_fractions_of_the_picture_are_refused(tmp_path, objects, message):
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "store", contents(objects=objects), SETTINGS)


def spread(scale: float, offset: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame(offset + scale * rng.uniform(-70, 70, (5, 3)), columns=["x_mm", "y_mm", "z_mm"])


@pytest.mark.parametrize("voxels", [spread(1e-3), spread(0), spread(1e3), spread(1, 2000)])
def test_coordinates_of_no_brain_in_millimeters_are_refused(tmp_path, voxels):
    with pytest.raises(DataError, match=r"table.tsv \(subj01\): expected coordinates in mm"):
        write_store(tmp_path / "store", contents(voxels=voxels), SETTINGS)
    assert not (tmp_path / "store").exists()


def test_a_small_region_in_one_slice_far_from_the_origin_is_read(tmp_path):
    voxels = spread(0).assign(x_mm=60 + 1.8 * np.arange(5), y_mm=-90.0, z_mm=12.0)
    write_store(tmp_path / "store", contents(voxels=voxels), SETTINGS)
    found = open_store(tmp_path / "store").subject("subj01").voxels["x_mm"]
    np.testing.assert_allclose(found, voxels["x_mm"], rtol=1e-6)


def test_z_scores_are_stored_as_delivered_and_never_scored_twice(tmp_path):
    values = np.random.default_rng(1).normal(size=(2, 24, 5))
    values = ((values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)).astype("f4")
    with pytest.raises(DataError, match="found z-scores already; they are never z-scored twice"):
        write_store(tmp_path / "a", contents(betas=values, is_z_scored=True), SETTINGS)
    with pytest.raises(DataError, match="found mean 0 and deviation 1 in nearly every voxel"):
        write_store(tmp_path / "a", contents(betas=values), SETTINGS)
    delivered = SETTINGS.model_copy(update={"normalization": "as-delivered"})
    write_store(tmp_path / "a", contents(betas=values, is_z_scored=True), delivered)
    betas = open_store(tmp_path / "a").subject("subj01").betas
    np.testing.assert_array_equal(betas, values.reshape(48, 5).astype(np.float16))


def test_a_number_missing_in_some_trials_is_refused(tmp_path):
    values = np.random.default_rng(0).normal(2, 3, (2, 24, 5)).astype(np.float32)
    values[1, 3, 4] = np.inf
    with pytest.raises(DataError, match="found NaN or infinity in some trials of 1 voxels"):
        write_store(tmp_path / "b", contents(betas=values), SETTINGS)


def broken(name: str) -> StoreContents:
    whole = contents()
    trials, voxels, stimuli, captions = (
        whole.subjects[0].trials.copy(),
        whole.subjects[0].voxels.copy(),
        whole.stimuli.copy(),
        whole.captions.copy(),
    )
    changes = {
        "no subject": lambda: {"subjects": []},
        "no session": lambda: {"trials": trials.drop(columns="session")},
        "no x": lambda: {"voxels": voxels.drop(columns="x_mm")},
        "no shared": lambda: {"stimuli": stimuli.drop(columns="shared")},
        "no caption": lambda: {"captions": captions.drop(columns="caption")},
        "image twice": lambda: {"stimuli": pd.concat([stimuli, stimuli[:1]])},
        "other part": lambda: {"stimuli": stimuli.assign(part="training")},
        "empty caption": lambda: {"captions": captions.assign(caption=[" ", *captions["caption"][1:]])},
        "image uncaptioned": lambda: {"captions": captions[1:]},
        "no trial": lambda: {"trials": trials[:0]},
        "sessions unsorted": lambda: {"trials": trials[::-1]},
        "trial twice": lambda: {"trials": trials.assign(run=1, trial=1)},
        "base 1": lambda: {"trials": trials.assign(nsd_id=trials["nsd_id"] + 1)},
        "no place": lambda: {"voxels": voxels.assign(x_mm=np.nan)},
        "a voxel more": lambda: {"read_session": lambda _: np.ones((24, 6), np.float32)},
        "a trial less": lambda: {"read_session": lambda _: np.ones((23, 5), np.float32)},
        "few pictures": lambda: {"pictures": lambda: iter([np.zeros((3, 4, 4, 3), np.uint8)])},
    }
    return contents(**changes[name]())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no subject", "expected at least one subject, found none"),
        ("no session", r"table.tsv \(subj01\): expected the column `session` in the table of trials"),
        ("no x", "expected the column `x_mm` in the table of voxels"),
        ("no shared", "images.json: expected the column `shared` in the table of images"),
        ("no caption", "expected the column `caption` in the table of captions"),
        ("image twice", "expected every image once, found nsd_id 0 twice"),
        ("other part", "expected images of the parts train, validation, test, found `training`"),
        ("empty caption", "expected captions with words, found an empty one of the image 0"),
        ("image uncaptioned", "expected a caption for every image, found none for the image 0"),
        ("no trial", "expected trials and voxels, found 0 × 5"),
        ("sessions unsorted", "found a session after a later one; sort"),
        ("trial twice", "expected every trial once, found session 1, run 1, trial 1 twice"),
        ("base 1", "expected trials of images of the table, found the image 12"),
        ("no place", "expected coordinates in mm for every voxel, found 5 voxels without"),
        (
            "a voxel more",
            r"expected betas of 24 trials × 5 voxels \(from the tables\), found the shape \(24, 6",
        ),
        ("a trial less", r"found the shape \(23, 5\)"),
        ("few pictures", "expected 12 pictures, one an image, found 3"),
    ],
)
def test_broken_contents_are_named_and_leave_nothing(tmp_path, name, message):
    with pytest.raises(DataError, match=message) as caught:
        write_store(tmp_path / "store", broken(name), SETTINGS)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_voxels_without_any_number_in_a_session_are_out_of_view_and_stored_as_0(tmp_path):
    values = np.random.default_rng(1).normal(2, 3, (2, 24, 5)).astype(np.float32)
    values[1, :, 3], values[0, :, 4], values[1, :, 4] = np.nan, 0, np.nan
    write_store(tmp_path / "store", contents(betas=values), SETTINGS)
    data = open_store(tmp_path / "store").subject("subj01")
    assert data.voxels["valid"].tolist() == [1, 1, 1, 0.5, 0]
    assert np.isfinite(data.betas).all()
    assert (data.betas[24:, 3] == 0).all() and (data.betas[:, 4] == 0).all() and data.betas[:24, 3].std() > 0


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "store: no permission to write here"),
    ],
)
def test_a_full_disk_and_lost_permission_are_named_and_leave_nothing(tmp_path, monkeypatch, error, match):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OutputError, match=match):
        write_store(tmp_path / "store", contents(), SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_without_permission_is_named_and_leaves_nothing(tmp_path, monkeypatch, number):
    make = Path.mkdir

    def denied(path, *args, **kwargs):  # root may write anywhere, so that chmod would test nothing
        if "denied" in path.name:
            raise OSError(number, os.strerror(number), str(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", denied)
    out = tmp_path / "denied"
    with pytest.raises(OutputError, match=r"denied: no permission to write here \(.*name another folder"):
        write_store(out, contents(), SETTINGS)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_write import SETTINGS, contents, write_store
def read(session):
    reads.append(session)
    if reads == killed_after:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole.subjects[0].read_session(session)
whole, reads, killed_after = contents(), [], [int(n) for n in sys.argv[4]]
settings = SETTINGS.model_copy(update={"normalization": sys.argv[3]})
write_store(Path(sys.argv[1]), contents(read_session=read), settings)
"""


@pytest.mark.parametrize(
    ("normalization", "killed_after", "left"),
    [
        ("training", "12", [2]),
        ("across-sessions", "12", [2, 1, 2]),  # statistics of both sessions first, then both are written
        ("across-sessions", "1212", [2]),
    ],
)
def test_after_a_kill_a_finished_session_is_not_read_again(tmp_path, normalization, killed_after, left):
    here = str(Path(__file__).parent)
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "é store"), here, normalization, killed_after]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["é store.unfinished"]
    whole, read = contents(), []
    settings = SETTINGS.model_copy(update={"normalization": normalization})

    def counted(session: int) -> np.ndarray:
        read.append(session)
        return whole.subjects[0].read_session(session)

    write_store(tmp_path / "é store", contents(read_session=counted), settings)
    assert read == left
    write_store(tmp_path / "at once", whole, settings)
    assert open_store(tmp_path / "é store").manifest == open_store(tmp_path / "at once").manifest
    names = {path.name for path in (tmp_path / "é store/subjects/subj01").iterdir()}
    assert names == {"betas.npy", "trials.parquet", "voxels.parquet"}
