"""``bitllm params``: how many parameters each part has, and what each stage trains, from the configuration alone."""

from typing import NamedTuple

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from bitllm.model.aligner import BrainAligner
from bitllm.model.checkpoint.weights import is_encoder_parameter, is_interface_parameter
from bitllm.model.encoder import BrainEncoder
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.sizes import encoder_arguments, model_config
from bitllm.stages.rft import with_lora


class ParameterTable(NamedTuple):
    """Parameters of a system."""

    interface: str
    parts: dict[str, int]
    """Parameters of each part; tied weights count once."""
    trainable: dict[str, int]
    """Parameters that each stage trains."""
    encoder_in: tuple[str, ...] = ("align",)
    """Stages that train the encoder."""

    def to_json(self) -> dict[str, object]:
        """As ``--json`` prints it."""
        return {
            "interface": self.interface,
            "parts": self.parts,
            "trainable": self.trainable,
            "total": sum(self.parts.values()),
        }


def count_parameters(config: Recipe) -> ParameterTable:
    """Count the parameters of the real modules, made without memory (torch's meta device)."""
    with torch.device("meta"):
        arguments = encoder_arguments(config)
        encoder = BrainEncoder(**{**arguments, "n_labels": tuple(arguments["n_labels"])})
        aligner = BrainAligner(encoder, embedding_width=config.clip.embedding_width)
        model = BitLlmForCausalLM(model_config(config))
        model.tie_weights()
        parts = {
            "llm": _count(model, lambda name: not _is_trained(name)),
            "encoder": _count(encoder),
            "align_heads": _count(aligner) - _count(encoder),
            "projection": _count(model, lambda name: name.startswith("model.interface.projection.")),
        }
        if config.sft.interface == "cross_attention":
            parts["adapters"] = _count(
                model, lambda name: ".adapter." in name or name.startswith("model.interface.memory.")
            )
        policy = with_lora(model, config.rft)
        parts["lora"] = _count(policy, lambda name: ".lora_" in name)
    encoder_in = ("align", "sft") if config.sft.encoder == "trained" else ("align",)
    trainable = {
        "align": parts["encoder"] + parts["align_heads"],
        "sft": parts["projection"] + parts.get("adapters", 0) + parts["encoder"] * ("sft" in encoder_in),
        "rft": parts["lora"],
    }
    return ParameterTable(config.sft.interface, parts, trainable, encoder_in)


def _is_trained(name: str) -> bool:
    return is_encoder_parameter(name) or is_interface_parameter(name)


def _count(module: nn.Module, which: object = None) -> int:
    chosen = which if callable(which) else (lambda _: True)
    return sum(parameter.numel() for name, parameter in module.named_parameters() if chosen(name))


_WHAT = {
    "llm": "frozen; tied weights once",
    "encoder": "betas → brain tokens",
    "align_heads": "heads of the align stage and its temperature",
    "projection": "brain tokens → the LLM's width",
    "adapters": "norm, query, key, value, output and gate of each adapter",
    "lora": "on the LLM's linear layers",
}


def render_parameters(table: ParameterTable) -> Group:
    """The table as something rich can print."""
    shown = Table(title=f"Parameters, interface {table.interface}", box=None, title_justify="left")
    for column, justify in (("part", "left"), ("parameters", "right"), ("trained in", "left"), ("", "left")):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    trained_in = {
        "encoder": ", ".join(table.encoder_in),
        "align_heads": "align",
        "projection": "sft",
        "adapters": "sft",
        "lora": "rft",
    }
    for part, n in table.parts.items():
        shown.add_row(part, f"{n:,}", trained_in.get(part, "—"), _WHAT[part])
    shown.add_row("total", f"{sum(table.parts.values()):,}", "", style="bold")
    learn = "   ".join(f"{stage} {n:,}" for stage, n in table.trainable.items())
    return Group(shown, Text(f"Trainable: {learn}"))
