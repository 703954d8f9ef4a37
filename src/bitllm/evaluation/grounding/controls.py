"""Controls: inputs that carry no, or less, evidence about the image.

zero
    All betas are 0. With greedy decoding that is one caption for all images.
shuffle
    The betas of the trial, moved to random voxels of the same brain: the distribution stays, the places do not.
permuted
    The betas of another image of the same subject and number of repetitions: real brain data of the wrong image; the
    cleanest null.

References
----------
The poster, "Voxel perturbations". Its Zero and Shuffle are the first two.
"""

import numpy as np
from jaxtyping import Float, Int

from bitllm.config import nearest
from bitllm.data.dataset import TrialSet
from bitllm.errors import ConfigError
from bitllm.evaluation.scoring.floors import derangement

BETAS_CONTROLS = ("zero", "shuffle", "permuted")


def control_betas(
    control: str, betas: Float[np.ndarray, "n voxels"], nsd_id: Int[np.ndarray, " n"], *, seed: int
) -> Float[np.ndarray, "n voxels"]:
    """Betas of one subject under a control.

    Parameters
    ----------
    betas
        One row for each trial (or mean over repetitions).
    nsd_id
        Image of each row.
    seed
        Of shuffle and permutation; the shuffle of a row depends on (seed, row) alone.

    Raises
    ------
    ConfigError
        If there is no such control.
    """
    if control == "zero":
        return np.zeros_like(betas)
    if control == "shuffle":
        return np.stack(
            [np.random.default_rng([seed, row]).permutation(values) for row, values in enumerate(betas)]
        )
    if control == "permuted":
        return betas[derangement(nsd_id.tolist(), np.random.default_rng(seed))]
    raise ConfigError(
        f"control: expected one of {', '.join(BETAS_CONTROLS)}, found `{control}`; "
        f"{nearest(control, list(BETAS_CONTROLS))}"
    )


def betas_of(trials: TrialSet) -> Float[np.ndarray, "n voxels"]:
    """All betas of a set of trials of *one* subject."""
    return np.stack([trials.betas(index) for index in range(len(trials))])
