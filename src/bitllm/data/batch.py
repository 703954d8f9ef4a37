"""Trials and texts → tensors: the input of the encoder and of the LLM, in every stage and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bitllm.data.dataset import TrialSet, anatomy
from bitllm.data.store import Store

_CHUNK = 1024  # trials read and uploaded at a time


class BrainInput(NamedTuple):
    """Arguments of the model that describe the brain.

    Legend: B trials, S subjects, V voxels (padded to the largest subject), A atlases.
    """

    betas: Float[Tensor, "B V"]
    subject_index: Int[Tensor, " B"]
    coords_mm: Float[Tensor, "S V 3"]
    atlas_labels: Int[Tensor, "S V A"]
    voxel_mask: Bool[Tensor, "S V"]


@dataclass(frozen=True)
class Anatomies:
    """Coordinates and labels of several subjects, padded to one table."""

    subjects: tuple[str, ...]
    coords_mm: Float[Tensor, "S V 3"]
    atlas_labels: Int[Tensor, "S V A"]
    voxel_mask: Bool[Tensor, "S V"]

    @classmethod
    def of(cls, store: Store, subjects: Sequence[str], atlases: Sequence[str]) -> "Anatomies":
        """Read coordinates of ``subjects`` and labels of ``atlases``, in that order."""
        parts = [anatomy(store.subject(subject), atlases) for subject in subjects]
        width = max(len(coords) for coords, _ in parts)
        coords_mm = torch.zeros(len(parts), width, 3)
        labels = torch.zeros(len(parts), width, len(atlases), dtype=torch.long)
        mask = torch.zeros(len(parts), width, dtype=torch.bool)
        for row, (coords, names) in enumerate(parts):
            coords_mm[row, : len(coords)] = torch.tensor(coords)
            labels[row, : len(coords)] = torch.tensor(names)
            mask[row, : len(coords)] = True
        return cls(tuple(subjects), coords_mm, labels, mask)

    def brain_input(
        self, betas: Sequence[Float[np.ndarray, " _"]], subject_index: Sequence[int]
    ) -> BrainInput:
        """A batch from the betas of each trial and the index of its subject in ``subjects``."""
        padded = torch.zeros(len(betas), self.coords_mm.shape[1])
        for row, values in enumerate(betas):
            padded[row, : len(values)] = torch.from_numpy(np.asarray(values, dtype=np.float32))
        return BrainInput(
            padded,
            torch.as_tensor(np.asarray(subject_index), dtype=torch.long),
            self.coords_mm,
            self.atlas_labels,
            self.voxel_mask,
        )


def brain_input(trials: TrialSet, anatomies: Anatomies, indices: Sequence[int]) -> BrainInput:
    """A batch of the trials ``indices``."""
    rows = [anatomies.subjects.index(subject) for subject in trials.subjects]
    return anatomies.brain_input(
        [trials.betas(int(index)) for index in indices],
        [rows[int(trials.subject_index[index])] for index in indices],
    )


class TrialBetas:
    """Batches of a set of trials on a device; making a batch never waits for the device.

    The anatomy is uploaded once. So are the betas, as float16 like in the store, if they take less than half of a
    GPU's free memory; otherwise each batch is read from the store and uploaded from pinned memory.

    Parameters
    ----------
    resident
        Whether to upload all betas if they fit; not worth it for a single pass over the trials.
    """

    def __init__(
        self, trials: TrialSet, anatomies: Anatomies, device: torch.device, *, resident: bool = True
    ) -> None:
        self.trials, self.device, self.width = trials, device, anatomies.coords_mm.shape[1]
        rows = [anatomies.subjects.index(subject) for subject in trials.subjects]
        self.subject_index = torch.tensor(rows)[torch.from_numpy(trials.subject_index)]
        places = (anatomies.coords_mm, anatomies.atlas_labels, anatomies.voxel_mask)
        self.places = tuple(part.to(device) for part in places)
        self.table: Tensor | None = None
        # Means over repetitions are computed in float32 and would lose precision in float16.
        dtype = torch.float16 if trials.is_single else torch.float32
        n_bytes = len(trials) * self.width * dtype.itemsize
        if resident and device.type == "cuda" and n_bytes < 0.5 * free_bytes(device):
            self.table = torch.zeros(len(trials), self.width, dtype=dtype, device=device)
            for start in range(0, len(trials), _CHUNK):
                part = range(start, min(start + _CHUNK, len(trials)))
                self.table[part.start : part.stop] = self._read(part, dtype).to(device)

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The fields of `BrainInput` for these trials, and ``per_subject`` (see `BrainEncoder.forward`)."""
        # Only the subjects in the batch: the encoder computes a pooling map for each.
        present, own, counts = self.subject_index[list(indices)].unique(
            return_inverse=True, return_counts=True
        )
        places = self.places
        if len(present) < len(places[0]):
            chosen = present.to(self.device)
            places = tuple(part[chosen] for part in places)
        if self.table is not None:
            betas = self.table[torch.tensor(indices, device=self.device)].float()
        elif self.device.type == "cuda":
            betas = self._read(indices, torch.float32).pin_memory().to(self.device, non_blocking=True)
        else:
            betas = self._read(indices, torch.float32)
        brain = BrainInput(betas, own, *places)
        return brain._asdict() | {"per_subject": int(counts.max())}

    def _read(self, indices: Sequence[int], dtype: torch.dtype) -> Tensor:
        padded = torch.zeros(len(indices), self.width, dtype=dtype)
        for row, index in enumerate(indices):
            values = torch.from_numpy(self.trials.betas(int(index)))
            padded[row, : len(values)] = values
        return padded


def pad_answers(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> dict[str, Int[Tensor, "B T"]]:
    """Prompts with their answers, padded on the right; labels are −100 except on the answer."""
    return pad_turns([[pair] for pair in zip(prompts, answers, strict=True)], pad_id)


def pad_turns(
    conversations: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], pad_id: int
) -> dict[str, Int[Tensor, "B T"]]:
    """Conversations as in `Prompter.conversation`, padded on the right; labels are −100 except on the answers."""
    rows = [[token for turn in turns for part in turn for token in part] for turns in conversations]
    width = max(map(len, rows))
    labels = [
        [label for prompt, answer in turns for label in (*[-100] * len(prompt), *answer)]
        for turns in conversations
    ]
    return {
        "input_ids": torch.tensor([row + [pad_id] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, in bytes."""
    return torch.cuda.mem_get_info(device)[0]


def describe_images(batch: dict[str, Any]) -> str:
    """The images of a batch for an error message: the one with betas that are not finite, else the first eight."""
    if "nsd_id" not in batch:
        return ""
    nsd_id = batch["nsd_id"].tolist()
    for name in ("betas", "pooled"):
        if name in batch:
            bad = ~torch.isfinite(batch[name]).flatten(1).all(1)
            if bool(bad.any()):
                return f" ({name} of image {nsd_id[int(bad.nonzero()[0])]} are not numbers)"
    shown = ", ".join(str(image) for image in nsd_id[:8])
    return f" (images of the batch: {shown}{', …' if len(nsd_id) > 8 else ''})"
