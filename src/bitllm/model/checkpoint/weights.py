"""Which weights are ours and which are the base LLM's, reading them, and the sft checkpoint under an rft checkpoint.

Freezing, saving and loading use the same predicates. An rft checkpoint has LoRA weights only; it is loaded on the sft
checkpoint that its card names.
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


def sft_of_rft(sft: Path, folder: Path) -> dict[str, str]:
    """What the card of an rft checkpoint in ``folder`` says of the sft that it starts from.

    Its place is kept relative to the run, so that a run can be moved.
    """
    place = Path(os.path.relpath(sft.resolve(), folder.resolve().parent))
    return {"sft": place.as_posix(), "sft_sha256": sha256_of_file(sft / WEIGHTS)}


def sft_beneath(folder: Path) -> Path:
    """The folder of the sft checkpoint that an rft checkpoint was trained on."""
    card = read_record(folder / RFT_CARD, "sft")
    sft = folder.parent / str(card["sft"])
    if not (sft / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: expected the sft that it was trained on at {sft}, found none; put it back there, or train "
            "rft again"
        )
    # absent from cards of before it was written
    if "sft_sha256" in card and sha256_of_file(sft / WEIGHTS) != card["sft_sha256"]:
        raise CheckpointError(
            f"{folder}: expected the sft that it was trained on at {sft}, found one with other weights; put the old "
            "one back, or train rft again"
        )
    return sft
