"""Controls: inputs with no, or less, evidence about the image.

zero
    All betas are 0. With greedy decoding this gives one caption for all images.
shuffle
    The betas of the trial at random voxels of the same brain: the same distribution of values, other locations.
permuted
    The betas of another image of the same subject (see `bitllm.evaluation.pairing`): real data of the wrong image.
    This is the cleanest null.
noise
    Random betas with the covariance over voxels of the subject's own training trials.
other_subject
    The betas of another subject for the *same* image; each voxel takes the beta of the nearest voxel (in mm) of
    that subject. Not a null: it shows what any brain that saw the image provides.

References
----------
The poster, "Voxel perturbations", has zero and shuffle.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from bitllm.config import nearest
from bitllm.data.dataset import rows_of_images
from bitllm.data.store import Store
from bitllm.errors import ConfigError, DataError
from bitllm.evaluation.held_out import HeldOut, betas_of, trials_of

BETAS_CONTROLS = ("zero", "shuffle", "noise", "other_subject")
"""Controls that need other betas; *permuted* only reorders the real ones."""

_COORDS = ["x_mm", "y_mm", "z_mm"]
_MOST_TRAINING_TRIALS = 2000


class ControlBetas(NamedTuple):
    """Betas that replace the real ones, and how they were made."""

    betas: Float[np.ndarray, "n voxels"]
    about: dict[str, Any]


def control_betas(control: str, held_out: HeldOut, *, seed: int) -> ControlBetas:
    """Betas of a subject under a control.

    Parameters
    ----------
    control
        One of `BETAS_CONTROLS`.
    seed
        Seed of shuffle and noise; the shuffle of a row depends only on (seed, row).
    """
    if control == "zero":
        return ControlBetas(np.zeros_like(held_out.betas), {})
    if control == "shuffle":
        return ControlBetas(shuffled(held_out.betas, seed=seed), {})
    if control == "noise":
        training = training_betas(held_out)
        noise = covariance_matched(training, len(held_out.betas), seed=seed)
        return ControlBetas(noise, {"n_training_trials": len(training), "rank": len(training) - 1})
    if control == "other_subject":
        return betas_of_another_subject(held_out)
    raise ConfigError(
        f"control: expected one of {', '.join(BETAS_CONTROLS)}, found `{control}`; "
        f"{nearest(control, list(BETAS_CONTROLS))}"
    )


def shuffled(betas: Float[np.ndarray, "n voxels"], *, seed: int) -> Float[np.ndarray, "n voxels"]:
    """The values of each row in random order, another one for each row."""
    return np.stack(
        [np.random.default_rng([seed, row]).permutation(values) for row, values in enumerate(betas)]
    )


def covariance_matched(
    training: Float[np.ndarray, "t voxels"], n: int, *, seed: int
) -> Float[np.ndarray, "n voxels"]:
    """Gaussian noise with the mean and exactly the sample covariance of training betas.

    Each noise trial is a random combination of the centered training rows with weights N(0, 1/(t − 1)). Its
    covariance is that of the training rows (rank at most t − 1), without a voxels × voxels matrix.
    """
    if len(training) < 2:
        raise DataError(
            f"noise: expected at least 2 training trials for a covariance, found {len(training)}; leave it out"
        )
    mean = training.mean(axis=0)
    weights = np.random.default_rng(seed).standard_normal((n, len(training)))
    return (mean + weights @ (training - mean) / np.sqrt(len(training) - 1)).astype(np.float32)


def training_betas(held_out: HeldOut) -> Float[np.ndarray, "t voxels"]:
    """Betas of the subject's own trials of training images, averaged over repetitions if the held-out ones are.

    A held-out subject has such trials too: they were not used for training, and none is of a test image. At most
    2,000, evenly spaced.
    """
    store, subject = held_out.store, held_out.subject
    of_part = store.stimuli.index[store.stimuli["part"] == "train"].to_numpy()
    nsd_id = store.subject(subject).trials["nsd_id"].to_numpy()
    allowed = np.setdiff1d(of_part, held_out.nsd_id)  # never a held-out image, whatever the split
    items = rows_of_images(nsd_id, allowed, averaged=int(held_out.n_repetitions.max()) > 1)
    if not items:
        raise DataError(
            f"noise: expected trials of {subject} on training images in {store.path}, found none; leave it out"
        )
    chosen = np.unique(np.linspace(0, len(items) - 1, _MOST_TRAINING_TRIALS).astype(int))
    return betas_of(trials_of(store, subject, [items[index] for index in chosen]))


def betas_of_another_subject(held_out: HeldOut) -> ControlBetas:
    """Betas of another subject for the same images; the first subject that saw all of them."""
    store = held_out.store
    images = np.unique(held_out.nsd_id)
    seen = {
        name: int(np.isin(images, store.subject(name).trials["nsd_id"].to_numpy()).sum())
        for name in store.subjects
        if name != held_out.subject
    }
    donor = max(seen, key=lambda name: seen[name], default=None)
    if donor is None or seen[donor] < len(images):
        found = "none" if donor is None else f"{donor} who saw {seen[donor]}"
        raise DataError(
            f"other_subject: expected another subject who saw all {len(images)} images, found {found}; leave it out"
        )
    voxel, distance = nearest_voxels(store, held_out.subject, donor)
    betas = betas_of(trials_of(store, donor, _same_images(held_out, donor)))[:, voxel]
    return ControlBetas(betas, {"subject": donor, "median_distance_mm": round(float(np.median(distance)), 2)})


def nearest_voxels(
    store: Store, subject: str, donor: str
) -> tuple[Int[np.ndarray, " voxels"], Float[np.ndarray, " voxels"]]:
    """For each voxel of ``subject``, the nearest voxel of ``donor`` in the common space and its distance in mm."""
    tree = KDTree(store.subject(donor).voxels[_COORDS].to_numpy())
    distance, voxel = tree.query(store.subject(subject).voxels[_COORDS].to_numpy())
    return voxel.astype(np.int64), distance.astype(np.float64)


def _same_images(held_out: HeldOut, donor: str) -> list[tuple[int, ...]]:
    """For each held-out row, trials of the donor for the same image: as many as were averaged, if there are enough."""
    nsd_id = held_out.store.subject(donor).trials["nsd_id"].to_numpy()
    rows_of = {int(image): np.flatnonzero(nsd_id == image) for image in np.unique(held_out.nsd_id)}
    used: dict[int, int] = {}
    items = []
    for image, n in zip(held_out.nsd_id.tolist(), held_out.n_repetitions.tolist(), strict=True):
        # Single trials of one image get different trials of the donor, in turn.
        rows = np.roll(rows_of[image], -used.get(image, 0))[:n]
        used[image] = used.get(image, 0) + n
        items.append(tuple(int(row) for row in rows))
    return items
