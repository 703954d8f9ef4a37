"""Gated cross-attention adapters, with which text states read the brain memory, and a Llama that contains them.

    h ← h + tanh(gate) · W_o · Attention(W_q · RMSNorm(h), K, V)

``K`` and ``V`` are the projected brain tokens of this adapter, in the LLM's grouped-query shape, without biases and
without rotary embedding (the memory has no order). They are computed once per input and passed as an argument; no
module stores them.

References
----------
The poster, "BIT-LLM: persistent key-value memory"; the tanh gate is Flamingo's (Alayrac et al. 2022). This shape,
with one RMSNorm per adapter, gives exactly the trainable parameters of the poster's table.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers import initialization as init
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm

from bitllm.model.precision import float32_parameters


class AttentionShape(NamedTuple):
    """Sizes of the LLM's attention, with defaults for what its configuration leaves out."""

    width: int
    """Width of the hidden states."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of a head."""

    @classmethod
    def of(cls, config: LlamaConfig) -> "AttentionShape":
        """Sizes from a configuration."""
        return cls(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads or config.num_attention_heads,
            config.head_dim or config.hidden_size // config.num_attention_heads,
        )


class CrossAttentionAdapter(nn.Module):
    """The text side of an adapter: norm, query, output and gate.

    Parameters
    ----------
    config
        The LLM's configuration, which determines heads and widths.
    gate_start
        Initial value of the gate. At 0 the adapter is closed. With any other value ``W_o`` starts at 0, so that the
        untrained model is the plain LLM either way; an open gate passes gradients from the first step.
    """

    def __init__(self, config: LlamaConfig, *, gate_start: float) -> None:
        super().__init__()
        shape = AttentionShape.of(config)
        self.head_dim, self.gate_start = shape.head_dim, gate_start
        self.norm = LlamaRMSNorm(shape.width, eps=config.rms_norm_eps)
        self.q_proj = nn.Linear(shape.width, shape.n_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.width, bias=False)
        self.gate = nn.Parameter(torch.empty(1))  # a vector of one: FSDP2 shards no scalars
        self.initial_range = config.initializer_range

    def reset_parameters(self) -> None:
        """Initialize the adapter as the identity."""
        init.constant_(self.gate, self.gate_start)
        init.normal_(self.q_proj.weight, std=self.initial_range)
        # Exactly one factor of tanh(gate) · W_o is 0: with both at 0, neither would get a gradient.
        init.normal_(self.o_proj.weight, std=self.initial_range if self.gate_start == 0 else 0.0)

    def forward(
        self, hidden: Float[Tensor, "B T d"], memory: Float[Tensor, "B 2 kv_heads N head"]
    ) -> Float[Tensor, "B T d"]:
        """Text states after reading the memory (keys at index 0, values at 1)."""
        normed = self.norm(hidden).to(self.q_proj.weight.dtype)
        query = self.q_proj(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        keys, values = memory.to(query.dtype).unbind(1)
        read = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        told = torch.tanh(self.gate) * self.o_proj(read.transpose(1, 2).flatten(-2))
        return hidden + told.to(hidden.dtype)


class MemoryProjector(nn.Module):
    """Projected brain tokens → keys and values of every adapter, once per input.

    This is not part of the decoder layers, because FSDP gathers the parameters of a layer only while that layer
    runs, and the memory is computed before any layer.
    """

    def __init__(self, config: LlamaConfig, *, n_adapters: int) -> None:
        super().__init__()
        shape = AttentionShape.of(config)
        self.head_dim = shape.head_dim
        kv_width = shape.n_kv_heads * shape.head_dim
        self.k_proj = nn.ModuleList(nn.Linear(shape.width, kv_width, bias=False) for _ in range(n_adapters))
        self.v_proj = nn.ModuleList(nn.Linear(shape.width, kv_width, bias=False) for _ in range(n_adapters))

    def forward(self, projected: Float[Tensor, "B N d"]) -> Float[Tensor, "B adapters 2 kv_heads N head"]:
        """The brain memory."""
        pairs = [
            torch.stack([k(projected), v(projected)], dim=1)
            for k, v in zip(self.k_proj, self.v_proj, strict=True)
        ]
        memory = torch.stack(pairs, dim=1)
        return memory.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)


class BitLlmDecoderLayer(LlamaDecoderLayer):
    """A Llama layer, followed by an adapter if the configuration has one here."""

    def __init__(
        self, config: LlamaConfig, layer_idx: int, *, adapter_slot: int | None, gate_start: float
    ) -> None:
        super().__init__(config, layer_idx)
        self.adapter_slot = adapter_slot
        if adapter_slot is not None:
            # The adapter is trained and so needs float32, even if the frozen layer is bfloat16.
            with float32_parameters():
                self.adapter = CrossAttentionAdapter(config, gate_start=gate_start)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, brain_memory: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """The Llama layer, then its adapter if there is a memory."""
        hidden_states = super().forward(hidden_states, **kwargs)
        if self.adapter_slot is None or brain_memory is None:
            return hidden_states
        return self.adapter(hidden_states, brain_memory[:, self.adapter_slot])


class BitLlmTextModel(LlamaModel):
    """A Llama with adapters in some layers; without a memory its outputs are those of the plain Llama, bit for bit."""

    def __init__(self, config: LlamaConfig, *, adapter_layers: list[int], gate_start: float) -> None:
        super().__init__(config)
        slots = {layer: slot for slot, layer in enumerate(adapter_layers)}
        self.layers = nn.ModuleList(
            BitLlmDecoderLayer(config, layer, adapter_slot=slots.get(layer), gate_start=gate_start)
            for layer in range(config.num_hidden_layers)
        )

    def compile_layers(self, **how: Any) -> None:
        """Compile every layer when it is first used, which fuses its norms, rotations and activations.

        ``how`` are arguments of `torch.compile`.
        """
        # layers with each adapter and with none, with and without gradients; the default of 8 is too few
        torch._dynamo.config.recompile_limit = 64
        for layer in self.layers:
            layer.compile(dynamic=True, **how)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CrossAttentionAdapter):
            module.reset_parameters()
        else:
            super()._init_weights(module)


@torch.no_grad()
def start_from_self_attention(layers: Any, memory: Any) -> None:
    """Initialize norm, query, key and value of each adapter with those of its layer's self-attention.

    ``W_o`` and the gate are unchanged, so the adapter is still the identity. This is an option of ours.
    """
    with_adapter = [layer for layer in layers if hasattr(layer, "adapter")]
    for layer, keys, values in zip(with_adapter, memory.k_proj, memory.v_proj, strict=True):
        layer.adapter.norm.weight.copy_(layer.input_layernorm.weight)
        layer.adapter.q_proj.weight.copy_(layer.self_attn.q_proj.weight)
        keys.weight.copy_(layer.self_attn.k_proj.weight)
        values.weight.copy_(layer.self_attn.v_proj.weight)
