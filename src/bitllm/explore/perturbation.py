"""What the page can do to the betas of a trial before they are decoded again."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

Kind = Literal["none", "silence", "alone", "scale", "shuffle", "zero"]
KINDS: tuple[str, ...] = get_args(Kind)
NEEDS_ROI = frozenset({"silence", "alone"})


def perturbed(
    betas: Float[np.ndarray, " voxels"],
    kind: Kind,
    *,
    roi: Bool[np.ndarray, " voxels"] | None = None,
    factor: float = 1.0,
    seed: int = 0,
) -> Float[np.ndarray, " voxels"]:
    """Betas after a perturbation, the given ones untouched.

    Parameters
    ----------
    kind
        ``silence``: the ROI is 0, the mean of every voxel's z-scores; ``alone``: everything but the ROI is; ``scale``:
        all betas times ``factor``; ``shuffle``: each value moves to a random voxel; ``zero``.
    roi
        The voxels of the region, for ``silence`` and ``alone``.
    seed
        Of the shuffle.
    """
    if kind == "zero":
        return np.zeros_like(betas)
    if kind == "shuffle":
        return np.random.default_rng(seed).permutation(betas)
    if kind == "scale":
        return (betas * factor).astype(betas.dtype)
    if kind in NEEDS_ROI and roi is not None:
        kept = roi if kind == "alone" else ~roi
        return np.where(kept, betas, 0).astype(betas.dtype)
    return betas.copy()
