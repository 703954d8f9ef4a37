"""Adaptation to a new subject by its betas alone: which trials determine it, what it changes, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from bitllm.cli import main
from bitllm.data.batch import Anatomies
from bitllm.data.dataset import select_trials
from bitllm.errors import DataError
from bitllm.evaluation import new_subject
from bitllm.evaluation.held_out import read_held_out
from bitllm.evaluation.new_subject import adapted, other_trials
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm


@pytest.fixture(scope="module")
def held_out(easy):
    return read_held_out(easy.store, easy.split, averaged=True)


@pytest.fixture(scope="module")
def system(easy):
    return load_captioner(easy.folder / "sft", load_llm(easy.folder / "llm"))


def other_trials_of(held_out):
    return other_trials(held_out.store, held_out.subject, held_out.nsd_id.tolist())


def pooled_by_hand(system, store, subject, betas):
    """The encoder's own map times the betas, in numpy."""
    anatomies = Anatomies.of(store, [subject], system.atlases)
    mask = anatomies.voxel_mask[0]
    with torch.no_grad():
        weights = system.model.model.encoder.pooling_map(
            anatomies.coords_mm[0, mask], anatomies.atlas_labels[0, mask]
        )
    return np.asarray(betas, np.float64) @ weights.double().numpy().T


def test_no_trial_of_an_evaluated_image_determines_the_map(easy, held_out):
    own = other_trials_of(held_out)
    assert not set(own.nsd_id) & set(held_out.nsd_id)
    everything = easy.store.subject(held_out.subject).trials["nsd_id"]
    assert len(own) == (~everything.isin(held_out.nsd_id)).sum()


def test_the_system_reads_moved_values_of_the_new_subject_and_is_otherwise_the_same(easy, system, held_out):
    own = other_trials_of(held_out)
    moved = adapted(system, easy.store, easy.split, own)
    training = select_trials(easy.store, easy.split, "train", averaged=False)
    of_training = []
    for place, name in enumerate(training.subjects):
        rows = [training.rows[n][0] for n in np.flatnonzero(training.subject_index == place)]
        of_training.append(pooled_by_hand(system, easy.store, name, easy.store.subject(name).betas[rows]))
    of_own = pooled_by_hand(system, easy.store, held_out.subject, [own.betas(row) for row in range(len(own))])
    assert moved.transport is not None and system.transport is None
    np.testing.assert_allclose(moved.transport.start, of_own.mean(0), atol=1e-4)
    np.testing.assert_allclose(
        moved.transport.end, np.mean([part.mean(0) for part in of_training], axis=0), atol=1e-4
    )
    pooled = pooled_by_hand(system, easy.store, held_out.subject, held_out.betas)
    with torch.no_grad():
        expected = system.encoder.tokens(moved.transport(torch.tensor(pooled)).float())
    found = held_out.brain_tokens(moved.encoder, moved.atlases)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    before = held_out.brain_tokens(system.encoder, system.atlases)
    assert (before - found).abs().max() > 0.01
    assert moved.model is system.model


def test_many_trials_are_thinned_out_evenly(easy, system, held_out, monkeypatch):
    own = other_trials_of(held_out)
    monkeypatch.setattr(new_subject, "MOST_TRIALS", len(own))
    everything = adapted(system, easy.store, easy.split, own).transport
    monkeypatch.setattr(new_subject, "MOST_TRIALS", len(own) // 2)
    half = adapted(system, easy.store, easy.split, own).transport
    assert 0 < (everything.start - half.start).abs().max() < 1


def test_too_few_trials_are_refused(held_out, monkeypatch):
    monkeypatch.setattr(new_subject, "LEAST_TRIALS", 10**6)
    with pytest.raises(DataError, match=r"1000000 trials of .* --transport False"):
        other_trials_of(held_out)


def test_evaluate_says_that_the_system_was_adapted(easy, tmp_path, capsys):
    words = ["evaluate", easy.folder / "sft", easy.store.path, "--inputs", "real", "--likelihood", "none"]
    found = {}
    for option in ("True", "False"):
        out = tmp_path / option
        main([*map(str, words), "--transport", option, "--out", str(out)])
        found[option] = json.loads((out / "results.json").read_text())["about"].get("n_adapting_trials", 0)
        said = " ".join(capsys.readouterr().out.split())
        assert ("without captions or pictures" in said) is (option == "True")
    assert found["True"] >= 100 and found["False"] == 0
    answers = [(tmp_path / option / "captions" / "sft.jsonl").read_text() for option in found]
    assert answers[0] != answers[1]


def test_a_subject_of_the_training_is_not_moved(easy, tmp_path, capsys):
    words = ["evaluate", easy.folder / "sft", easy.store.path, "--inputs", "real", "--likelihood", "none"]
    words += ["--part", "validation", "--subject", easy.split.train_subjects[0], "--transport", "True"]
    main([*map(str, words), "--out", str(tmp_path / "out")])
    capsys.readouterr()
    assert "n_adapting_trials" not in json.loads((tmp_path / "out" / "results.json").read_text())["about"]
