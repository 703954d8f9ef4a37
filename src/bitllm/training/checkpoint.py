"""Checkpoints of a stage under way: whole or not at all, checksummed, without pickles.

    checkpoints/step-00000120/  weights.safetensors  optimizer.safetensors  rank-<rank>.safetensors
                                state.json  trainer_state.json  checksums.json

A checkpoint holds what learns and what the next step depends on, not the frozen LLM. Its checksums are written last,
into a folder of another name that is then renamed: what a killed process left can never be taken for a checkpoint. A
newest one that was damaged afterwards is found by its checksums, and the one before is taken.
"""

import logging
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitllm.errors import DataError
from bitllm.files import folder_written_whole, read_json, sha256_of_file, write_json
from bitllm.training.ranks import is_main, wait_for_all

_CHECKSUMS = "checksums.json"
_LOG = logging.getLogger("bitllm")


class Checkpoints:
    """The checkpoints of one run, oldest first; never more than ``keep``, and one while it is written.

    Parameters
    ----------
    folder
        Where they lie.
    keep
        How many are kept.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def all(self) -> list[Path]:
        """Folders of whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "")

    @contextmanager
    def written(self, step: int) -> Iterator[Path]:
        """Yield a folder for the files of ``step``; it is a checkpoint when the block ends without an error.

        Every process comes here and writes its own files; the first one also makes, closes and clears away.

        Raises
        ------
        OutputError
            If the disk is full; the checkpoints before are as they were.
        """
        place = self.folder / f"step-{step:08d}"
        if not is_main():
            wait_for_all()
            yield place.with_name(place.name + ".unfinished")
            wait_for_all()
            wait_for_all()
            return
        for left in self.folder.glob("*.unfinished"):  # of a killed process
            shutil.rmtree(left)
        if place.exists():
            _discard(place)
        with folder_written_whole(place) as unfinished:
            wait_for_all()
            yield unfinished
            wait_for_all()
            files = sorted(unfinished.iterdir())
            for file in files:
                _to_disk(file)
            write_json(unfinished / _CHECKSUMS, {file.name: sha256_of_file(file) for file in files})
        for old in self.all()[: -self.keep]:
            _discard(old)
        wait_for_all()

    def newest_whole(self) -> Path | None:
        """The newest checkpoint whose files are those that were written; None if there is none.

        A damaged one is named in a warning, and removed once it is clear what the run goes on from.
        """
        damaged: list[Path] = []
        found = None
        for place in reversed(self.all()):
            reason = damage(place)
            if reason is None:
                found = place
                break
            damaged.append(place)
            _LOG.warning("%s: damaged checkpoint (%s)", place, reason)
        if damaged:
            _LOG.warning("going on from %s", found.name if found else "the beginning: no checkpoint is whole")
        wait_for_all()
        if is_main():
            for place in damaged:
                _discard(place)
        wait_for_all()
        return found


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is."""
    try:
        expected = read_json(checkpoint / _CHECKSUMS)
    except DataError as error:
        return str(error).split(": ", 1)[-1]
    for name, checksum in expected.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256_of_file(checkpoint / name) != checksum:
            return f"{name} is not as it was written"
    return None


def random_state() -> dict[str, Tensor]:
    """The states of all global random generators of this process, as tensors."""
    _, mersenne, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - libraries may draw from it
    version, words, python_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(mersenne).astype(np.int64)),
        "numpy_rest": torch.tensor([place, has_gauss, gauss], dtype=torch.float64),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_rest": torch.tensor(
            [version, np.nan if python_gauss is None else python_gauss], dtype=torch.float64
        ),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Put the generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    place, has_gauss, gauss = state["numpy_rest"].tolist()
    words = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(place), int(has_gauss), gauss))  # noqa: NPY002
    version, python_gauss = state["python_rest"].tolist()
    python = tuple(int(word) for word in state["python"].tolist())
    random.setstate((int(version), python, None if np.isnan(python_gauss) else python_gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that a kill leaves none that is half removed."""
    nameless = checkpoint.with_name(checkpoint.name + ".unfinished")
    checkpoint.rename(nameless)
    shutil.rmtree(nameless)


def _to_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
