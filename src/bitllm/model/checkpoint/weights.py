"""Which weights are ours and which belong to the base LLM; reading them; the sft checkpoint of an rft checkpoint.

Freezing, saving and loading use the same predicates. An rft checkpoint contains LoRA weights only and is loaded on
top of the sft checkpoint that its card names.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaForCausalLM

from bitllm.data.io.models import read_tensors
from bitllm.errors import CheckpointError, DataError
from bitllm.files import read_record, sha256_of_file

WEIGHTS = "model.safetensors"
RFT_CARD = "rft.json"
"""Name of the card of an rft checkpoint."""
_LISTED = 8


def is_encoder_parameter(name: str) -> bool:
    """Whether a parameter of `BitLlmForCausalLM` belongs to the encoder."""
    return name.startswith("model.encoder.")


def is_interface_parameter(name: str) -> bool:
    """Whether a parameter belongs to the interface (projection, memory, adapters), which sft trains."""
    return name.startswith("model.interface.") or ".adapter." in name


def is_ours(name: str) -> bool:
    """Whether a parameter belongs to encoder or interface, the content of a checkpoint."""
    return is_encoder_parameter(name) or is_interface_parameter(name)


def base_weights(llm: LlamaForCausalLM) -> dict[str, Tensor]:
    """The weights of a plain Llama under their names in `BitLlmForCausalLM`."""
    named = {f"model.language_model.{name}": tensor for name, tensor in llm.model.state_dict().items()}
    if not llm.config.tie_word_embeddings:
        named["lm_head.weight"] = llm.lm_head.weight.detach()
    return named


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights."""
    try:
        return read_tensors(path, "weights of a checkpoint")
    except DataError as error:
        raise CheckpointError(str(error)) from None


def require_exact(
    *, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Any] = (), source: str
) -> None:
    """Refuse weights that are not exactly those of the model."""
    for name, found, expected in sorted(mismatched):
        raise CheckpointError(
            f"{source}: expected shape {tuple(expected)} of the weight {name}, found {tuple(found)}; use a "
            "checkpoint of the same size"
        )
    lacking, foreign = _listed(missing), _listed(unexpected)
    if lacking != "none" or foreign != "none":
        raise CheckpointError(
            f"{source}: expected exactly the weights of the model, found missing weights: {lacking}; unexpected "
            f"weights: {foreign}; use a checkpoint of the same model and interface"
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return (", ".join(ordered[:_LISTED]) + more) or "none"


def sft_of_rft(sft: Path, folder: Path) -> dict[str, str]:
    """Entry of the card of an rft checkpoint in ``folder``: the sft checkpoint that it starts from.

    The path is relative to the run, so that a run can be moved.
    """
    place = Path(os.path.relpath(sft.resolve(), folder.resolve().parent))
    return {"sft": place.as_posix(), "sft_sha256": sha256_of_file(sft / WEIGHTS)}


def sft_beneath(folder: Path) -> Path:
    """The sft checkpoint that an rft checkpoint was trained on."""
    card = read_record(folder / RFT_CARD, "sft")
    sft = folder.parent / str(card["sft"])
    if not (sft / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: expected the sft checkpoint that it was trained on at {sft}, found none; move it back, or "
            "train rft again"
        )
    # cards of earlier versions have no checksum
    if "sft_sha256" in card and sha256_of_file(sft / WEIGHTS) != card["sft_sha256"]:
        raise CheckpointError(
            f"{folder}: expected the sft checkpoint that it was trained on at {sft}, found other weights; restore "
            "them, or train rft again"
        )
    return sft
