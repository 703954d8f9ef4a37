"""Where a voxel is, as numbers a network can compare: random Fourier features of its place in a common space.

References
----------
Rahimi & Recht (2007), Random features for large-scale kernel machines: the inner product of two feature vectors
approximates a Gaussian kernel of the distance, so that voxels nearer than ``length_mm`` have similar features.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init


class FourierPositions(nn.Module):
    """Random Fourier features of coordinates in mm.

    Parameters
    ----------
    n_frequencies
        Number of random directions; the features have twice that width (cosine and sine).
    length_mm
        Distance over which features become dissimilar (the standard deviation of the Gaussian kernel).
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
        """Draw the directions anew (they are fixed afterwards, and saved with the model)."""
        init.normal_(self.frequencies, std=1.0 / self.length_mm)

    def forward(self, coords_mm: Float[Tensor, "V 3"]) -> Float[Tensor, "V features"]:
        """Features of unit length, so that a voxel's similarity with itself is 1."""
        phase = coords_mm.to(self.frequencies.dtype) @ self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=-1) / math.sqrt(self.frequencies.shape[1])
