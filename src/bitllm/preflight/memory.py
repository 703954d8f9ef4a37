"""Memory: what a stage needs by arithmetic, and what a process really took at its peak."""

import threading
from types import TracebackType
from typing import NamedTuple

import psutil

from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.parameters import ParameterTable

GPUS_GB = (24, 40, 80)
"""Sizes of GPU that an estimate is held against."""
_FP32, _BF16 = 4, 2
_ADAM = 3 * _FP32  # gradient and two moments
_GB = 1e9


class StageMemory(NamedTuple):
    """What a stage holds at once, in bytes."""

    weights: int
    """The frozen LLM in its precision, everything else in float32."""
    learning: int
    """Gradients and AdamW's two moments of what is trained."""
    activations: int
    """What the backward pass needs of a batch."""

    @property
    def gb(self) -> float:
        """Their sum in GB."""
        return sum(self) / _GB


def estimate_memory(
    config: Recipe, table: ParameterTable, *, n_tokens: int, batch: dict[str, int]
) -> dict[str, StageMemory]:
    """Memory of each stage by arithmetic.

    Parameters
    ----------
    n_tokens
        Tokens of prompt and caption.
    batch
        Examples that each stage holds at once (rft: brain inputs, each with its G captions).

    Notes
    -----
    Activations of a Llama layer that the backward pass keeps, per token, in the layer's precision: 8 times the width
    (two norms' inputs and outputs in float32 count double), 2 times keys and values, 3 times the feed-forward width;
    with gradient checkpointing one width per layer and one layer's worth besides. The head: three float32 copies of the
    vocabulary per caption token, taken as a third of the tokens. The encoder: 12 times its width and 3 times
    its output per trial, 6 float32 times voxels × rank per subject.
    """
    sizes = config.llm.published_sizes()
    base = {
        stage: _BF16 if precision != "fp32" else _FP32 for stage, precision in _precisions(config).items()
    }
    ours = _FP32 * (sum(table.parts.values()) - table.parts["llm"] - table.parts["align_heads"])
    weights = {
        "align": _FP32 * table.trainable["align"],
        "sft": base["sft"] * table.parts["llm"] + ours - _FP32 * table.parts["lora"],
        "rft": base["rft"] * table.parts["llm"] + ours,
    }
    kv_width = sizes.num_key_value_heads * (sizes.head_dim or sizes.hidden_size // sizes.num_attention_heads)
    per_layer = 12 * sizes.hidden_size + 2 * kv_width + 3 * sizes.intermediate_size
    first = min(config.sft.adapter_layers) if config.sft.interface == "cross_attention" else 0
    deep = {"sft": sizes.num_hidden_layers - first, "rft": sizes.num_hidden_layers}
    rows = {"sft": batch["sft"], "rft": batch["rft"] * config.rft.n_captions}
    activations = {"align": _encoder_activations(config, batch["align"])}
    trained_encoder = _encoder_activations(config, batch["sft"]) if config.sft.encoder == "trained" else 0
    for stage in ("sft", "rft"):
        kept = per_layer * deep[stage]
        if stage == "rft" and config.rft.gradient_checkpointing:
            kept = per_layer + sizes.hidden_size * deep[stage]
        head = _FP32 * 3 * sizes.vocab_size * rows[stage] * (n_tokens // 3)
        activations[stage] = base[stage] * kept * rows[stage] * n_tokens + head
    activations["sft"] += trained_encoder
    return {
        stage: StageMemory(weights[stage], _ADAM * table.trainable[stage], activations[stage])
        for stage in ("align", "sft", "rft")
    }


def _encoder_activations(config: Recipe, batch: int) -> int:
    encoder, voxels = config.encoder, max(config.data.voxels.values())
    per_trial = 12 * encoder.n_queries + 3 * encoder.n_brain_tokens * encoder.token_width
    n_subjects = min(batch, len(config.data.voxels))
    return _FP32 * (batch * (per_trial + voxels) + n_subjects * 6 * voxels * encoder.rank)


def _precisions(config: Recipe) -> dict[str, str]:
    return {"sft": config.sft.precision, "rft": config.rft.precision}


class PeakMemory:
    """The largest memory of this process while a block runs, sampled every few milliseconds.

    Attributes
    ----------
    gb
        The peak in GB, once the block has ended.
    """

    def __init__(self) -> None:
        self.gb = 0.0
        self._process, self._is_done = psutil.Process(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.gb = max(self.gb, self._process.memory_info().rss / _GB)
            if self._is_done.wait(0.005):
                return


def available_gb() -> float:
    """Memory that this machine can give now."""
    return psutil.virtual_memory().available / _GB
