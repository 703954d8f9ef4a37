"""What a simulated release is made of: sizes, strengths, and the presets that the command line offers."""

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from bitllm.config import StrictConfig, nearest
from bitllm.errors import ConfigError

SIMULATION_VERSION = 1
"""Increased whenever the same preset and seed give other betas, images or captions."""

RUNS_PER_SESSION = 12
"""NSD's own number of runs in a session."""

REPETITIONS = 3
"""NSD plans three presentations of every image."""

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class SimulationConfig(StrictConfig):
    """Everything that determines a simulated release, apart from its seed.

    The noise is derived from NSD. Published notebooks on the real b3 betas print mean noise ceilings of 24.2 % of
    the variance of three averaged trials in the volume, and 36.2 % on the surface (without white matter). With
    ``ceiling = ncsnr² / (ncsnr² + 1/3)`` this is an ncsnr of .33 and .43. Here the median over nsdgeneral is about
    .40 and the mean ceiling 33 %.

    The share of tuning that subjects have in common determines how difficult an unseen subject is. With the
    defaults, the demo's encoder, trained on subj01 to subj06, ranks the images of subj07 (validation images,
    simulator seed 1) about as well as the poster's encoder ranks NSD's: median rank 6 among 191 (3 % of the gallery;
    the poster: 13 of about 1,000), R@10 .70 at a chance of .05. Unseen images of the training subjects are easier
    (R@10 .83).
    """

    preset: str = "custom"
    """Name of the preset that the values come from (a label: nothing depends on it)."""
    sessions: tuple[int, ...]
    """Sessions of each subject, in order; unequal, as NSD's 40, 40, 32, 30, 40, 32, 40, 30."""
    trials_per_session: int = Field(ge=RUNS_PER_SESSION)
    """Trials of one session, over twelve runs (NSD: 750)."""
    n_shared: int = Field(ge=1)
    """Images planned for every subject (NSD: 1,000)."""
    n_unique: int = Field(ge=1)
    """Images planned for a single subject (NSD: 9,000)."""
    picture_px: int = Field(ge=24, multiple_of=12)
    """Side of the square images in pixels (NSD: 425); a multiple of 12, the grid that early areas see."""
    voxel_mm: float = Field(gt=0.9)
    """Side of the cubic voxels in mm, which determines their number (NSD: 1.8)."""
    signal: NotNegative = 1.0
    """Strength of the responses to images; 0 gives betas that do not depend on the images."""
    noise: NotNegative = 1.0
    """Strength of everything in the betas that is not a response: trial noise and session drifts."""
    ncsnr_median: float = Field(default=0.41, gt=0)
    """Signal-to-noise ratio (of standard deviations) of a typical voxel of nsdgeneral."""
    shared_tuning: Share = 0.65
    """Share of the variance of the smooth tuning that is common to all subjects at the same functional position."""
    voxel_tuning: Share = 0.25
    """Share of the variance of a voxel's tuning that is specific to this voxel."""
    misalignment_mm: NotNegative = 4.0
    """Typical distance between anatomical (MNI) and functional position, in mm."""
    tuning_mm: float = Field(default=14.0, gt=0)
    """Distance along the cortex over which smooth tuning changes, in mm."""

    @model_validator(mode="after")
    def _plan_fits(self) -> "SimulationConfig":
        planned = max(self.sessions) * self.trials_per_session
        wanted = REPETITIONS * self.images_per_subject
        if planned != wanted:
            raise ValueError(
                f"expected {wanted} presentations ({self.images_per_subject} images three times), found {planned} "
                f"({max(self.sessions)} sessions of {self.trials_per_session} trials); change one of them"
            )
        return self

    def changed(self, **values: float | None) -> "SimulationConfig":
        """The same release with other parameters; those that are None are unchanged."""
        given = {name: value for name, value in values.items() if value is not None}
        return SimulationConfig.parse(self.model_dump() | given, source="simulation") if given else self

    @property
    def images_per_subject(self) -> int:
        """Images planned for one subject, shared and unique."""
        return self.n_shared + self.n_unique

    @property
    def n_images(self) -> int:
        """Images in the stimulus file."""
        return self.n_shared + self.n_unique * len(self.sessions)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Names of the subjects, like NSD's."""
        return tuple(f"subj{number:02d}" for number in range(1, len(self.sessions) + 1))


PRESETS: dict[str, SimulationConfig] = {
    "tiny": SimulationConfig(
        preset="tiny", sessions=(4, 4, 3, 3, 4, 3, 4, 3), trials_per_session=60,
        n_shared=24, n_unique=56, picture_px=48, voxel_mm=16.0, ncsnr_median=0.9,
        shared_tuning=0.7, voxel_tuning=0.2, misalignment_mm=4.0,
    ),
    "demo": SimulationConfig(
        preset="demo", sessions=(12, 12, 10, 9, 12, 10, 12, 9), trials_per_session=252,
        n_shared=240, n_unique=768, picture_px=96, voxel_mm=6.2,
    ),
    "bench": SimulationConfig(
        preset="bench", sessions=(14, 14, 12, 11, 14, 12, 14, 11), trials_per_session=750,
        n_shared=1200, n_unique=2300, picture_px=144, voxel_mm=4.0,
    ),
}  # fmt: skip


def preset(name: str) -> SimulationConfig:
    """The configuration of a named preset: tiny, demo or bench."""
    if name not in PRESETS:
        raise ConfigError(
            f"preset: expected one of {', '.join(PRESETS)}, found `{name}`; {nearest(name, list(PRESETS))}"
        )
    return PRESETS[name]


def expected_gigabytes(config: SimulationConfig) -> float:
    """Upper bound of a release's size on disk in GB: betas of the brain mask, images and ground truth."""
    brain_mm3 = 1.65e6
    brain_voxels = brain_mm3 / config.voxel_mm**3
    trials = sum(config.sessions) * config.trials_per_session
    bytes_per_voxel_and_session = 2 * config.trials_per_session + 60  # HDF5's index entry of a chunk
    betas = brain_voxels * sum(config.sessions) * bytes_per_voxel_and_session
    truth = 0.25 * brain_voxels * len(config.sessions) * (2 * config.images_per_subject + 1000)
    pictures = config.n_images * config.picture_px**2 * 0.6
    tables = 5e6 + 400 * trials
    return (betas + truth + pictures + tables) / 1e9


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Random generator for a seed, a purpose and indices.

    Every purpose has its own generator, so that changing the noise, for example, does not change the scenes.
    """
    key = [int.from_bytes(purpose.encode(), "big") % 2**63, *indices]
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))
