"""A store as the encoder of another data set reads it, and photographs that two stores share."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.batch import Anatomies
from bitllm.data.store import Store, open_store
from bitllm.data.transfer import as_trained_on, require_same_space, space_of_training
from bitllm.errors import SplitError

CARD = {"atlases": ["streams"], "space": "func1pt8mm", "labels": {"streams": {"1": "ventral", "5": "early"}}}


def changed_manifest(store: Path, **fields) -> Store:
    path = store / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return open_store(store)


def test_coordinates_are_converted_and_labels_joined_by_name(copied_store):
    store = changed_manifest(copied_store, space="fsaverage")
    own = store.subject("subj01").voxels
    card = CARD | {"atlases": ["streams", "HCP_MMP1"]}
    read, notes = as_trained_on(store, card, where="sft")
    for fragment in (
        "are converted from `fsaverage` to that of the run, `func1pt8mm`",
        "no atlas `HCP_MMP1`",
    ):
        assert any(fragment in note for note in notes), fragment
    found = Anatomies.of(read, ["subj01"], card["atlases"])
    coords, labels = found.coords_mm[0].numpy(), found.atlas_labels[0].numpy()
    mm = own[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float64)
    x, y, z = mm.T  # FreeSurfer's rows, written out
    expected = [
        0.9975 * x - 0.0073 * y + 0.0176 * z - 0.0429,
        0.0146 * x + 1.0009 * y - 0.0024 * z + 1.5496,
        -0.0130 * x - 0.0093 * y + 0.9971 * z + 1.1840,
    ]
    np.testing.assert_allclose(coords, np.stack(expected, axis=1), atol=1e-3)
    number = {"early": 5, "ventral": 1}
    assert labels[:, 0].tolist() == [number.get(store.atlases["streams"].get(n), 0) for n in own["streams"]]
    assert not labels[:, 1].any()
    again = pickle.loads(pickle.dumps(read))
    pd.testing.assert_frame_equal(again.subject("subj01").voxels, read.subject("subj01").voxels)


def test_a_space_that_cannot_be_compared_is_refused_and_one_that_is_not_stated_is_noted(copied_store):
    store = changed_manifest(copied_store, space="T1w")
    with pytest.raises(SplitError, match=r"store: .*`func1pt8mm`.*`T1w`"):
        as_trained_on(store, CARD, where="sft")
    store = changed_manifest(copied_store, space="unknown")
    _, notes = as_trained_on(store, CARD, where="sft")
    assert "not checked" in notes[0]
    _, notes = as_trained_on(changed_manifest(copied_store, space="fsLR"), CARD, where="sft")
    assert "both MNI" in notes[0]


def test_training_goes_on_only_in_the_same_space_with_the_same_labels(store, copied_store):
    card = {"atlases": ["streams"], **space_of_training(store, ["streams"])}
    require_same_space(store, card, where="sft")
    with pytest.raises(SplitError, match="expected the label 1 of `streams` to be `ventral`"):
        require_same_space(store, CARD, where="sft")
    with pytest.raises(SplitError, match="found `fsaverage`; prepare the store in that space"):
        require_same_space(changed_manifest(copied_store, space="fsaverage"), card, where="sft")


def test_a_photograph_for_training_in_one_store_and_for_test_in_another_is_found(store, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(store.path, other)
    main(["audit", str(store.path), str(other), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["leaks"], found["n_shared"]) == ([], len(store.stimuli))
    stimuli = pd.read_parquet(other / "stimuli.parquet")
    stimuli["coco_id"] += 100_000  # other photographs, but for one
    test_id = store.stimuli["coco_id"][store.stimuli["part"] == "test"].iloc[0]
    planted = stimuli.index[stimuli["part"] == "train"][0]
    stimuli.loc[planted, "coco_id"] = test_id
    stimuli.loc[stimuli.index[-1], "coco_id"] = -1
    stimuli.to_parquet(other / "stimuli.parquet", index=False)
    with pytest.raises(SystemExit) as stopped:
        main(["audit", str(store.path), str(other)])
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"one photograph in two stores: COCO image {test_id} (1 in all) is for test in {store.path}" in said
    )
    assert "1 images have no COCO id" in said
