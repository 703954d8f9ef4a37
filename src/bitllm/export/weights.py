"""A run's checkpoint as an ordinary model folder that `AutoModelForCausalLM` loads."""

from pathlib import Path
from typing import Any

from bitllm.files import read_record
from bitllm.model.build import CARD
from bitllm.model.captioner import load_captioner, with_lora_weights
from bitllm.model.checkpoint.base import BaseLlm
from bitllm.model.checkpoint.weights import RFT_CARD, sft_beneath

BRAIN_FILE = "brain.json"
"""What must be known to feed the model: the atlases of its labels, in their order."""


def export_model(folder: Path, base: BaseLlm, *, whole: bool) -> tuple[Any, bool]:
    """The model of a checkpoint, and whether it must be written with its base LLM.

    The LoRA weights of rft are merged into the base LLM, which is then no longer the base LLM that its name says: such
    a model is always whole.

    Parameters
    ----------
    folder
        Checkpoint of sft or rft.
    base
        Its base LLM; after rft its weights are changed in place.
    whole
        Whether the base LLM is wanted with it.
    """
    if not (folder / RFT_CARD).is_file():
        return load_captioner(folder, base).model, whole
    sft = load_captioner(sft_beneath(folder), base)
    merged: Any = with_lora_weights(sft.model, folder)
    return merged.merge_and_unload(), True


def brain_of(folder: Path) -> dict[str, Any]:
    """What `BRAIN_FILE` holds: atlases, stage, split's checksum, seed."""
    card = read_record(folder / RFT_CARD, "stage", "split", "seed") if (folder / RFT_CARD).is_file() else {}
    sft = read_record((sft_beneath(folder) if card else folder) / CARD, "atlases", "stage", "split", "seed")
    return {
        "stage": str((card or sft)["stage"]),
        "atlases": list(sft["atlases"]),
        "coordinates": "MNI space, mm",
        "betas": "z-scores by voxel and session",
        "split_sha256": str((card or sft)["split"]),
        "seed": (card or sft)["seed"],
    }
