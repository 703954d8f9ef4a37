"""Batches of an epoch: every trial once over all ranks, the same for the same seed and epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.data.dataset import TrialSet
from bitllm.data.sampler import epoch_batches
from bitllm.errors import SplitError


@pytest.fixture(scope="module")
def trials_of(store):
    def make(*n_of_subject: int) -> TrialSet:
        index = np.repeat(np.arange(len(n_of_subject)), n_of_subject)
        rows = [(0,)] * len(index)
        return TrialSet(store, store.subjects[: len(n_of_subject)], index, rows, np.zeros(len(index), int))

    return make


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(4, 40), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 5),
)
def test_no_trial_twice_and_none_lost(trials_of, sizes, batch_size, n_ranks, one_subject, epoch):
    trials = trials_of(*sizes)
    per_rank = [
        epoch_batches(
            trials,
            batch_size=batch_size,
            seed=3,
            epoch=epoch,
            one_subject=one_subject,
            rank=rank,
            n_ranks=n_ranks,
        )
        for rank in range(n_ranks)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    assert all(len(batch) for batches in per_rank for batch in batches)
    seen = np.concatenate([batch for batches in per_rank for batch in batches])
    assert sorted(seen.tolist()) == list(range(sum(sizes)))
    if one_subject:
        for together in zip(*per_rank, strict=True):
            assert len(np.unique(trials.subject_index[np.concatenate(together)])) == 1


def test_the_order_follows_from_seed_and_epoch(trials_of):
    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(trials_of(30, 20), batch_size=8, seed=seed, epoch=epoch)
        return np.concatenate(batches).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_fewer_trials_than_ranks_are_refused(trials_of):
    with pytest.raises(SplitError, match="expected at least one trial for each of 4 ranks, found 3"):
        epoch_batches(trials_of(3, 9), batch_size=2, seed=0, epoch=0, one_subject=True, n_ranks=4)
