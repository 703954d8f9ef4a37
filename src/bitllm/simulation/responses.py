"""Tuning of voxels, and their single-trial betas in percent signal change.

Early areas respond to the image through receptive fields; higher areas respond to the content of the scene, each
area to its own kinds. A voxel's preference for objects, colors or settings is a smooth function of its position on
the sheet, partly the same for all subjects, partly specific to the subject, and partly specific to the voxel. Betas
are responses plus trial noise and session drifts.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int16

from bitllm.simulation import atlases
from bitllm.simulation.atlases import PATCHES, within
from bitllm.simulation.cortex import LEFT, SHEET_RADIUS_MM, Cortex
from bitllm.simulation.parameters import REPETITIONS, SimulationConfig, stream
from bitllm.simulation.scenes import FEATURE_GROUPS, FEATURES

CELLS = 12
"""Early areas see images as a grid of 12 × 12 cells."""

CHANNELS = ("luminance", "red-green", "blue-yellow", "contrast")
PICTURE_DEG = 8.4
"""Side of the image in degrees of visual angle, as in NSD."""

_WAVES = 256  # cosines in a random smooth field
_SAME_IN_BOTH_HEMISPHERES = 0.6  # share of the variance


@dataclass(frozen=True)
class Tuning:
    """Tuning of one subject's cortical voxels, without noise and before scaling."""

    receptive_fields: Float[np.ndarray, "voxels cells"]
    """Weight of every cell of the image; sums to 1 over the 144 cells."""
    channels: Float[np.ndarray, "voxels 4"]
    """Weight of luminance, red–green, blue–yellow and contrast; 0 outside the early areas."""
    semantic: Float[np.ndarray, "voxels features"]
    """Weight of each feature of ``FEATURES``, for features centered and scaled by ``standardised``."""

    def responses(
        self, seen: Float[np.ndarray, "images cells 4"], features: Float[np.ndarray, "images features"]
    ) -> Float[np.ndarray, "images voxels"]:
        """Responses to images, up to the scale of each voxel."""
        total = features @ self.semantic.T
        for channel in range(len(CHANNELS)):
            total += (seen[:, :, channel] @ self.receptive_fields.T) * self.channels[:, channel]
        return total


def make_tuning(config: SimulationConfig, cortex: Cortex, subject: int, *, seed: int) -> Tuning:
    """Tuning of the subject with this index (0-based)."""
    n_shared_columns = len(FEATURES) + len(CHANNELS)
    common = _smooth_fields(cortex, config.tuning_mm, n_shared_columns, stream(seed, "shared tuning"))
    own = _smooth_fields(cortex, config.tuning_mm, n_shared_columns, stream(seed, "subject tuning", subject))
    alone = stream(seed, "voxel tuning", subject).standard_normal(common.shape)
    smooth = np.sqrt(config.shared_tuning) * common + np.sqrt(1 - config.shared_tuning) * own
    # Square roots, because the parameters are shares of the variance of independent parts.
    preferences = np.sqrt(1 - config.voxel_tuning) * smooth + np.sqrt(config.voxel_tuning) * alone
    _partners_like_objects(preferences)

    early = _early(cortex.places)
    gains, leaning = _group_gains(cortex.places)
    semantic = np.empty((len(cortex.places), len(FEATURES)))
    for column, (group, _) in enumerate(FEATURES):
        semantic[:, column] = gains[group] * (leaning.get(group, 0.0) + preferences[:, column])
    return Tuning(
        receptive_fields=_receptive_fields(cortex),
        channels=1.6 * early[:, None] * (preferences[:, len(FEATURES) :] + np.array([0.3, 0.0, 0.0, 1.0])),
        semantic=semantic * (1 - early)[:, None],
    )


def standardised(features: Float[np.ndarray, "images features"]) -> Float[np.ndarray, "images features"]:
    """Features, centered and scaled so that the variances within each group sum to 1."""
    centred = features - features.mean(0)
    groups = np.array([group for group, _ in FEATURES])
    for group in FEATURE_GROUPS:
        spread = np.sqrt(centred[:, groups == group].var(0).sum())
        centred[:, groups == group] /= spread if spread > 0 else 1.0
    return centred


def _smooth_fields(
    cortex: Cortex, length_mm: float, n_fields: int, rng: np.random.Generator
) -> Float[np.ndarray, "voxels fields"]:
    """Random smooth functions of the position (variance 1), similar in the two hemispheres."""
    # Random Fourier features: a sum of cosines with Gaussian frequencies is a Gaussian process with length
    # ``length_mm``.
    waves = rng.normal(0, SHEET_RADIUS_MM / length_mm, (3, _WAVES))
    basis = np.cos(cortex.places @ waves + rng.uniform(0, 2 * np.pi, _WAVES)) * np.sqrt(2 / _WAVES)
    both, left, right = rng.standard_normal((3, _WAVES, n_fields))
    same, other = np.sqrt(_SAME_IN_BOTH_HEMISPHERES), np.sqrt(1 - _SAME_IN_BOTH_HEMISPHERES)
    return np.where(
        (cortex.hemisphere == LEFT)[:, None],
        basis @ (same * both + other * left),
        basis @ (same * both + other * right),
    )


def _partners_like_objects(preferences: Float[np.ndarray, "voxels fields"]) -> None:
    """Give voxels similar preferences for a thing as main and as second object (half of the variance), in place."""
    column = {feature: index for index, feature in enumerate(FEATURES)}
    for whole, part in (("object", "partner"), ("category", "partner_category")):
        main = [column[whole, value] for value in FEATURE_GROUPS[whole]]
        second = [column[part, value] for value in FEATURE_GROUPS[part]]
        preferences[:, second] = np.sqrt(0.5) * (preferences[:, main] + preferences[:, second])


def _early(places: Float[np.ndarray, "voxels 3"]) -> Float[np.ndarray, " voxels"]:
    """1 in V1 to V3, 0.5 in hV4, 0 elsewhere."""
    area = atlases.atlas_labels("prf-visualrois", places)
    return np.where(area == 7, 0.5, (area > 0).astype(np.float64))


def _receptive_fields(cortex: Cortex) -> Float[np.ndarray, "voxels cells"]:
    """Receptive fields in the contralateral half of the image; more peripheral ones are larger.

    The polar angle runs from the horizontal meridian at the calcarine sulcus to the vertical one at the border of V1
    and V2, back at the outer border of V2, and so on: upper visual field below the calcarine, lower field above it.
    """
    side = atlases.from_calcarine(cortex.places)
    phase = np.abs(side) / 22.0
    # A triangle wave: the map of the visual field is mirrored at every border between areas.
    elevation = 90 * np.abs(((phase + 1) % 2) - 1) * np.sign(side)
    eccentricity = np.minimum(atlases.eccentricity(cortex.places), PICTURE_DEG / 2)
    right_field = np.where(cortex.hemisphere == LEFT, 1.0, -1.0)
    x = right_field * eccentricity * np.cos(np.radians(elevation))
    y = eccentricity * np.sin(np.radians(elevation))
    size = 0.4 + eccentricity * (0.08 + 0.09 * np.minimum(phase, 4))
    grid = (np.arange(CELLS) + 0.5) / CELLS * PICTURE_DEG - PICTURE_DEG / 2
    across = np.exp(-0.5 * ((grid - x[:, None]) / size[:, None]) ** 2)
    down = np.exp(-0.5 * ((-grid - y[:, None]) / size[:, None]) ** 2)
    fields = (down[:, :, None] * across[:, None, :]).reshape(len(x), -1)
    return fields / fields.sum(1, keepdims=True)


_BY_STREAM: dict[str, tuple[float, float, float]] = {
    "category": (1.1, 1.1, 0.7), "object": (1.6, 1.3, 0.8), "partner_category": (0.5, 0.7, 0.7),
    "partner": (0.7, 0.8, 0.8), "setting": (0.7, 0.4, 0.9), "indoor": (0.4, 0.2, 0.4),
    "action": (0.4, 1.0, 0.7),
    "colour": (0.9, 0.3, 0.2), "count": (0.3, 0.5, 1.1), "relation": (0.2, 0.6, 1.0),
    "face": (0.1, 0.1, 0.0), "body": (0.1, 0.2, 0.0), "words": (0.1, 0.1, 0.0), "food": (0.2, 0.1, 0.0),
}  # fmt: skip
"""Gain of the ventral, lateral and parietal streams for each group of features."""

_BY_PATCH: dict[str, dict[str, float]] = {
    "face": {"OFA": 3, "FFA-1": 3.5, "FFA-2": 3.5, "mTL-faces": 2.5, "aTL-faces": 2},
    "body": {"EBA": 3, "FBA-1": 3, "FBA-2": 3, "mTL-bodies": 2},
    "words": {"OWFA": 3, "VWFA-1": 3.5, "VWFA-2": 3.5, "mfs-words": 2, "mTL-words": 2},
    "food": {"food-1": 3, "food-2": 3},
    "setting": {"OPA": 1.8, "PPA": 2.4, "RSC": 2.2},
    "indoor": {"OPA": 1.0, "PPA": 1.4, "RSC": 1.4},
    "action": {"EBA": 1.2},
}
"""Additional gain of the selective areas."""

_LEANING = {"face": 1.5, "body": 1.5, "words": 1.5, "food": 1.5}
"""Bias of selective areas: they respond more, not less, to their category."""


def _group_gains(
    places: Float[np.ndarray, "voxels 3"],
) -> tuple[dict[str, Float[np.ndarray, " voxels"]], dict[str, Float[np.ndarray, " voxels"]]]:
    """Gain of each position for each group of features, and the bias toward positive responses."""
    _, turn = atlases.angles(places)
    closeness = np.stack([np.exp(3 * (np.cos(np.radians(turn - middle)) - 1)) for middle in (0, 90, 200)])
    closeness /= closeness.sum(0)
    gains = {group: np.array(weights) @ closeness for group, weights in _BY_STREAM.items()}
    leaning: dict[str, Float[np.ndarray, " voxels"]] = {}
    for group, patches in _BY_PATCH.items():
        added = sum(
            gain * np.exp(-0.7 * within(places, PATCHES[name]) ** 4) for name, gain in patches.items()
        )
        if group in _LEANING:
            leaning[group] = np.where(added > 0.3, _LEANING[group], 0.0)
        gains[group] = gains[group] + added
    return gains, leaning


UNITS_PER_PERCENT = 300
"""NSD stores percent signal change × 300 as int16."""

_VOXELS_AT_ONCE = 2000
_NOISE_MODES = 15  # smooth spatial patterns of shared noise
_SMOOTH_NOISE_SHARE = 0.3
"""Share of the trial noise's variance that neighboring voxels have in common."""


@dataclass(frozen=True)
class Subject:
    """Everything that determines the betas of one subject, with voxels of the brain mask in C order."""

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
    """Smooth patterns of the noise that neighbors share (their variances sum to 1)."""
    in_view: Bool[np.ndarray, "sessions brain"]
    """Whether a voxel is in the field of view in a session; if not, NSD writes 0."""


def make_subject(
    config: SimulationConfig,
    index: int,
    cortex: Cortex,
    tuning: Tuning,
    stimuli: tuple[Float[np.ndarray, "images cells 4"], Float[np.ndarray, "images features"]],
    *,
    seed: int,
) -> Subject:
    """The generative model of the subject with this index (0-based).

    ``stimuli`` contains what early and higher areas see of the subject's planned images, in the order of the plan.
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
    """True single-trial betas of one session (0-based), in percent signal change.

    ``images`` is the row of ``subject.responses`` of every trial. Returns one row per trial and one column per voxel
    of the brain mask in C order; voxels out of view are 0.
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
    # The response amplitude varies between sessions by about 10 %.
    gain = config.signal * np.exp(rng.normal(0, 0.1))
    cortical = subject.cortex.cortical[subject.cortex.brain]
    percent[:, cortical] += gain * subject.strength * subject.responses[images]
    percent *= subject.noise_percent
    percent += subject.mean_percent
    percent[:, ~subject.in_view[session]] = 0
    return percent


def as_stored(percent: Float[np.ndarray, "trials voxels"]) -> Int16[np.ndarray, "trials voxels"]:
    """Betas as NSD stores them: × 300, rounded, clipped to the range of int16."""
    return np.clip(np.rint(percent * UNITS_PER_PERCENT), -32768, 32767).astype(np.int16)


class NoiseCeiling:
    """NSD's ncsnr, accumulated by session, from z-scored betas of images with exactly three presentations."""

    def __init__(self, n_images: int, n_voxels: int) -> None:
        self._sums = np.zeros((n_images, n_voxels), dtype=np.float32)
        self._squares = np.zeros((n_images, n_voxels), dtype=np.float32)
        self._counts = np.zeros(n_images, dtype=np.int64)

    def add(self, betas: Int16[np.ndarray, "trials voxels"], images: Int[np.ndarray, " trials"]) -> None:
        """Add one session. A voxel that is constant in it (out of view) has no value for its images."""
        values = betas.astype(np.float32)
        spread = values.std(0)
        values -= values.mean(0)
        values /= np.where(spread > 0, spread, np.nan)
        for row, image in zip(values, images, strict=True):
            self._sums[image] += row
            self._squares[image] += row**2
        self._counts += np.bincount(images, minlength=len(self._counts))

    def ncsnr(self) -> Float[np.ndarray, " voxels"]:
        """Signal over noise of a single trial: ``sqrt(max(0, 1 − v²)) / v``, with v the sd within images.

        NaN for voxels that are never in view.

        References
        ----------
        Allen et al., 2022, "A massive 7T fMRI dataset", Methods, Noise ceiling.
        """
        blocks = range(0, self._sums.shape[1], _VOXELS_AT_ONCE)
        return np.concatenate([self._ncsnr(slice(start, start + _VOXELS_AT_ONCE)) for start in blocks])

    def _ncsnr(self, voxels: slice) -> Float[np.ndarray, " voxels"]:
        thrice = self._counts == REPETITIONS
        sums, squares = self._sums[thrice, voxels], self._squares[thrice, voxels]
        # Betas are z-scored, so total variance is 1 and the signal has what the noise leaves of it.
        within = (squares - sums**2 / REPETITIONS) / (REPETITIONS - 1)
        known = ~np.isnan(within)
        total, n = np.where(known, within, 0).sum(0, dtype=np.float64), known.sum(0)
        variance = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        return np.sqrt(np.maximum(0, 1 - variance)) / np.sqrt(variance)


def _reliability(cortex: Cortex) -> Float[np.ndarray, " cortical"]:
    """Typical response strength at each position; it decreases from posterior to anterior."""
    ring, _ = atlases.angles(cortex.places)
    early = atlases.atlas_labels("prf-visualrois", cortex.places) > 0
    back = 1 / (1 + np.exp((ring - 90) / 8))
    return np.where(early, 1.2, np.where(cortex.nsdgeneral, 0.3 + 0.7 * back, 0.25 * back))


def _noise_modes(cortex: Cortex, rng: np.random.Generator) -> Float[np.ndarray, "modes brain"]:
    waves = rng.normal(0, 1 / 25, (3, _NOISE_MODES))
    phases = rng.uniform(0, 2 * np.pi, _NOISE_MODES)
    return np.cos(cortex.mni_mm[cortex.brain] @ waves + phases).T * np.sqrt(2 / _NOISE_MODES)


def _in_view(cortex: Cortex, n_sessions: int, rng: np.random.Generator) -> Bool[np.ndarray, "sessions brain"]:
    """The lowest slice of the brain is out of view in one of four sessions."""
    lowest = np.argwhere(cortex.brain)[:, 2] == np.argwhere(cortex.brain)[:, 2].min()
    return ~(lowest & (rng.random(n_sessions) < 0.25)[:, None])
