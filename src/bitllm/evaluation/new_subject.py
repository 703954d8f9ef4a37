"""Adapt a system to a new subject by its betas alone; see `bitllm.model.transport`."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.evaluation.held_out import trials_of
from bitllm.model.captioner import Captioner
from bitllm.model.embed import moments_of_subject
from bitllm.model.transport import Moments, optimal_transport

MOST_TRIALS = 4096
"""Trials of a subject that determine its moments at most; evenly spaced if there are more."""
LEAST_TRIALS = 100
"""Fewer trials of the new subject are refused: in development runs 100 did neither good nor harm, 250 some good."""


def other_trials(store: Store, subject: str, nsd_ids: Iterable[int]) -> TrialSet:
    """All single trials of a subject, but for those of the images ``nsd_ids``, which are evaluated.

    Raises
    ------
    DataError
        If there are fewer than `LEAST_TRIALS`.
    """
    shown = store.subject(subject).trials["nsd_id"].to_numpy()
    rows = np.flatnonzero(~np.isin(shown, sorted(nsd_ids)))
    if len(rows) < LEAST_TRIALS:
        raise DataError(
            f"{store.path}: expected at least {LEAST_TRIALS} trials of {subject} of other images than the "
            f"evaluated ones for --transport, found {len(rows)}; evaluate with --transport False"
        )
    return trials_of(store, subject, [(int(row),) for row in rows])


def adapted(system: Captioner, store: Store, split: Split, own: TrialSet) -> Captioner:
    """A system whose encoder moves the pooled betas of a new subject onto those of the training subjects.

    Parameters
    ----------
    store, split
        The store and split of the training.
    own
        Single trials of the new subject, which determine the map.
    """
    training = select_trials(store, split, "train", averaged=False)
    parts = [training[training.subject_index == n] for n in range(len(training.subjects))]
    target = Moments.mean_of([_moments(system, part) for part in parts])
    return replace(system, transport=optimal_transport(_moments(system, own), target))


def _moments(system: Captioner, trials: TrialSet) -> Moments:
    """Moments of trials of one subject."""
    chosen = np.unique(np.linspace(0, len(trials) - 1, min(len(trials), MOST_TRIALS)).astype(int))
    subject = trials.subject_of(0)
    anatomies = Anatomies.of(trials.store, [subject], system.atlases)
    return moments_of_subject(
        system.encoder, [trials.betas(row) for row in chosen.tolist()], subject, anatomies
    )
