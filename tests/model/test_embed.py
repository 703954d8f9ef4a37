import pytest
import torch

from bitllm.data.batch import Anatomies, brain_input
from bitllm.data.dataset import select_trials
from bitllm.model import embed
from bitllm.model.aligner import load_aligner
from bitllm.model.embed import brain_tokens_of, brain_tokens_of_betas, encode


@pytest.fixture
def parts(easy):
    """The aligned encoder, validation trials of all training subjects, and their anatomies."""
    encoder = load_aligner(easy.folder / "align").encoder
    trials = select_trials(easy.store, easy.split, "validation", averaged=True)
    return encoder, trials, Anatomies.of(easy.store, trials.subjects, easy.encoder.atlases)


def test_brain_tokens_in_batches_are_those_of_each_trial_alone(parts, monkeypatch):
    encoder, trials, anatomies = parts
    monkeypatch.setattr(embed, "_BATCH", 7)
    together = brain_tokens_of(encoder, trials, anatomies)
    assert together.shape == (len(trials), 4, 32)
    for index in (0, 6, 7, len(trials) - 1):
        alone = encode(encoder, brain_input(trials, anatomies, [index]))[0]
        assert torch.allclose(together[index], alone, atol=1e-5)  # float32 in another order


def test_betas_of_one_subject_give_the_tokens_of_its_trials(parts):
    encoder, trials, anatomies = parts
    own = [index for index in range(len(trials)) if trials.subject_of(index) == "subj03"]
    betas = [trials.betas(index) for index in own]
    found = brain_tokens_of_betas(encoder, betas, "subj03", anatomies)
    assert torch.allclose(found, brain_tokens_of(encoder, trials, anatomies)[own], atol=1e-5)


def test_encoding_is_without_dropout_and_gives_the_mode_back(parts):
    encoder, trials, anatomies = parts
    batch = brain_input(trials, anatomies, [0, 1, 2])
    encoder.train()
    assert torch.equal(encode(encoder, batch), encode(encoder, batch))
    assert encoder.training
    encoder.eval()
    assert not encode(encoder, batch).requires_grad
    assert not encoder.training
