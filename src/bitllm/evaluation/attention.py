"""Which brain tokens each word attends to: attention weights of the adapters during decoding.

They show where an adapter attended, not what it read there or whether that changed the word; for that, use bits or
silence a region. tanh of an adapter's gate is the weight of its contribution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bitllm.data.prompt import INSTRUCTIONS
from bitllm.evaluation.bits import reference_tokens
from bitllm.model.adapter import CrossAttentionAdapter
from bitllm.model.captioner import Captioner
from bitllm.model.precision import computing


class AdapterReading(NamedTuple):
    """What one adapter attended to."""

    layer: int
    """Decoder layer (0-based) that the adapter follows."""
    openness: float
    """tanh of the gate; 0 is closed."""
    weights: Float[Tensor, "words N"]
    """Share of each brain token, averaged over heads and over the tokens of a word; rows sum to 1."""


@torch.no_grad()
def adapter_readings(
    system: Captioner, caption: str, brain_tokens: Float[Tensor, "1 N width"]
) -> list[AdapterReading]:
    """Attention of every adapter over the brain tokens at each word of a caption; empty for a prefix interface.

    Parameters
    ----------
    caption
        Its words; as in decoding, each is predicted at the position before it.
    brain_tokens
        Brain tokens of one input.
    """
    tokens = reference_tokens(system.prompter, [[caption]])
    n_words = len(tokens.words[0])
    if system.model.config.interface != "cross_attention" or n_words == 0:
        return []
    with computing(system.model):
        memory = system.model.model.brain_memory(brain_tokens=brain_tokens.to(system.model.device))
    with _watched(system.model) as seen:
        system.log_probs(tokens.answers, memory)
    owner = torch.from_numpy(tokens.word[0])
    membership = torch.stack([(owner == word).float() for word in range(n_words)])
    membership = membership / membership.sum(-1, keepdim=True)
    first = len(system.prompter.prompt_ids(INSTRUCTIONS[0])) - 1
    return [
        AdapterReading(layer, openness, membership @ weights[first : first + len(owner)].float().cpu())
        for layer, openness, weights in seen
    ]


def attention_weights(
    adapter: CrossAttentionAdapter,
    hidden: Float[Tensor, "B T d"],
    memory: Float[Tensor, "B 2 kv_heads N head"],
) -> Float[Tensor, "B heads T N"]:
    """Attention weights of an adapter over the brain tokens, which its fused kernel does not return."""
    normed = adapter.norm(hidden).to(adapter.q_proj.weight.dtype)
    query = adapter.q_proj(normed).unflatten(-1, (-1, adapter.head_dim)).transpose(1, 2)
    keys = memory[:, 0].to(query.dtype)
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
    return (query @ keys.transpose(-1, -2) * adapter.head_dim**-0.5).softmax(-1)


@contextmanager
def _watched(model: Any) -> Iterator[list[tuple[int, float, Tensor]]]:
    """Within the block, record the weights of every adapter (layer, openness, tokens × brain tokens)."""
    seen: list[tuple[int, float, Tensor]] = []
    handles = []
    for number, layer in enumerate(model.model.language_model.layers):
        if layer.adapter_slot is not None:

            def keep(adapter: Any, given: tuple, _: Tensor, number: int = number) -> None:
                weights = attention_weights(adapter, *given)[0].mean(0)
                seen.append((number, float(adapter.gate.detach().tanh()), weights))

            handles.append(layer.adapter.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
