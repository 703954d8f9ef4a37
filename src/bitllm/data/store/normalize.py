"""Z-scores per voxel and session, or across sessions, with statistics from training trials only."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float16, Float64

Normalization = Literal["training", "not-shared", "session", "across-sessions", "none", "as-delivered"]
"""How betas are normalized; see `NORMALIZATIONS`."""

NORMALIZATIONS: dict[str, str] = {
    "training": (
        "z-score per voxel and session (ddof 0), mean and deviation from trials of training images only"
    ),
    "not-shared": "z-score per voxel and session (ddof 0), statistics from all trials of images not shared",
    "session": "z-score per voxel and session (ddof 0), statistics from ALL trials, test trials included",
    "across-sessions": (
        "z-score per voxel (ddof 0), mean and deviation from trials of training images of all sessions together"
    ),
    "none": "no z-score: the betas in the unit of the input (NSD: percent signal change)",
    "as-delivered": "the values as they were delivered; whoever made them chose the normalization",
}
"""Description of each normalization in the store's manifest."""

SCORED_BY_US = frozenset({"training", "not-shared", "session", "across-sessions"})
"""Normalizations that compute z-scores, and so must not be applied to z-scores."""

FEWEST_TRIALS = 2
"""With fewer trials there is no standard deviation: all betas would become 0."""

Moments = Float64[np.ndarray, "5 voxels"]
"""Of each voxel: number of trials, sum, sum of squares, minimum, maximum."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_BLOCK_VALUES = 4 * 2**20


def sees(part: pd.Series, normalization: Normalization) -> Bool[np.ndarray, " trials"]:
    """Which trials are part of the statistics, given the part (train, validation, test) of each trial's image."""
    if normalization in ("training", "across-sessions"):
        return np.asarray(part == "train")
    if normalization == "not-shared":
        return np.asarray(part != "test")
    return np.ones(len(part), bool)


def z_scores(
    betas: Float[np.ndarray, "trials voxels"], is_training: Bool[np.ndarray, " trials"]
) -> Float16[np.ndarray, "trials voxels"]:
    """Betas of one session, z-scored with mean and standard deviation of its training trials.

    Parameters
    ----------
    betas
        Betas of all trials of the session, in any unit.
    is_training
        Which trials determine the statistics.

    Returns
    -------
    numpy.ndarray
        0 for voxels that are constant in the training trials (such as those out of view) or NaN in all trials. Never
        NaN, and within the range of float16.

    References
    ----------
    ``mean`` and ``std`` with ddof 0, as in scikit-learn's StandardScaler, which published NSD pipelines fit on whole
    sessions. Here test and validation trials are not part of the statistics.
    """
    if is_training.sum() < FEWEST_TRIALS:
        raise ValueError(
            f"z-scores: expected at least {FEWEST_TRIALS} training trials in the session, found {is_training.sum()}"
        )
    scaled = np.empty(betas.shape, np.float16)
    for columns in _blocks(betas):
        scaled[:, columns] = _z_scores(betas[:, columns], is_training)
    return scaled


def moments(
    betas: Float[np.ndarray, "trials voxels"],
    is_training: Bool[np.ndarray, " trials"],
    is_in_view: Bool[np.ndarray, " voxels"],
) -> Moments:
    """Sums over a session's training trials, for statistics across sessions; 0 for voxels out of view."""
    found = np.zeros((5, betas.shape[1]))
    found[3], found[4] = np.inf, -np.inf
    columns = np.flatnonzero(is_in_view)
    if is_training.any() and columns.size:
        training = betas[np.ix_(is_training, columns)].astype(np.float64)
        n = np.full(len(columns), len(training))
        found[:, columns] = (n, training.sum(0), (training**2).sum(0), training.min(0), training.max(0))
    return found


def pooled(sessions: Sequence[Moments]) -> Float64[np.ndarray, "2 voxels"]:
    """Mean and standard deviation (ddof 0) of all sessions' training trials; 0 and infinity for constant voxels."""
    stacked = np.stack(list(sessions))
    n, total, squares = stacked[:, :3].sum(axis=0)
    varies = stacked[:, 4].max(axis=0) > stacked[:, 3].min(axis=0)
    mean = total / np.maximum(n, 1)
    # Sums of squares are precise enough in float64: means of betas are within a few thousand deviations of 0.
    deviation = np.sqrt(np.maximum(squares / np.maximum(n, 1) - mean**2, 0))
    varies &= deviation > 0
    return np.stack([np.where(varies, mean, 0), np.where(varies, deviation, np.inf)])


def scaled_by(
    betas: Float[np.ndarray, "trials voxels"], statistics: Float64[np.ndarray, "2 voxels"]
) -> Float16[np.ndarray, "trials voxels"]:
    """Betas z-scored with given mean and standard deviation."""
    mean, deviation = statistics
    scaled = np.empty(betas.shape, np.float16)
    for columns in _blocks(betas):
        scaled[:, columns] = in_float16((betas[:, columns] - mean[columns]) / deviation[columns])
    return scaled


def in_float16(betas: Float[np.ndarray, "trials voxels"]) -> Float16[np.ndarray, "trials voxels"]:
    """The same values within the range of float16, 0 for NaN."""
    return np.clip(np.nan_to_num(betas, nan=0.0), -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)


def looks_z_scored(betas: Float[np.ndarray, "trials voxels"]) -> bool:
    """Whether nearly every voxel that varies already has mean 0 and standard deviation 1."""
    if len(betas) < _FEWEST_TRIALS:  # a few trials may look like z-scores by chance
        return False
    values = np.asarray(betas[:, :: max(1, betas.shape[1] // 512)], dtype=np.float64)
    deviation = values.std(axis=0)
    varies = np.isfinite(deviation) & (deviation > 0)
    mean = values.mean(axis=0)
    scored = (np.abs(mean[varies]) < _MEAN_SLACK) & (np.abs(deviation[varies] - 1) < _DEVIATION_SLACK)
    return bool(varies.any() and scored.mean() > _MOST)


_FEWEST_TRIALS, _MEAN_SLACK, _DEVIATION_SLACK, _MOST = 20, 0.01, 0.01, 0.95


def _blocks(betas: np.ndarray) -> Iterator[slice]:
    width = max(1, _BLOCK_VALUES // max(1, len(betas)))  # a whole cortex in float64 would be gigabytes
    for first in range(0, betas.shape[1], width):
        yield slice(first, first + width)


def _z_scores(betas: np.ndarray, is_training: np.ndarray) -> np.ndarray:
    training = betas[is_training]
    mean = training.mean(axis=0, dtype=np.float64)
    deviation = training.std(axis=0, dtype=np.float64, ddof=0)
    # By the range, not by the deviation, which rounding errors make tiny instead of zero.
    is_constant = ~(training.max(axis=0) > training.min(axis=0))
    # Division by infinity gives 0, without a warning.
    deviation[is_constant] = np.inf
    mean[is_constant] = 0
    return in_float16((betas - mean) / deviation)
