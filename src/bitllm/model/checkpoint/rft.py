"""The sft checkpoint that an rft checkpoint lies on: it holds LoRA weights alone, and means nothing without it."""

import os
from pathlib import Path

from bitllm.errors import CheckpointError
from bitllm.files import read_record, sha256_of_file
from bitllm.model.checkpoint.weights import WEIGHTS

RFT_CARD = "rft.json"
"""What is said of an rft checkpoint's training."""


def sft_of_rft(sft: Path, folder: Path) -> dict[str, str]:
    """What the card of an rft checkpoint in ``folder`` says of the sft that it starts from.

    Its place is kept relative to the run, so that a run can be moved.
    """
    place = Path(os.path.relpath(sft.resolve(), folder.resolve().parent))
    return {"sft": place.as_posix(), "sft_sha256": sha256_of_file(sft / WEIGHTS)}


def sft_beneath(folder: Path) -> Path:
    """The folder of the sft checkpoint that an rft checkpoint was trained on.

    Raises
    ------
    CheckpointError
        If it is not there, or has other weights than it had then.
    """
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
