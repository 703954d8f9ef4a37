"""Membership and identity: an overfitted model is told apart, one that never saw the trials is not."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestCentroid

from bitllm.cli import main
from bitllm.data.splits import save_split, with_checksum
from bitllm.evaluation.privacy import membership_auc, subject_identity, what_files_hold, what_model_gives_away
from bitllm.evaluation.runs import open_checkpoints
from bitllm.report.card import model_card
from bitllm.stages.sft import SftConfig
from bitllm.training.loop import OptimizerConfig

OVERFIT = SftConfig(
    encoder="trained",
    adapter_layers=(0, 1),
    optimizer=OptimizerConfig(steps=80, batch_size=16, learning_rate=1e-2, warmup_steps=5),
    validate_every=80,
)


@pytest.fixture(name="overfitted", scope="module")
def _overfitted(easy, easy_sft, tmp_path_factory):
    """A run that learned 16 images by heart."""
    folder = tmp_path_factory.mktemp("overfitted")
    few = frozenset(sorted(easy.split.train_images)[:16])
    split = with_checksum(replace(easy.split, name="few", train_images=few))
    save_split(split, folder / "split.json")
    shutil.copytree(easy.folder / "llm", folder / "llm")
    easy_sft(easy._replace(split=split), folder / "sft", OVERFIT)
    return folder, split


def test_trials_of_an_overfitted_model_are_recognized_and_those_it_never_saw_are_not(overfitted, easy):
    folder, split = overfitted
    system = open_checkpoints({"sft": folder / "sft"}, easy.store).load("sft")
    found = what_model_gives_away(system, easy.store, split, n_items=60)["membership"]
    assert found["trial"]["value"] >= 0.9
    assert found["trial"]["low"] > 0.5
    unseen = frozenset(sorted(easy.split.train_images - split.train_images)[:60])
    other = with_checksum(replace(split, name="unseen", train_images=unseen))
    trial = what_model_gives_away(system, easy.store, other, n_items=60)["membership"]["trial"]
    assert trial["low"] <= 0.5 <= trial["high"]


def test_larger_betas_of_trials_outside_the_statistics_do_not_count_as_membership(overfitted, easy):
    """Others with twice the betas have the same losses as before, and the size alone tells them."""
    folder, split = overfitted
    system = open_checkpoints({"sft": folder / "sft"}, easy.store).load("sft")
    found = what_model_gives_away(system, easy.store, split, n_items=60)["membership"]
    other = easy.store.with_voxels(partial(doubled, split))
    larger = what_model_gives_away(system, other, split, n_items=60)["membership"]
    assert larger["trial"]["value"] == pytest.approx(found["trial"]["value"], abs=0.01)
    assert larger["size"]["value"] == 1
    assert 0.5 < found["size"]["low"] < found["size"]["value"] < 1  # z-scores of training trials


def doubled(split, subject):
    """A subject whose betas of all images outside training are twice as large."""
    is_other = ~subject.trials["nsd_id"].isin(split.train_images).to_numpy()
    factors = np.where(is_other, 2, 1)[:, None].astype(np.float16)
    return replace(subject, betas=np.asarray(subject.betas) * factors)


def test_the_record_of_a_run_fills_the_model_card(overfitted, easy, capsys):
    folder, split = overfitted
    main(["audit", str(folder), str(easy.store.path), "--privacy"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Was this trial used for training? AUC by loss" in said
    record = json.loads((folder / "privacy.json").read_text())
    assert set(record["membership"]) == {"trial", "image", "text", "subject", "size"}
    assert record["identity"]["chance"] == pytest.approx(1 / len(easy.store.subjects))
    assert record["files"]["data"] == []
    assert record["files"]["participants"] == ["sft/run.json"]  # the selection; `bitllm export` leaves it out
    about = {
        "stage": "sft",
        "seed": 0,
        "split_sha256": split.sha256,
        "atlases": [],
        "betas": "",
        "coordinates": "",
    }
    settings = {"system": "sft", "brain": about, "llm": {"name": "llm", "revision": None, "sha256": "0" * 64}}
    card = model_card(
        None, **settings, license_name="other", is_whole=False, interface="prefix", privacy=record
    )
    value = record["membership"]["trial"]["value"]
    assert f"AUC by loss {value:.2f} [" in card.partition("## Consent and privacy")[2]
    card = model_card(None, **settings, license_name="other", is_whole=False, interface="prefix")
    assert "this was not tested" in card


def test_the_area_under_the_curve_is_that_of_scikit_learn(rng):
    members, others = rng.normal(0, 1, 80), rng.normal(0.6, 1, 70).round(1)
    ids = rng.integers(0, 40, 80), rng.integers(20, 60, 70)
    found = membership_auc(members.round(1), others, ids)
    labels = np.repeat([0, 1], [80, 70])
    expected = roc_auc_score(labels, np.concatenate([members.round(1), others]))
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    same = membership_auc(np.zeros(80), np.zeros(70), ids)
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)


def test_a_subject_is_named_by_the_nearest_centroid_as_in_scikit_learn(rng):
    subjects, images = np.tile(np.arange(3), 40), np.repeat(np.arange(40), 3)
    tokens = rng.normal(0, 1, (120, 6)) + 0.7 * np.eye(3, 6)[subjects]
    found = subject_identity(tokens, subjects, images, seed=4)
    is_fit = np.isin(images, np.random.default_rng(4).permutation(40)[:20])
    scaled = (tokens - tokens[is_fit].mean(0)) / tokens[is_fit].std(0)
    model = NearestCentroid().fit(scaled[is_fit], subjects[is_fit])
    assert found.value == pytest.approx(model.score(scaled[~is_fit], subjects[~is_fit]))
    alike = subject_identity(rng.normal(0, 1, (120, 6)), subjects, images)
    assert alike.low < 1 / 3 < alike.high


def test_names_and_arrays_in_the_files_of_a_checkpoint_are_listed(easy, tmp_path):
    from safetensors.numpy import save_file

    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "config.json").write_text('{"subject": "subj010"}')
    assert what_files_hold([folder], easy.store) == {"files": 1, "participants": [], "data": []}
    name, record = next(iter(easy.store.manifest.subjects.items()))
    (folder / "notes.md").write_text(f"trained on {name}.")
    np.save(folder / "betas.npy", np.zeros(3))
    save_file({"w": np.zeros((2, record.n_voxels), np.float32)}, folder / "model.safetensors")
    found = what_files_hold([folder], easy.store)
    assert found["participants"] == ["sft/notes.md"]
    assert found["data"] == ["sft/betas.npy", f"sft/model.safetensors: w [2, {record.n_voxels}]"]
