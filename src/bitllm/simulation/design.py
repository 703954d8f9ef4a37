"""Which subject sees which image when: NSD's design, with three presentations of each image over the sessions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from bitllm.simulation.parameters import REPETITIONS, RUNS_PER_SESSION, SimulationConfig, stream

_BLANK_SLOTS = 4
"""Slots without an image in the longest run (NSD: 12)."""


@dataclass(frozen=True)
class Design:
    """NSD's design tables; all numbers are 1-based, as in ``nsd_expdesign.mat``."""

    masterordering: Int[np.ndarray, " trials"]
    """Position of each planned trial's image in the subject's list; the same for all subjects."""
    subjectim: Int[np.ndarray, "subjects images"]
    """Each subject's list of images; the shared ones come first."""
    sharedix: Int[np.ndarray, " shared"]
    """The shared images, in order."""
    stimpattern: Int[np.ndarray, "sessions runs slots"]
    """1 for a slot of a run with an image."""
    basiccnt: Int[np.ndarray, "3 sessions"]
    """Number of trials of each session that show an image for the first, second and third time."""
    repetition: Int[np.ndarray, " trials"]
    """0, 1 or 2: number of earlier presentations of the trial's image."""

    @property
    def trials_per_run(self) -> Int[np.ndarray, " runs"]:
        """Trials in each run of a session."""
        return self.stimpattern[0].sum(1)


def make_design(config: SimulationConfig, *, seed: int) -> Design:
    """Draw the design of a release."""
    rng = stream(seed, "design")
    ordering = _masterordering(config, rng)
    numbers = rng.permutation(config.n_images) + 1
    shared = np.sort(numbers[: config.n_shared])
    unique = numbers[config.n_shared :].reshape(len(config.sessions), config.n_unique)
    repetition = _repetition(ordering)
    by_session = repetition.reshape(max(config.sessions), -1)
    return Design(
        masterordering=ordering,
        subjectim=np.concatenate([np.tile(shared, (len(config.sessions), 1)), unique], axis=1),
        sharedix=shared,
        stimpattern=_stimpattern(config, rng),
        basiccnt=np.stack([(by_session == times).sum(1) for times in range(REPETITIONS)]),
        repetition=repetition,
    )


def _masterordering(config: SimulationConfig, rng: np.random.Generator) -> Int[np.ndarray, " trials"]:
    """The order of three presentations of each image, which are close together or spread over the experiment."""
    n = config.images_per_subject
    moment = rng.uniform(0, 1, (n, 1))
    close = moment + rng.vonmises(0, 40, (n, REPETITIONS)) / (2 * np.pi)
    anywhere = rng.uniform(0, 1, (n, REPETITIONS))
    times = np.where(rng.random((n, REPETITIONS)) < 0.5, close, anywhere) % 1
    images = np.repeat(np.arange(1, n + 1), REPETITIONS)
    return images[np.argsort(times.ravel(), kind="stable")]


def _repetition(ordering: Int[np.ndarray, " trials"]) -> Int[np.ndarray, " trials"]:
    by_image = np.argsort(ordering, kind="stable").reshape(-1, REPETITIONS)
    repetition = np.empty(len(ordering), dtype=np.int64)
    for times in range(REPETITIONS):
        repetition[by_image[:, times]] = times
    return repetition


def _stimpattern(
    config: SimulationConfig, rng: np.random.Generator
) -> Int[np.ndarray, "sessions runs slots"]:
    """Trials dealt to the runs, odd runs first (NSD: 63 and 62 in turn), with blanks in between."""
    base, extra = divmod(config.trials_per_session, RUNS_PER_SESSION)
    order = [*range(0, RUNS_PER_SESSION, 2), *range(1, RUNS_PER_SESSION, 2)]
    in_run = np.full(RUNS_PER_SESSION, base)
    in_run[order[:extra]] += 1
    pattern = np.zeros((max(config.sessions), RUNS_PER_SESSION, in_run.max() + _BLANK_SLOTS), dtype=np.int64)
    for session in pattern:
        for run, n_trials in zip(session, in_run, strict=True):
            # a run starts and ends with a blank slot
            run[1 + rng.choice(len(run) - 2, n_trials, replace=False)] = 1
    return pattern
