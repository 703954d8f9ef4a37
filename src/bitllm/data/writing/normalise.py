"""Z-scores of one session: per voxel, with statistics that see training trials only."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float16

Normalisation = Literal["training", "not-shared", "session", "as-delivered"]
"""Whose trials the mean and the deviation of a session's z-scores come from."""

NORMALISATIONS: dict[str, str] = {
    "training": (
        "z-score per voxel and session (ddof 0), mean and deviation from trials of training images only"
    ),
    "not-shared": "z-score per voxel and session (ddof 0), statistics from all trials of images not shared",
    "session": "z-score per voxel and session (ddof 0), statistics from ALL trials, test trials included",
    "as-delivered": "the values as they were delivered; whoever made them chose the normalisation",
}
"""What the store says about its betas, by the name of the normalisation."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_BLOCK_VALUES = 4 * 2**20


def z_scores(
    betas: Float[np.ndarray, "trials voxels"], is_training: Bool[np.ndarray, " trials"]
) -> Float16[np.ndarray, "trials voxels"]:
    """Betas of one session in standard deviations of its training trials.

    Parameters
    ----------
    betas
        Betas of all trials of the session, in any unit.
    is_training
        Which trials the statistics see; the others are scaled, but not looked at.

    Returns
    -------
    numpy.ndarray
        Zero for voxels that do not vary in the training trials (outside the field of view, for example) or
        are no number in any trial, never NaN, and within the range of float16.

    Raises
    ------
    ValueError
        If there is no training trial.

    References
    ----------
    ``mean`` and ``std`` with ddof 0, as scikit-learn's StandardScaler, which published NSD pipelines fit on
    whole sessions; here test and validation trials are left out of the statistics.
    """
    if not is_training.any():
        raise ValueError("z-scores need at least one training trial in the session, found none")
    scaled = np.empty(betas.shape, np.float16)
    width = max(1, _BLOCK_VALUES // max(1, len(betas)))  # a whole cortex in float64 would be gigabytes
    for first in range(0, betas.shape[1], width):
        scaled[:, first : first + width] = _z_scores(betas[:, first : first + width], is_training)
    return scaled


def in_float16(betas: Float[np.ndarray, "trials voxels"]) -> Float16[np.ndarray, "trials voxels"]:
    """The same values within the range of float16, zero where they are no number."""
    return np.clip(np.nan_to_num(betas, nan=0.0), -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)


def looks_z_scored(betas: Float[np.ndarray, "trials voxels"]) -> bool:
    """Whether nearly every voxel that varies has mean 0 and deviation 1 already."""
    if len(betas) < _FEWEST_TRIALS:  # by chance, or because the trials were averaged, few trials may look so
        return False
    values = np.asarray(betas[:, :: max(1, betas.shape[1] // 512)], dtype=np.float64)
    deviation = values.std(axis=0)
    varies = np.isfinite(deviation) & (deviation > 0)
    mean = values.mean(axis=0)
    scored = (np.abs(mean[varies]) < _MEAN_SLACK) & (np.abs(deviation[varies] - 1) < _DEVIATION_SLACK)
    return bool(varies.any() and scored.mean() > _MOST)


_FEWEST_TRIALS, _MEAN_SLACK, _DEVIATION_SLACK, _MOST = 20, 0.01, 0.01, 0.95


def _z_scores(betas: np.ndarray, is_training: np.ndarray) -> np.ndarray:
    training = betas[is_training]
    mean = training.mean(axis=0, dtype=np.float64)
    deviation = training.std(axis=0, dtype=np.float64, ddof=0)
    # By its range and not by its deviation, which rounding makes tiny rather than zero.
    is_constant = ~(training.max(axis=0) > training.min(axis=0))
    deviation[is_constant] = np.inf
    mean[is_constant] = 0
    return in_float16((betas - mean) / deviation)
