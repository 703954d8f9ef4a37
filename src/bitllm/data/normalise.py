"""Z-scores of one session, whose statistics see training trials only."""

import numpy as np
from jaxtyping import Bool, Float16, Float32

_FLOAT16_MAX = float(np.finfo(np.float16).max)

NORMALISATION = (
    "z-score per voxel and session (ddof 0), mean and deviation from trials of training images only"
)
"""What the store's manifest says about its betas."""


def z_scores(
    betas: Float32[np.ndarray, "trials voxels"], is_training: Bool[np.ndarray, " trials"]
) -> Float16[np.ndarray, "trials voxels"]:
    """Betas of one session in standard deviations of its training trials.

    Parameters
    ----------
    betas
        Betas of all trials of the session, in any unit.
    is_training
        Which trials show an image of the training part; the others are scaled, but not looked at.

    Returns
    -------
    numpy.ndarray
        Zero for voxels that do not vary in the training trials (outside the field of view, for example),
        never NaN, and within the range of float16.

    Raises
    ------
    ValueError
        If there is no training trial.

    References
    ----------
    ``mean`` and ``std`` with ddof 0, as scikit-learn's StandardScaler, which published NSD pipelines fit on
    whole sessions; here test and validation trials are left out of the statistics.
    """
    training = betas[is_training]
    if not len(training):
        raise ValueError("z-scores need at least one training trial in the session, found none")
    mean = training.mean(axis=0, dtype=np.float64)
    deviation = training.std(axis=0, dtype=np.float64, ddof=0)
    # By its range and not by its deviation, which rounding makes tiny rather than zero.
    is_constant = training.min(axis=0) == training.max(axis=0)
    deviation[is_constant] = np.inf
    scaled = (betas - mean) / deviation
    return np.clip(scaled, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
