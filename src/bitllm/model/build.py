"""Builders: from a base LLM and plain settings to a BIT-LLM, its parameter groups and its checkpoints.

A checkpoint holds what was trained (encoder, interface, adapters) and names its base LLM with a hash of the
weights, so that no copy of the LLM is made and none is mistaken for another.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from bitllm.errors import CheckpointError, ConfigError
from bitllm.files import folder_written_whole, read_json, write_json
from bitllm.model.configuration import BitLlmConfig
from bitllm.model.modeling import BitLlmForCausalLM

_WEIGHTS, _CARD = "trained.safetensors", "bitllm.json"
_PLACEHOLDERS = ("<brain>", "<|reserved_special_token_0|>", "<file_sep>", "<unk>")


class BaseLlm(NamedTuple):
    """A frozen Llama with what names it."""

    llm: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Folder or hub id that it came from."""
    sha256: str
    """Checksum of its weights (`weights_hash`)."""


def load_llm(path_or_hub_id: str | Path) -> BaseLlm:
    """A frozen Llama and its tokenizer from a local folder, a GGUF file or a hub id, in float32.

    Raises
    ------
    ConfigError
        If there is no such model, or if its ``model_type`` is not llama.
    """
    name = str(path_or_hub_id)
    source = Path(path_or_hub_id)
    arguments: dict[str, Any] = {}
    if source.suffix == ".gguf":
        from transformers.utils.quantization_config import GgufConfig

        arguments = {"gguf_file": source.name}
        path_or_hub_id, quantization = source.parent, {"quantization_config": GgufConfig(dequantize=True)}
    else:
        quantization = {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id, **arguments)
        llm = AutoModelForCausalLM.from_pretrained(
            path_or_hub_id, dtype=torch.float32, **arguments, **quantization
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path_or_hub_id}: expected a folder or hub id of a Llama with its tokenizer ({reason})"
        ) from None
    if llm.config.model_type != "llama":
        raise ConfigError(
            f"{path_or_hub_id}: expected model_type llama, found {llm.config.model_type}; choose a "
            "Llama, e.g. Llama-3.2-3B-Instruct or SmolLM2"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    # a local folder is named without its path: checkpoints tell nothing of the machine they were made on
    return BaseLlm(llm.eval(), tokenizer, source.name if source.exists() else name, weights_hash(llm))


def placeholder_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token whose places prefix interfaces fill: a special token that no caption contains.

    Raises
    ------
    ConfigError
        If the tokenizer has none of the known ones.
    """
    vocabulary = tokenizer.get_vocab()
    found = [vocabulary[token] for token in _PLACEHOLDERS if token in vocabulary]
    if not found:
        raise ConfigError(
            f"tokenizer: expected one of {', '.join(_PLACEHOLDERS)} as placeholder of brain tokens, "
            "found none; add a special token `<brain>` to the tokenizer"
        )
    return found[0]


def build_bit_llm(
    llm: LlamaForCausalLM, *, base_dtype: torch.dtype = torch.float32, **settings: Any
) -> BitLlmForCausalLM:
    """A BIT-LLM around ``llm``: its weights copied, everything else with first values, the LLM frozen.

    Parameters
    ----------
    llm
        The base LLM.
    base_dtype
        Precision that the frozen LLM is kept in; encoder and interface stay in float32.
    settings
        Fields of `BitLlmConfig` besides ``text_config``.
    """
    config = BitLlmConfig(text_config=llm.config, **settings)
    model = BitLlmForCausalLM(config)
    load_base_weights(model, llm)
    freeze(model)
    for name, parameter in model.named_parameters():
        if not is_ours(name):
            parameter.data = parameter.data.to(base_dtype)
    return model


def load_base_weights(model: BitLlmForCausalLM, llm: LlamaForCausalLM) -> None:
    """Copy the base LLM's weights into the model; its adapters stay as they are.

    Raises
    ------
    CheckpointError
        If a weight of the LLM has no place in the model, or the other way round.
    """
    result = model.model.language_model.load_state_dict(llm.model.state_dict(), strict=False)
    missing = [name for name in result.missing_keys if ".adapter." not in name]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"base LLM: missing weights {missing[:5]}, unexpected {result.unexpected_keys[:5]}; "
            "the checkpoint is not the Llama that the configuration describes"
        )
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.tie_weights()


def is_encoder_parameter(name: str) -> bool:
    """Whether a parameter of `BitLlmForCausalLM` belongs to the encoder."""
    return name.startswith("model.encoder.")


def is_interface_parameter(name: str) -> bool:
    """Whether a parameter belongs to the interface: projection, memory or adapters (what sft trains)."""
    return name.startswith("model.interface.") or ".adapter." in name


def is_ours(name: str) -> bool:
    """Whether a parameter is not the base LLM's: what a checkpoint holds."""
    return is_encoder_parameter(name) or is_interface_parameter(name)


def freeze(model: nn.Module) -> None:
    """Let nothing of the model learn."""
    model.requires_grad_(False)


def train_interface(model: BitLlmForCausalLM, *, with_encoder: bool = False) -> None:
    """Let the interface learn (and the encoder where asked); everything else is frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            is_interface_parameter(name) or (with_encoder and is_encoder_parameter(name))
        )


def n_trainable(model: nn.Module) -> int:
    """Number of parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def weights_hash(llm: nn.Module) -> str:
    """A checksum of a model's weights that does not depend on how they were stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(llm.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_trained(
    model: BitLlmForCausalLM,
    folder: Path,
    *,
    base: BaseLlm,
    about: dict[str, Any] | None = None,
    log: Path | None = None,
) -> None:
    """Write encoder and interface with the configuration and the name of the base LLM; whole or not at all.

    ``log`` is a folder whose files move into the checkpoint.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if is_ours(name)
    }
    config = model.config.to_dict()
    with folder_written_whole(folder, replace=True) as unfinished:
        save_file(tensors, unfinished / _WEIGHTS)
        write_json(
            unfinished / _CARD,
            {
                "config": {key: config[key] for key in _CONFIG_KEYS},
                "base_llm": {"name": base.name, "sha256": base.sha256},
                **(about or {}),
            },
        )
        if log is not None:
            shutil.copytree(log, unfinished, dirs_exist_ok=True)
            shutil.rmtree(log)


_CONFIG_KEYS = (
    "encoder",
    "interface",
    "adapter_layers",
    "gate_start",
    "prefix_hidden_width",
    "brain_token_id",
)


def load_trained(
    folder: Path, base: BaseLlm, *, base_dtype: torch.dtype = torch.float32
) -> BitLlmForCausalLM:
    """A BIT-LLM from a checkpoint of `save_trained` and its base LLM.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, was trained on another base LLM, or has a missing or unexpected weight.
    """
    folder = Path(folder)
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint with {_WEIGHTS}, found none; train the stage first"
        )
    card = read_json(folder / _CARD)
    if base.sha256 != card["base_llm"]["sha256"]:
        raise CheckpointError(
            f"{folder}: trained on the base LLM {card['base_llm']['name']} (sha256 "
            f"{card['base_llm']['sha256'][:12]}…), found another one; load that LLM"
        )
    model = build_bit_llm(base.llm, base_dtype=base_dtype, **card["config"])
    try:
        tensors = load_file(folder / _WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: expected whole weights, found a damaged file ({error}); train the stage again"
        ) from None
    load_ours(model, tensors, source=str(folder))
    return model


def load_ours(
    model: BitLlmForCausalLM, tensors: dict[str, torch.Tensor], *, source: str, only: Any = is_ours
) -> None:
    """Load exactly the weights that ``only`` names.

    Raises
    ------
    CheckpointError
        If one is missing, unexpected or of another shape.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if only(name)}
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"{source}: missing weights {missing[:5]}, unexpected {unexpected[:5]}; the checkpoint "
            "is of another model or interface"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{source}: weight {name} has shape {tuple(tensors[name].shape)}, expected "
                f"{tuple(shape)}; the checkpoint is of another size"
            )
    model.load_state_dict(tensors, strict=False)
