"""Which weights are ours and which the base LLM's, and reading them from a file.

One predicate for each part serves freezing, saving and loading alike.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaForCausalLM

from bitllm.data.io.models import read_tensors
from bitllm.errors import CheckpointError, DataError

WEIGHTS = "model.safetensors"
_LISTED = 8


def is_encoder_parameter(name: str) -> bool:
    """Whether a parameter of `BitLlmForCausalLM` belongs to the encoder."""
    return name.startswith("model.encoder.")


def is_interface_parameter(name: str) -> bool:
    """Whether a parameter belongs to the interface: projection, memory or adapters (what sft trains)."""
    return name.startswith("model.interface.") or ".adapter." in name


def is_ours(name: str) -> bool:
    """Whether a parameter is not the base LLM's: what a checkpoint holds."""
    return is_encoder_parameter(name) or is_interface_parameter(name)


def base_weights(llm: LlamaForCausalLM) -> dict[str, Tensor]:
    """The weights of a plain Llama under the names that they have in `BitLlmForCausalLM`."""
    named = {f"model.language_model.{name}": tensor for name, tensor in llm.model.state_dict().items()}
    if not llm.config.tie_word_embeddings:
        named["lm_head.weight"] = llm.lm_head.weight.detach()
    return named


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights.

    Raises
    ------
    CheckpointError
        If it is damaged or truncated, or is a git-lfs pointer.
    """
    try:
        return read_tensors(path, "weights of a checkpoint")
    except DataError as error:
        raise CheckpointError(str(error)) from None


def require_exact(
    *, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Any] = (), source: str
) -> None:
    """Refuse weights that are not exactly those of the model.

    Raises
    ------
    CheckpointError
        If one is missing, unexpected or of another shape; the message lists them.
    """
    for name, found, expected in sorted(mismatched):
        raise CheckpointError(
            f"{source}: weight {name} has shape {tuple(found)}, expected {tuple(expected)}; the checkpoint is "
            "of another size"
        )
    lacking, foreign = _listed(missing), _listed(unexpected)
    if lacking != "none" or foreign != "none":
        raise CheckpointError(
            f"{source}: missing weights: {lacking}; unexpected weights: {foreign}; the checkpoint is of another "
            "model or interface"
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return (", ".join(ordered[:_LISTED]) + more) or "none"
