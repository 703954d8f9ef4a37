"""Checkpoints of a stage: atomic, checksummed, without pickles.

    checkpoints/step-00000120/  weights.safetensors  optimizer.safetensors  rank-<rank>.json  state.json
                                checksums.json

A checkpoint contains the trainable parameters and everything else that the next step depends on, but not the frozen
LLM. It is written to a temporary folder, checksums last, which is then renamed: a killed process never leaves a
partial checkpoint. Later damage is recognized by the checksums; the previous checkpoint is then used.
"""

import logging
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bitllm.errors import DataError
from bitllm.files import folder_written_whole, read_json, sha256_of_file, write_json
from bitllm.training.distributed import barrier, full_tensors, is_main, shard_like

_CHECKSUMS = "checksums.json"
_LOG = logging.getLogger("bitllm")


class Checkpoints:
    """The newest ``keep`` checkpoints of a run (one more while it is being written)."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def all(self) -> list[Path]:
        """Folders of complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "")

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Yield a folder for the files of ``step``; it becomes a checkpoint if the block ends without an error.

        Every process must call this and writes its own files; the main process creates, renames and deletes folders.
        """
        place = self.folder / f"step-{step:08d}"
        if not is_main():
            barrier()
            # Three barriers: the folder exists; all files are written; the checkpoint is renamed and old ones
            # are deleted.
            yield place.with_name(place.name + ".unfinished")
            barrier()
            barrier()
            return
        for left in self.folder.glob("*.unfinished"):  # of a killed process
            shutil.rmtree(left)
        if place.exists():
            _discard(place)
        with folder_written_whole(place) as unfinished:
            barrier()
            yield unfinished
            barrier()
            # Without fsync a power failure after the rename could leave a complete name with empty files.
            files = sorted(unfinished.iterdir())
            for file in files:
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            write_json(unfinished / _CHECKSUMS, {file.name: sha256_of_file(file) for file in files})
        for old in self.all()[: -self.keep]:
            _discard(old)
        barrier()

    def newest_intact(self) -> Path | None:
        """The newest checkpoint with correct checksums, or None; damaged ones are reported and deleted."""
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
            _LOG.warning("resuming from %s", found.name if found else "the start: no checkpoint is intact")
        barrier()
        if is_main():
            for place in damaged:
                _discard(place)
        barrier()
        return found


def damage(checkpoint: Path) -> str | None:
    """Description of what is wrong with the files of a checkpoint; None if they are intact."""
    try:
        expected = read_json(checkpoint / _CHECKSUMS)
    except DataError as error:
        return str(error).split(": ", 1)[-1]
    for name, checksum in expected.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256_of_file(checkpoint / name) != checksum:
            return f"the checksum of {name} differs"
    return None


def trainable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, unsharded; in the main process only, but every process must call this."""
    return full_tensors((name, p) for name, p in module.named_parameters() if p.requires_grad)


def load_trainable(module: nn.Module, path: Path) -> None:
    """Load the trainable parameters from a file of `trainable_tensors`; they are sharded if the module is."""
    saved = load_file(path)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(shard_like(saved[name], parameter))


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer], module: nn.Module) -> dict[str, Tensor]:
    """The state of each parameter as ``parameter name/key``, like `trainable_tensors`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return full_tensors(
        (f"{names[parameter]}/{key}", value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    )


def load_optimizers(optimizers: Sequence[torch.optim.Optimizer], module: nn.Module, path: Path) -> None:
    """Load the state from a file of `optimizer_tensors`; settings such as learning rates are not changed."""
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        name, _, entry = key.rpartition("/")
        saved.setdefault(name, {})[entry] = value
    names = {parameter: name for name, parameter in module.named_parameters()}
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # torch numbers parameters in the order of the groups; names survive a change of that order.
        state = {
            index: {
                key: shard_like(value, parameter) for key, value in saved.get(names[parameter], {}).items()
            }
            for index, parameter in enumerate(parameters)
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, Any]:
    """States of all global random generators of this process, as JSON values."""
    name, words, *rest = np.random.get_state()  # type: ignore[misc]  # noqa: NPY002 - libraries may draw from it
    state = {"python": random.getstate(), "numpy": [name, np.asarray(words).tolist(), *rest]}
    state["torch"] = torch.get_rng_state().tolist()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what `random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a kill does not leave a partial one under its name."""
    nameless = checkpoint.with_name(checkpoint.name + ".unfinished")
    checkpoint.rename(nameless)
    shutil.rmtree(nameless)
