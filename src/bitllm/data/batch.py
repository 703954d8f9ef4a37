"""Trials → tensors: what every stage and every evaluation feeds the encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bitllm.data.dataset import TrialSet, anatomy
from bitllm.data.store import Store


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
        """Read the anatomy of ``subjects`` with the labels of ``atlases``, in that order."""
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
        """A batch from the betas of each trial and the row of its subject in ``subjects``."""
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
    """The batch of these trials."""
    rows = [anatomies.subjects.index(subject) for subject in trials.subjects]
    return anatomies.brain_input(
        [trials.betas(int(index)) for index in indices],
        [rows[int(trials.subject_index[index])] for index in indices],
    )


def describe_images(batch: dict[str, Any]) -> str:
    """Which images of a batch to look at: the one whose betas are not finite, or the first eight."""
    if "nsd_id" not in batch:
        return ""
    nsd_id = batch["nsd_id"].tolist()
    for name in ("betas", "brain_tokens"):
        if name in batch:
            bad = ~torch.isfinite(batch[name]).flatten(1).all(1)
            if bool(bad.any()):
                return f" ({name} of image {nsd_id[int(bad.nonzero()[0])]} are not numbers)"
    shown = ", ".join(str(image) for image in nsd_id[:8])
    return f" (images of the batch: {shown}{', …' if len(nsd_id) > 8 else ''})"
