"""How brain tokens reach the LLM: ``cross_attention``, ``prefix`` or ``prefix_mlp``.

Each produces one tensor, the *brain memory*: keys and values of the adapters for ``cross_attention``, or soft tokens
of the LLM's width that replace the prompt's placeholder tokens for the prefix interfaces.
"""

from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaConfig

from bitllm.model.adapter import AttentionShape, MemoryProjector

Interface = Literal["cross_attention", "prefix", "prefix_mlp"]
INTERFACES: tuple[str, ...] = get_args(Interface)


class PrefixMlp(nn.Module):
    """The parameter-matched prefix: Linear, GELU, Linear (bias on the second only)."""

    def __init__(self, *, token_width: int, hidden_width: int, llm_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(token_width, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, llm_width)

    def forward(self, brain_tokens: Float[Tensor, "B N width"]) -> Float[Tensor, "B N d"]:
        return self.down(F.gelu(self.up(brain_tokens)))


class BrainInterface(nn.Module):
    """Brain tokens → brain memory.

    Parameters
    ----------
    config
        The LLM's configuration.
    interface
        One of `INTERFACES`.
    token_width
        Width of a brain token.
    n_adapters
        Number of cross-attention adapters.
    prefix_hidden_width
        Hidden width of ``prefix_mlp`` (24,576 in the poster's table; see `matched_prefix_width`).
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        interface: str,
        token_width: int,
        n_adapters: int,
        prefix_hidden_width: int,
    ) -> None:
        super().__init__()
        if interface == "prefix_mlp":
            self.projection: nn.Module = PrefixMlp(
                token_width=token_width, hidden_width=prefix_hidden_width, llm_width=config.hidden_size
            )
        else:
            self.projection = nn.Linear(token_width, config.hidden_size)
        self.memory = (
            MemoryProjector(config, n_adapters=n_adapters)
            if interface == "cross_attention"
            else nn.Identity()
        )

    def forward(self, brain_tokens: Float[Tensor, "B N width"]) -> Float[Tensor, "B ..."]:
        """The brain memory of each input."""
        dtype = next(self.projection.parameters()).dtype
        return self.memory(self.projection(brain_tokens.to(dtype)))


def matched_prefix_width(config: LlamaConfig, *, token_width: int, n_adapters: int) -> int:
    """Hidden width of ``prefix_mlp`` with as many parameters as projection and adapters of ``cross_attention``.

    At the poster's size this is 25,347; the poster's own prefix (100.67M parameters instead of 103.82M) has 24,576.
    """
    shape = AttentionShape.of(config)
    q_width, kv_width = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    adapter = shape.width * (2 * q_width + 2 * kv_width + 1) + 1
    cross_attention = token_width * shape.width + n_adapters * adapter
    return round(cross_attention / (token_width + shape.width))
