"""The order in which trials are seen: a function of seed and epoch, shared out over ranks without loss."""

import numpy as np

from bitllm.data.dataset import TrialSet
from bitllm.errors import SplitError


def epoch_batches(
    trials: TrialSet,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    one_subject: bool = False,
    rank: int = 0,
    n_ranks: int = 1,
) -> list[np.ndarray]:
    """One rank's batches of an epoch, as positions in ``trials``.

    All ranks together see every trial once; each has the same number of batches, none of them empty, so that
    no rank waits for another.

    Parameters
    ----------
    batch_size
        Trials of a rank's batch; the last batch (of each subject, with ``one_subject``) may be smaller or, if
        what is left is too little for all ranks, larger.
    seed, epoch
        Decide the order; whatever the rank, and however many worker processes load the batches.
    one_subject
        Whether all trials of a batch, on all ranks, are of one subject.
    rank, n_ranks
        This process among those that train together.

    Raises
    ------
    SplitError
        If a group of trials is smaller than the number of ranks.
    """
    rng = np.random.default_rng((seed, epoch))
    index = trials.subject_index if one_subject else np.zeros(len(trials), np.int64)
    batches: list[np.ndarray] = []
    for subject in np.unique(index):
        order = rng.permutation(np.flatnonzero(index == subject))
        if len(order) < n_ranks:
            raise SplitError(
                f"batches: expected at least one trial for each of {n_ranks} ranks, found {len(order)}; train "
                "with fewer processes or mix the subjects"
            )
        starts = list(range(0, len(order), batch_size * n_ranks))
        if len(order) - starts[-1] < n_ranks:
            starts.pop()  # too few for all ranks: they join the batch before
        batches.extend(np.split(order, starts[1:]))
    return [np.array_split(batches[number], n_ranks)[rank] for number in rng.permutation(len(batches))]
