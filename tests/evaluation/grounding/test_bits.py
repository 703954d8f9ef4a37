import numpy as np
import pytest
import torch

from bitllm.data.prompt import INSTRUCTIONS, plain_caption
from bitllm.evaluation.grounding import bits
from bitllm.evaluation.grounding.bits import evidence_bits
from bitllm.evaluation.grounding.ground import control_tokens, read_held_out
from bitllm.evaluation.grounding.system import load_system
from bitllm.evaluation.scoring.floors import derangement
from bitllm.model.checkpoint.base import load_llm


@pytest.fixture(scope="module")
def system(easy):
    """The sft system of the easy brain."""
    return load_system("sft", easy.folder / "sft", load_llm(easy.folder / "llm"))


@pytest.fixture(scope="module")
def held_out(easy):
    """Its test trials."""
    return read_held_out(easy.store, easy.split, averaged=True)


def log2_likelihood(system, brain_tokens, reference):
    """By a loop over the tokens of one reference, without batches or padding."""
    prompt = system.prompter.prompt_ids(INSTRUCTIONS[0])
    answer = system.prompter.answer_ids(plain_caption(reference))
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        log_probs = system.model(input_ids=ids, brain_tokens=brain_tokens[None]).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return sum(log_probs[place, ids[0, place + 1]].item() for place in places) / np.log(2), len(answer)


def test_bits_are_those_of_a_loop_over_references(system, monkeypatch):
    torch.manual_seed(0)
    brain_tokens = 3 * torch.randn(3, 4, 32)
    references = [("A dog on a bench.", "two boats"), ("a bus",), ("a red bird near the beach", "a", "bird.")]
    other = np.array([1, 2, 0])
    monkeypatch.setattr(bits, "_BATCH", 4)
    found = evidence_bits(system, brain_tokens, other, references)
    for image, group in enumerate(references):
        pairs = [
            (
                log2_likelihood(system, brain_tokens[image], text),
                log2_likelihood(system, brain_tokens[other[image]], text),
            )
            for text in group
        ]
        gains = [right[0] - wrong[0] for right, wrong in pairs]
        assert found.per_caption[image] == pytest.approx(np.mean(gains), abs=1e-3)
        n_tokens = sum(right[1] for right, _ in pairs)
        assert found.per_token[image] == pytest.approx(sum(gains) / n_tokens, abs=1e-3)


def test_a_model_that_ignores_its_input_has_exactly_no_bits(easy, held_out):
    system = load_system("sft", easy.folder / "sft", load_llm(easy.folder / "llm"))
    with torch.no_grad():
        for name, parameter in system.model.named_parameters():
            if name.endswith(".gate") or ".adapter.o_proj" in name:
                parameter.zero_()
    brain_tokens = control_tokens(system, held_out, "real", seed=0)
    other = derangement(held_out.nsd_id.tolist(), np.random.default_rng(0))
    found = evidence_bits(system, brain_tokens, other, held_out.references)
    assert not found.per_caption.any()
    assert not found.per_token.any()


def test_equal_brain_tokens_give_exactly_no_bits(system, held_out):
    brain_tokens = control_tokens(system, held_out, "zero", seed=0)
    other = derangement(held_out.nsd_id.tolist(), np.random.default_rng(0))
    found = evidence_bits(system, brain_tokens, other, held_out.references)
    assert np.abs(found.per_caption).max() < 1e-4  # equal inputs in other places of a batch


def test_a_system_that_reads_the_brain_has_bits_above_zero(system, held_out):
    brain_tokens = control_tokens(system, held_out, "real", seed=0)
    gains = []
    for seed in range(4):
        other = derangement(held_out.nsd_id.tolist(), np.random.default_rng(seed))
        gains.append(evidence_bits(system, brain_tokens, other, held_out.references).per_caption)
    mean = np.mean(gains, axis=0)
    assert mean.mean() > 3 * mean.std(ddof=1) / np.sqrt(len(mean))


def test_shuffled_betas_have_fewer_bits_than_real_ones(system, held_out):
    other = derangement(held_out.nsd_id.tolist(), np.random.default_rng(0))
    mean = {
        control: evidence_bits(
            system, control_tokens(system, held_out, control, seed=0), other, held_out.references
        ).per_caption.mean()
        for control in ("real", "shuffle")
    }
    assert mean["shuffle"] < mean["real"]
