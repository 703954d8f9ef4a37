"""Single-trial betas in percent signal change: responses to pictures, trial noise and session drifts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int16

from bitllm.simulation.brain import atlases
from bitllm.simulation.brain.cortex import Cortex
from bitllm.simulation.brain.tuning import Tuning
from bitllm.simulation.parameters import REPETITIONS, SimulationConfig, stream

UNITS_PER_PERCENT = 300
"""NSD stores percent signal change × 300 as int16."""

_VOXELS_AT_ONCE = 2000
_NOISE_MODES = 15
_SMOOTH_NOISE_SHARE = 0.3
"""Share of the trial noise's variance that neighbouring voxels have in common."""


@dataclass(frozen=True)
class Subject:
    """All that the betas of one subject are made from. Voxels are those of the brain mask, in C order."""

    index: int
    cortex: Cortex
    responses: Float[np.ndarray, "images cortical"]
    """Response to every planned image, in standard deviations (mean 0, sd 1 over images)."""
    strength: Float[np.ndarray, " cortical"]
    """Standard deviation of the response over that of the trial noise."""
    noise_percent: Float[np.ndarray, " brain"]
    """Standard deviation of the trial noise, in percent signal change."""
    mean_percent: Float[np.ndarray, " brain"]
    """Mean response to any picture, in percent signal change."""
    noise_modes: Float[np.ndarray, "modes brain"]
    """Smooth patterns of the noise that neighbours share (variance 1 in sum)."""
    in_view: Bool[np.ndarray, "sessions brain"]
    """Whether a voxel is within the field of view in a session; NSD writes 0 where it is not."""


def make_subject(
    config: SimulationConfig,
    index: int,
    cortex: Cortex,
    tuning: Tuning,
    stimuli: tuple[Float[np.ndarray, "images cells 4"], Float[np.ndarray, "images features"]],
    *,
    seed: int,
) -> Subject:
    """The generative model of one subject.

    Parameters
    ----------
    config
        Parameters of the simulation.
    index
        Number of the subject, 0-based.
    cortex, tuning
        Anatomy and tuning of the subject.
    stimuli
        What early and what higher areas see of the subject's planned images, in the order of the plan.
    seed
        Seed of the release.
    """
    responses = tuning.responses(*stimuli)
    responses -= responses.mean(0)
    spread = responses.std(0)
    responses /= np.where(spread > 0, spread, 1.0)
    rng = stream(seed, "voxels", index)
    n_brain, n_cortical = int(cortex.brain.sum()), int(cortex.cortical.sum())
    strength = config.ncsnr_median * rng.lognormal(0, 0.35, n_cortical) * _reliability(cortex)
    mean = rng.normal(0.05, 0.1, n_brain)
    mean[cortex.cortical[cortex.brain]] += 0.9 * np.minimum(strength / config.ncsnr_median, 2.0)
    return Subject(
        index=index,
        cortex=cortex,
        responses=responses,
        strength=strength,
        noise_percent=rng.lognormal(np.log(1.3), 0.25, n_brain),
        mean_percent=mean,
        noise_modes=_noise_modes(cortex, rng),
        in_view=_in_view(cortex, config.sessions[index], rng),
    )


def session_percent(
    config: SimulationConfig, subject: Subject, images: Int[np.ndarray, " trials"], session: int, *, seed: int
) -> Float[np.ndarray, "trials brain"]:
    """True single-trial betas of one session, in percent signal change.

    Parameters
    ----------
    config
        Parameters of the simulation.
    subject
        The generative model of the subject.
    images
        Column of ``subject.responses`` of every trial (0-based index into the subject's plan).
    session
        Number of the session, 0-based.
    seed
        Seed of the release.

    Returns
    -------
    One row per trial and one column per voxel of the brain mask in C order. Voxels out of view are 0.
    """
    rng = stream(seed, "noise", subject.index, session)
    n_trials, n_brain = len(images), len(subject.noise_percent)
    own = rng.standard_normal((n_trials, n_brain), dtype=np.float32)
    shared = rng.standard_normal((n_trials, _NOISE_MODES)) @ subject.noise_modes
    percent = np.sqrt(_SMOOTH_NOISE_SHARE) * shared + np.sqrt(1 - _SMOOTH_NOISE_SHARE) * own
    percent += rng.standard_normal(_NOISE_MODES) @ subject.noise_modes * 0.4  # the session's offset
    time = np.linspace(-1, 1, n_trials)[:, None]
    percent += time * (rng.standard_normal(_NOISE_MODES) @ subject.noise_modes * 0.25)  # and its drift
    percent *= config.noise
    gain = config.signal * np.exp(rng.normal(0, 0.1))
    cortical = subject.cortex.cortical[subject.cortex.brain]
    percent[:, cortical] += gain * subject.strength * subject.responses[images]
    percent *= subject.noise_percent
    percent += subject.mean_percent
    percent[:, ~subject.in_view[session]] = 0
    return percent


def as_stored(percent: Float[np.ndarray, "trials voxels"]) -> Int16[np.ndarray, "trials voxels"]:
    """Betas as NSD stores them: × 300, rounded, saturated at the ends of int16."""
    return np.clip(np.rint(percent * UNITS_PER_PERCENT), -32768, 32767).astype(np.int16)


class NoiseCeiling:
    """NSD's ncsnr, gathered by session: from z-scored betas of images with exactly three presentations."""

    def __init__(self, n_images: int, n_voxels: int) -> None:
        self._sums = np.zeros((n_images, n_voxels), dtype=np.float32)
        self._squares = np.zeros((n_images, n_voxels), dtype=np.float32)
        self._counts = np.zeros(n_images, dtype=np.int64)

    def add(self, betas: Int16[np.ndarray, "trials voxels"], images: Int[np.ndarray, " trials"]) -> None:
        """Add one session. A voxel that does not vary in it (out of view) has no value for its images."""
        values = betas.astype(np.float32)
        spread = values.std(0)
        values -= values.mean(0)
        values /= np.where(spread > 0, spread, np.nan)
        for row, image in zip(values, images, strict=True):
            self._sums[image] += row
            self._squares[image] += row**2
        self._counts += np.bincount(images, minlength=len(self._counts))

    def ncsnr(self) -> Float[np.ndarray, " voxels"]:
        """Signal over noise of a single trial: ``sqrt(max(0, 1 − v²)) / v``, v the sd within images.

        Voxels never in view have NaN.

        References
        ----------
        Allen et al., 2022, "A massive 7T fMRI dataset", Methods, Noise ceiling.
        """
        blocks = range(0, self._sums.shape[1], _VOXELS_AT_ONCE)
        return np.concatenate([self._ncsnr(slice(start, start + _VOXELS_AT_ONCE)) for start in blocks])

    def _ncsnr(self, voxels: slice) -> Float[np.ndarray, " voxels"]:
        thrice = self._counts == REPETITIONS
        sums, squares = self._sums[thrice, voxels], self._squares[thrice, voxels]
        within = (squares - sums**2 / REPETITIONS) / (REPETITIONS - 1)
        known = ~np.isnan(within)
        total, n = np.where(known, within, 0).sum(0, dtype=np.float64), known.sum(0)
        variance = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        return np.sqrt(np.maximum(0, 1 - variance)) / np.sqrt(variance)


def _reliability(cortex: Cortex) -> Float[np.ndarray, " cortical"]:
    """Typical strength of a place: falls off from the back of the brain forward."""
    ring, _ = atlases.angles(cortex.places)
    early = atlases.atlas_labels("prf-visualrois", cortex.places) > 0
    back = 1 / (1 + np.exp((ring - 90) / 8))
    return np.where(early, 1.2, np.where(cortex.nsdgeneral, 0.3 + 0.7 * back, 0.25 * back))


def _noise_modes(cortex: Cortex, rng: np.random.Generator) -> Float[np.ndarray, "modes brain"]:
    waves = rng.normal(0, 1 / 25, (3, _NOISE_MODES))
    phases = rng.uniform(0, 2 * np.pi, _NOISE_MODES)
    return np.cos(cortex.mni_mm[cortex.brain] @ waves + phases).T * np.sqrt(2 / _NOISE_MODES)


def _in_view(cortex: Cortex, n_sessions: int, rng: np.random.Generator) -> Bool[np.ndarray, "sessions brain"]:
    """The lowest slice of the brain drops out of the field of view in one session of four."""
    lowest = np.argwhere(cortex.brain)[:, 2] == np.argwhere(cortex.brain)[:, 2].min()
    return ~(lowest & (rng.random(n_sessions) < 0.25)[:, None])
