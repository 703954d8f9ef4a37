"""Bits of words against a sum written out, and attention weights against the adapter's own output."""

import numpy as np
import pytest
import torch

from bitllm.evaluation.attention import adapter_readings, attention_weights
from bitllm.evaluation.bits import reference_tokens, word_evidence


@pytest.fixture(scope="module")
def tokens(system, held_out):
    return held_out.brain_tokens(system.encoder, system.atlases)


def test_bits_of_words_add_up_to_those_of_the_caption(system, held_out, tokens):
    captions = [references[0] for references in held_out.references[:5]]
    own, others = tokens[:5], [tokens[5:10], tokens[10:15]]
    rows = word_evidence(system, captions, own, others)
    assert [[word.word for word in row] for row in rows] == [c.lower().rstrip(".").split() for c in captions]
    parts = reference_tokens(system.prompter, [[caption] for caption in captions])
    real, *control = (system.log2_probs(parts.answers, parts.row, given) for given in (own, *others))
    is_word = parts.word >= 0
    expected = ((real - (control[0] + control[1]) / 2) * is_word).sum(axis=1)
    np.testing.assert_allclose([sum(word.bits for word in row) for row in rows], expected, atol=1e-5)


def test_the_same_betas_on_both_sides_give_no_bits(system, tokens):
    rows = word_evidence(system, ["a cat on a chair"], tokens[:1], [tokens[:1]])
    assert [word.bits for word in rows[0]] == pytest.approx([0.0] * 5)


def test_an_empty_caption_has_no_words(system, tokens):
    assert word_evidence(system, [""], tokens[:1], [tokens[1:2]]) == [[]]
    assert adapter_readings(system, "", tokens[:1]) == []


def test_the_weights_are_those_that_the_adapter_reads_with(system, tokens):
    layer = next(one for one in system.model.model.language_model.layers if one.adapter_slot is not None)
    with torch.no_grad():
        memory = system.model.model.brain_memory(brain_tokens=tokens[:2])[:, layer.adapter_slot]
        hidden = torch.randn(2, 3, system.model.config.llama.hidden_size)
        weights = attention_weights(layer.adapter, hidden, memory)
        values = memory[:, 1].repeat_interleave(weights.shape[1] // memory.shape[2], dim=1)
        read = (weights @ values).transpose(1, 2).flatten(-2)
        told = layer.adapter.gate.tanh() * layer.adapter.o_proj(read)
        torch.testing.assert_close(hidden + told, layer.adapter(hidden, memory))


def test_every_adapter_tells_where_each_word_was_read(system, tokens):
    found = adapter_readings(system, "a cat on a chair", tokens[:1])
    assert [reading.layer for reading in found] == [0, 1]
    for reading in found:
        assert reading.weights.shape == (5, tokens.shape[1])
        torch.testing.assert_close(reading.weights.sum(-1), torch.ones(5))
        assert 0 < abs(reading.openness) < 1
    other = adapter_readings(system, "a cat on a chair", tokens[1:2])
    assert (found[0].weights - other[0].weights).abs().max() > 1e-4
    assert not system.model.model.language_model.layers[0].adapter._forward_hooks
