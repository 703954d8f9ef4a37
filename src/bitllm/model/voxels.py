"""The voxels of a subject as the encoder sees them: coordinates and atlas labels, never betas.

References
----------
Rahimi & Recht (2007), Random features for large-scale kernel machines: the inner product of two feature vectors
approximates a Gaussian kernel of the distance, so voxels closer than ``length_mm`` have similar features.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import initialization as init

from bitllm.errors import DataError

_REMEDY = "prepare the store again, or look at it with `bitllm inspect`"


class Anatomy(NamedTuple):
    """The voxels of the subjects of a batch, padded to the same number.

    Legend: S subjects, V voxels, A atlases.
    """

    coords_mm: Float[Tensor, "S V 3"]
    """Coordinates of each voxel in the common space, in mm."""
    atlas_labels: Int[Tensor, "S V A"]
    """Label of each voxel in each atlas; 0 is "unknown"."""
    voxel_mask: Bool[Tensor, "S V"]
    """False for padding."""

    @classmethod
    def of_subject(cls, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "W A"]) -> "Anatomy":
        """The anatomy of one subject, without padding."""
        mask = torch.ones(1, len(coords_mm), dtype=torch.bool, device=coords_mm.device)
        return cls(coords_mm[None], atlas_labels[None], mask)


class FourierPositions(nn.Module):
    """Random Fourier features of coordinates in mm.

    Parameters
    ----------
    n_frequencies
        Number of random directions; the features have twice that width (cosine and sine).
    length_mm
        Standard deviation of the Gaussian kernel: features of voxels further apart are dissimilar.
    """

    frequencies: Tensor

    def __init__(self, *, n_frequencies: int, length_mm: float) -> None:
        super().__init__()
        self.length_mm = length_mm
        self.register_buffer("frequencies", torch.empty(3, n_frequencies))
        self.reset_parameters()

    @property
    def width(self) -> int:
        """Number of features of one voxel."""
        return 2 * self.frequencies.shape[1]

    def reset_parameters(self) -> None:
        """Draw the directions; they are not trained, but saved with the model."""
        init.normal_(self.frequencies, std=1.0 / self.length_mm)

    def forward(self, coords_mm: Float[Tensor, "... V 3"]) -> Float[Tensor, "... V features"]:
        """Features of unit length: cos² + sin² over all frequencies sums to their number."""
        phase = coords_mm.to(self.frequencies.dtype) @ self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=-1) / math.sqrt(self.frequencies.shape[1])


class VoxelKeys(nn.Module):
    """A unit vector for each voxel, from its coordinates and labels."""

    def __init__(
        self, *, rank: int, n_frequencies: int, length_mm: float, n_labels: tuple[int, ...], label_width: int
    ) -> None:
        super().__init__()
        self.positions = FourierPositions(n_frequencies=n_frequencies, length_mm=length_mm)
        self.labels = nn.ModuleList(nn.Embedding(n + 1, label_width) for n in n_labels)
        self.project = nn.Linear(self.positions.width + label_width * len(n_labels), rank, bias=False)

    def forward(
        self, coords_mm: Float[Tensor, "... V 3"], atlas_labels: Int[Tensor, "... V A"]
    ) -> Float[Tensor, "... V rank"]:
        """Keys of the voxels of one or more subjects."""
        # The projection of position features and label embeddings side by side, in two parts: the product with the
        # positions then needs no gradient with respect to them.
        of_positions, of_labels = self.project.weight.split(
            [self.positions.width, self.project.in_features - self.positions.width], dim=1
        )
        keys = F.linear(self.positions(coords_mm), of_positions)
        if self.labels:
            labels = [embed(atlas_labels[..., atlas]) for atlas, embed in enumerate(self.labels)]
            keys = keys + F.linear(torch.cat(labels, dim=-1), of_labels)
        return F.normalize(keys, dim=-1)


def check_anatomy(anatomy: Anatomy, n_labels: tuple[int, ...]) -> None:
    """Refuse coordinates and labels that the encoder cannot read."""
    coords_mm, labels, mask = anatomy
    if coords_mm.shape[:2] != labels.shape[:2] or coords_mm.shape[:2] != mask.shape:
        raise DataError(
            f"anatomy: expected as many labels as coordinates, found {coords_mm.shape[1]} coordinates, "
            f"{labels.shape[1]} rows of labels and a mask of {mask.shape[-1]} voxels; {_REMEDY}"
        )
    if labels.shape[-1] != len(n_labels):
        raise DataError(
            f"anatomy: expected labels in the encoder's {len(n_labels)} atlases, found {labels.shape[-1]}; "
            "give the atlases that the encoder was built with, in their order"
        )
    empty = (~mask.any(-1)).nonzero()[:, 0].tolist()
    if empty or not len(mask):
        raise DataError(
            f"anatomy: expected at least one voxel for each subject, found none for row "
            f"{empty[0] if empty else 0}; check the mask or ROI that the store was prepared with"
        )
    wrong = ((~coords_mm.isfinite().all(-1)) & mask).nonzero()
    if len(wrong):
        subject, voxel = wrong[0].tolist()
        raise DataError(
            f"anatomy: expected finite coordinates in mm, found {coords_mm[subject, voxel].tolist()} at voxel "
            f"{voxel} of subject row {subject}; {_REMEDY}"
        )
    limits = torch.tensor(n_labels, device=labels.device)
    wrong = (((labels < 0) | (labels > limits)) & mask[..., None]).nonzero()
    if len(wrong):
        subject, voxel, atlas = wrong[0].tolist()
        raise DataError(
            f"anatomy: expected labels of atlas number {atlas} from 0 (unknown) to {n_labels[atlas]}, found "
            f"{int(labels[subject, voxel, atlas])} at voxel {voxel} of subject row {subject}; use the atlases "
            "that the encoder was trained with"
        )


def check_betas(
    betas: Float[Tensor, "B betas"], subject_index: Int[Tensor, " trials"], voxel_mask: Bool[Tensor, "S V"]
) -> None:
    """Refuse betas that do not match the voxels, or are not finite."""
    if betas.shape[1] != voxel_mask.shape[1]:
        raise DataError(
            f"betas: expected one beta for each of {voxel_mask.shape[1]} voxels with coordinates, found "
            f"{betas.shape[1]}; {_REMEDY}"
        )
    if len(subject_index) != len(betas):
        raise DataError(
            f"betas: expected a subject for each of {len(betas)} trials, found {len(subject_index)} subjects; give "
            "one per trial"
        )
    outside = ((subject_index < 0) | (subject_index >= len(voxel_mask))).nonzero()[:, 0]
    if len(outside):
        trial = int(outside[0])
        raise DataError(
            f"betas: expected subject rows from 0 to {len(voxel_mask) - 1}, found {int(subject_index[trial])} "
            f"for trial {trial}; give the anatomy of every subject of the batch"
        )
    wrong = (~betas.isfinite() & voxel_mask[subject_index]).nonzero()
    if len(wrong):
        trial, voxel = wrong[0].tolist()
        raise DataError(
            f"betas: expected finite z-scores, found {float(betas[trial, voxel])} at voxel {voxel} of trial "
            f"{trial} of the batch ({len(wrong)} such values); {_REMEDY}"
        )
