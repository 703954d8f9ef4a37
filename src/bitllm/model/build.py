"""Builders: from a base LLM and plain settings to a BIT-LLM; its trainable parameters; the checkpoints of stages."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

from bitllm.data.io.models import model_loading
from bitllm.errors import CheckpointError
from bitllm.files import write_json
from bitllm.model.adapter import start_from_self_attention
from bitllm.model.checkpoint.base import BaseLlm
from bitllm.model.checkpoint.weights import (
    WEIGHTS,
    base_weights,
    is_encoder_parameter,
    is_interface_parameter,
)
from bitllm.model.configuration import BitLlmConfig
from bitllm.model.modeling import BitLlmForCausalLM

CARD = "bitllm.json"
"""Describes how a checkpoint was trained."""


def build_bit_llm(
    llm: LlamaForCausalLM, *, base_dtype: torch.dtype | None = None, **settings: Any
) -> BitLlmForCausalLM:
    """A BIT-LLM around ``llm``, with newly initialized encoder, interface and adapters, all frozen.

    The model shares the LLM's weights if the precision is the same: at the poster's size a copy would take 6 GB.

    Parameters
    ----------
    llm
        The base LLM.
    base_dtype
        Precision of the frozen LLM, by default unchanged; encoder and interface are in float32.
    settings
        Fields of `BitLlmConfig` besides ``text_config``.

    Raises
    ------
    CheckpointError
        If the weights of ``llm`` do not match its configuration.
    """
    config = BitLlmConfig(text_config=llm.config, **settings)
    dtype = base_dtype or llm.dtype
    model = BitLlmForCausalLM.assemble(
        config,
        base_weights(llm),
        source="base LLM",
        dtype=dtype,
        generation_config=llm.generation_config,
        attn_implementation=llm.config._attn_implementation,
    )
    if config.adapter_start == "self_attention" and config.interface == "cross_attention":
        start_from_self_attention(model.model.language_model.layers, model.model.interface.memory)
    freeze(model)
    return model


def freeze(model: nn.Module) -> None:
    """Freeze all parameters."""
    model.requires_grad_(False)


def train_interface(model: BitLlmForCausalLM, *, with_encoder: bool = False) -> None:
    """Make the interface trainable (and the encoder ``with_encoder``); freeze everything else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            is_interface_parameter(name) or (with_encoder and is_encoder_parameter(name))
        )


def n_trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save_trained(
    model: BitLlmForCausalLM,
    folder: Path,
    *,
    base: BaseLlm,
    about: dict[str, Any] | None = None,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write encoder, interface, configuration and the reference to the base LLM into ``folder``.

    `BitLlmForCausalLM.from_pretrained` opens the folder.

    Parameters
    ----------
    about
        Further entries of ``bitllm.json``.
    state
        Weights to write; by default the model's own.
    """
    model.config.base_llm = base.reference()
    model.save_pretrained(folder, state_dict=state)
    write_json(folder / CARD, {"base_llm": base.reference(), **(about or {})})


def load_trained(
    folder: Path, base: BaseLlm, *, base_dtype: torch.dtype | None = None, interface: str | None = None
) -> BitLlmForCausalLM:
    """A BIT-LLM from a checkpoint of `save_trained` and its base LLM.

    Parameters
    ----------
    base_dtype
        Precision of the frozen LLM, by default unchanged.
    interface
        Expected interface; by default any.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, was trained on another base LLM or with another interface, or has a missing or
        unexpected weight.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint with {WEIGHTS}, found none; train the stage first"
        )
    with model_loading(folder, "a checkpoint with the config.json of a BIT-LLM", error=CheckpointError):
        config = BitLlmConfig.from_pretrained(folder)
    if config.model_type != "bit_llm" or config.base_llm is None:
        raise CheckpointError(
            f"{folder}: expected a checkpoint of a stage, found config.json of another model; check the path"
        )
    if interface is not None and config.interface != interface:
        raise CheckpointError(
            f"{folder}: expected a checkpoint of the interface {interface}, found {config.interface}; name the "
            "checkpoint that was trained with it"
        )
    model = BitLlmForCausalLM.from_pretrained(
        folder, config=config, base_llm=base, dtype=base_dtype or base.llm.dtype
    )
    freeze(model)
    return model
