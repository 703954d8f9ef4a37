"""Sizes computed from the recipe alone: parameters of each part (``bitllm params``), and memory of each stage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn
from transformers import LlamaConfig

from bitllm.config import nearest
from bitllm.errors import ConfigError
from bitllm.model.aligner import BrainAligner
from bitllm.model.checkpoint.weights import is_encoder_parameter, is_interface_parameter
from bitllm.model.configuration import BitLlmConfig
from bitllm.model.encoder import MAP_LIMIT_BYTES, BrainEncoder
from bitllm.model.interface import matched_prefix_width
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.pipeline.recipe import Recipe
from bitllm.stages.rft import with_lora

GPUS_GB = (24, 40, 80)
"""Memory of GPUs for which the largest batch is estimated."""
_FP32, _BF16, GB = 4, 2, 1e9
_ADAM = 3 * _FP32  # gradient and two moments
_USABLE = (
    0.9  # share of a GPU that weights and activations may take; libraries and fragmentation need the rest
)


class ParameterTable(NamedTuple):
    """Numbers of parameters of a system."""

    interface: str
    parts: dict[str, int]
    """Parameters of each part; tied weights count once."""
    trainable: dict[str, int]
    """Parameters that each stage trains."""
    encoder_in: tuple[str, ...] = ("align",)
    """Stages that train the encoder."""

    def to_json(self) -> dict[str, Any]:
        """Output of ``--json``."""
        return {
            "interface": self.interface,
            "parts": self.parts,
            "trainable": self.trainable,
            "total": sum(self.parts.values()),
        }


class StageMemory(NamedTuple):
    """Memory of a stage, in bytes."""

    weights: int
    """The frozen LLM in its precision, everything else in float32."""
    learning: int
    """Gradients and AdamW's two moments of the trained parameters."""
    activations: int
    """Activations of a batch that the backward pass needs."""

    @property
    def gb(self) -> float:
        """Sum in GB."""
        return sum(self) / GB


def encoder_arguments(recipe: Recipe) -> dict[str, Any]:
    """Arguments of `BrainEncoder`, from the recipe alone."""
    known = recipe.data.atlas_labels
    for atlas in recipe.encoder.atlases:
        if atlas not in known:
            raise ConfigError(
                f"data.atlas_labels: expected the number of labels of `{atlas}`, found none; "
                f"{nearest(atlas, list(known))}"
            )
    return recipe.encoder.sizes([known[atlas] for atlas in recipe.encoder.atlases])


def model_config(recipe: Recipe) -> BitLlmConfig:
    """Configuration of the model that sft builds, from the recipe alone."""
    llama = LlamaConfig(**recipe.llm.published_sizes().model_dump())
    hidden = recipe.sft.prefix_hidden_width or matched_prefix_width(
        llama, token_width=recipe.encoder.token_width, n_adapters=len(recipe.sft.adapter_layers)
    )
    return BitLlmConfig(
        text_config=llama,
        encoder=encoder_arguments(recipe),
        interface=recipe.sft.interface,
        adapter_layers=list(recipe.sft.adapter_layers),
        gate_start=recipe.sft.gate_start,
        prefix_hidden_width=hidden,
        brain_token_id=4,  # `<brain>` in made-up vocabularies; no parameter depends on it
    )


def count_parameters(recipe: Recipe) -> ParameterTable:
    """Count the parameters of the real modules, built on torch's meta device, without memory.

    Raises
    ------
    ConfigError
        If the recipe does not state the sizes of the LLM or of an atlas, or its parts do not fit each other.
    """
    with torch.device("meta"):
        aligner = make_aligner(recipe)
        model = BitLlmForCausalLM(model_config(recipe))
        model.tie_weights()
        parts = {
            "llm": _count(
                model, lambda name: not (is_encoder_parameter(name) or is_interface_parameter(name))
            ),
            "encoder": _count(aligner.encoder),
            "align_heads": _count(aligner) - _count(aligner.encoder),
            "projection": _count(model, lambda name: name.startswith("model.interface.projection.")),
        }
        if recipe.sft.interface == "cross_attention":
            parts["adapters"] = _count(
                model, lambda name: ".adapter." in name or name.startswith("model.interface.memory.")
            )
        parts["lora"] = _count(with_lora(model, recipe.rft), lambda name: ".lora_" in name)
    encoder_in = ("align", "sft") if recipe.sft.encoder == "trained" else ("align",)
    trainable = {
        "align": parts["encoder"] + parts["align_heads"],
        "sft": parts["projection"] + parts.get("adapters", 0) + parts["encoder"] * ("sft" in encoder_in),
        "rft": parts["lora"],
    }
    return ParameterTable(recipe.sft.interface, parts, trainable, encoder_in)


def _count(module: nn.Module, which: Callable[[str], bool] = lambda _: True) -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters() if which(name))


def estimate_memory(
    recipe: Recipe, table: ParameterTable, *, n_tokens: int, batch: dict[str, int]
) -> dict[str, StageMemory]:
    """Estimate the memory of each stage by a formula.

    Parameters
    ----------
    n_tokens
        Number of tokens of prompt and caption.
    batch
        Examples in memory at once, by stage (rft: brain inputs, each with its G captions).

    Notes
    -----
    Activations of a Llama layer for the backward pass, per token, in the precision of the layer: 8 × width (inputs and
    outputs of two norms in float32 count double), 2 × keys and values, 3 × feed-forward width. With gradient
    checkpointing one width per layer, plus one full layer. Language head: three float32 copies of the vocabulary per
    caption token (assumed to be a third of the tokens). Encoder: 12 × its width and 3 × its output per trial, and
    per subject and voxel 6 × rank, and 3 × queries for a pooling map that is held in memory, in float32.
    """
    sizes = recipe.llm.published_sizes()
    precision = {"sft": recipe.sft.precision, "rft": recipe.rft.precision}
    base = {stage: _FP32 if of_stage == "fp32" else _BF16 for stage, of_stage in precision.items()}
    ours = _FP32 * (sum(table.parts.values()) - table.parts["llm"] - table.parts["align_heads"])
    weights = {
        "align": _FP32 * table.trainable["align"],
        "sft": base["sft"] * table.parts["llm"] + ours - _FP32 * table.parts["lora"],
        "rft": base["rft"] * table.parts["llm"] + ours,
    }
    kv_width = sizes.num_key_value_heads * (sizes.head_dim or sizes.hidden_size // sizes.num_attention_heads)
    per_layer = 12 * sizes.hidden_size + 2 * kv_width + 3 * sizes.intermediate_size
    first = min(recipe.sft.adapter_layers) if recipe.sft.interface == "cross_attention" else 0
    deep = {"sft": sizes.num_hidden_layers - first, "rft": sizes.num_hidden_layers}
    rows = {"sft": batch["sft"], "rft": batch["rft"] * recipe.rft.n_captions}
    activations = {"align": _encoder_activations(recipe, batch["align"])}
    for stage in ("sft", "rft"):
        held = per_layer * deep[stage]
        if stage == "rft" and recipe.rft.gradient_checkpointing:
            held = per_layer + sizes.hidden_size * deep[stage]
        head = _FP32 * 3 * sizes.vocab_size * rows[stage] * (n_tokens // 3)
        activations[stage] = base[stage] * held * rows[stage] * n_tokens + head
    if recipe.sft.encoder == "trained":
        activations["sft"] += _encoder_activations(recipe, batch["sft"])
    return {
        stage: StageMemory(weights[stage], _ADAM * table.trainable[stage], activations[stage])
        for stage in ("align", "sft", "rft")
    }


def _encoder_activations(recipe: Recipe, batch: int) -> int:
    encoder, voxels = recipe.encoder, max(recipe.data.voxels.values())
    per_trial = 12 * encoder.n_queries + 3 * encoder.n_brain_tokens * encoder.token_width
    n_subjects = min(batch, len(recipe.data.voxels))
    has_map = _FP32 * encoder.n_queries * voxels <= MAP_LIMIT_BYTES
    per_voxel = 6 * encoder.rank + 3 * encoder.n_queries * has_map
    return _FP32 * (batch * (per_trial + voxels) + n_subjects * voxels * per_voxel)


def largest_batch(memory: StageMemory, batch: int, gpu_gb: int) -> int:
    """Number of examples that fit on a GPU; ``memory`` is that of ``batch`` examples."""
    free = _USABLE * gpu_gb * GB - memory.weights - memory.learning
    return max(0, int(free / (memory.activations / batch)))


def make_aligner(recipe: Recipe) -> BrainAligner:
    """Untrained encoder and heads."""
    arguments = encoder_arguments(recipe)
    encoder = BrainEncoder(**{**arguments, "n_labels": tuple(arguments["n_labels"])})
    return BrainAligner(encoder, embedding_width=recipe.clip.embedding_width)


_WHAT = {
    "llm": "frozen; tied weights once",
    "encoder": "betas → brain tokens",
    "align_heads": "heads of the align stage and its temperature",
    "projection": "brain tokens → the LLM's width",
    "adapters": "norm, query, key, value, output and gate of each adapter",
    "lora": "on the LLM's linear layers",
}


def render_parameters(table: ParameterTable) -> Group:
    """The table for the terminal."""
    shown = Table(title=f"Parameters, interface {table.interface}", box=None, title_justify="left")
    for column, justify in (("part", "left"), ("parameters", "right"), ("trained in", "left"), ("", "left")):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    trained_in = {"align_heads": "align", "projection": "sft", "adapters": "sft", "lora": "rft"}
    trained_in["encoder"] = ", ".join(table.encoder_in)
    for part, n in table.parts.items():
        shown.add_row(part, f"{n:,}", trained_in.get(part, "—"), _WHAT[part])
    shown.add_row("total", f"{sum(table.parts.values()):,}", "", style="bold")
    learn = "   ".join(f"{stage} {n:,}" for stage, n in table.trainable.items())
    return Group(shown, Text(f"Trainable: {learn}"))
