import numpy as np
import pytest
import torch

from bitllm.data.prompt import INSTRUCTIONS, plain_caption
from bitllm.evaluation.bits import bits_per_word, reference_tokens
from bitllm.evaluation.pairing import other_images
from bitllm.evaluation.words import simulated_words
from bitllm.model import captioner
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm

REFERENCES = [("A dog on a bench.", "two boats"), ("a bus",), ("a red bird near the beach", "a", "bird.")]


def log2_probs(system, tokens, brain_tokens):
    return system.log2_probs(tokens.answers, tokens.row, brain_tokens)


def log2_probs_of_a_loop(system, brain_tokens, reference):
    """By a loop over the tokens of one reference, without batches or padding."""
    prompt = system.prompter.prompt_ids(INSTRUCTIONS[0])
    answer = system.prompter.answer_ids(plain_caption(reference))
    ids = torch.tensor([prompt + answer])
    brain = {} if brain_tokens is None else {"brain_tokens": brain_tokens[None]}
    with torch.no_grad():
        log_probs = system.model(input_ids=ids, **brain).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return [log_probs[place, ids[0, place + 1]].item() / np.log(2) for place in places]


@pytest.fixture(scope="module")
def brain_tokens():
    torch.manual_seed(0)
    return 3 * torch.randn(3, 4, 32)


@pytest.mark.parametrize("with_brain", [True, False])
def test_log_probabilities_are_those_of_a_loop_over_references(system, brain_tokens, monkeypatch, with_brain):
    monkeypatch.setattr(captioner, "_SCORED_AT_ONCE", 4)
    tokens = reference_tokens(system.prompter, REFERENCES)
    found = log2_probs(system, tokens, brain_tokens if with_brain else None)
    flat = [(row, text) for row, group in enumerate(REFERENCES) for text in group]
    for place, (row, text) in enumerate(flat):
        expected = log2_probs_of_a_loop(system, brain_tokens[row] if with_brain else None, text)
        assert found[place, : len(expected)] == pytest.approx(expected, abs=1e-4)
        assert not found[place, len(expected) :].any()


def test_bits_are_those_of_a_loop_over_references(system, brain_tokens):
    other = [1, 2, 0]
    tokens = reference_tokens(system.prompter, REFERENCES)
    log2 = [log2_probs(system, tokens, t) for t in (brain_tokens, brain_tokens[other])]
    gains = [
        sum(log2_probs_of_a_loop(system, brain_tokens[row], text))
        - sum(log2_probs_of_a_loop(system, brain_tokens[other[row]], text))
        for row, group in enumerate(REFERENCES)
        for text in group
    ]
    n_words = sum(len(plain_caption(text).split()) for group in REFERENCES for text in group)
    found = bits_per_word(*log2, tokens, [7, 8, 9], seed=0)
    assert found.value == pytest.approx(sum(gains) / n_words, abs=1e-3)


def test_bits_of_a_category_are_those_of_its_words_alone(system, brain_tokens):
    tokens = reference_tokens(system.prompter, REFERENCES)
    log2 = [log2_probs(system, tokens, t) for t in (brain_tokens, brain_tokens[[1, 2, 0]])]
    mask = simulated_words().tokens_of("animals", tokens)
    assert mask.sum() == 3  # dog, bird, bird
    found = bits_per_word(*log2, tokens, [7, 8, 9], seed=0, chosen=mask)
    gain = (log2[0] - log2[1])[[0, 3, 5], [1, 2, 0]].sum()
    assert found.value == pytest.approx(gain / 3, abs=1e-9)
    assert bits_per_word(*log2, tokens, [7, 8, 9], seed=0, chosen=np.zeros_like(mask)) is None


def test_a_model_that_ignores_its_input_has_exactly_no_bits(easy, held_out):
    system = load_captioner(easy.folder / "sft", load_llm(easy.folder / "llm"))
    with torch.no_grad():
        for name, parameter in system.model.named_parameters():
            if name.endswith(".gate") or ".adapter.o_proj" in name:
                parameter.zero_()
    tokens = reference_tokens(system.prompter, held_out.references)
    real = held_out.brain_tokens(system.encoder, system.atlases)
    order = other_images(held_out, seed=0).order.tolist()
    log2 = [log2_probs(system, tokens, t) for t in (real, real[order])]
    assert np.array_equal(*log2)
    assert bits_per_word(*log2, tokens, held_out.nsd_id.tolist(), seed=0) == (0, 0, 0, 1)


def test_a_system_that_reads_the_brain_has_bits_above_zero(found, held_out):
    log2 = found.log2_probs["real"], found.log2_probs["permuted"]
    assert bits_per_word(*log2, found.tokens, held_out.nsd_id.tolist(), seed=0).is_above_zero


def test_one_brain_input_serves_all_rows(found, system):
    n = len(found.held_out.trials)
    zero = found.held_out.brain_tokens(
        system.encoder, system.atlases, np.zeros((n, found.held_out.betas.shape[1]), dtype=np.float32)
    )
    one = log2_probs(system, found.tokens, zero[:1])
    assert np.allclose(one, found.log2_probs["zero"], atol=1e-4)
