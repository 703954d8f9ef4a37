from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bitllm.data.dataset import EpochOrder


@given(st.integers(1, 40), st.integers(0, 1000))
def test_each_epoch_is_a_permutation_of_all_examples(n_examples, seed):
    order = EpochOrder(n_examples, 3 * n_examples, seed=seed)
    items = [order[item] for item in range(len(order))]
    for epoch in range(3):
        own = items[epoch * n_examples : (epoch + 1) * n_examples]
        assert {number for number, _ in own} == {epoch}
        assert sorted(index for _, index in own) == list(range(n_examples))


def test_epochs_and_seeds_have_orders_of_their_own_and_a_seed_always_the_same():
    def epoch_of(seed, epoch):
        order = EpochOrder(50, 200, seed=seed)
        return [order[50 * epoch + place][1] for place in range(50)]

    assert epoch_of(1, 0) == epoch_of(1, 0)
    assert epoch_of(1, 0) != epoch_of(1, 1)
    assert epoch_of(1, 0) != epoch_of(2, 0)


def test_an_item_does_not_depend_on_what_was_asked_before():
    forward, backward = EpochOrder(7, 21, seed=0), EpochOrder(7, 21, seed=0)
    items = [forward[item] for item in range(21)]
    assert [backward[item] for item in reversed(range(21))] == items[::-1]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 1000))
def test_grouping_by_length_keeps_every_example_and_brings_like_lengths_together(n, batch_size, seed):
    def lengths(epoch):
        return np.random.default_rng([seed, epoch]).integers(5, 30, n)

    order = EpochOrder(n, 2 * n, seed=seed, batch_size=batch_size, lengths=lengths)
    for epoch in range(2):
        indices = [order[epoch * n + place][1] for place in range(n)]
        assert sorted(indices) == list(range(n))
        if batch_size <= n <= 16 * batch_size:  # one pool: batches hold neighbors of the sorted lengths
            batches = [lengths(epoch)[indices[i : i + batch_size]] for i in range(0, n, batch_size)]
            bounds = sorted((batch.min(), batch.max()) for batch in batches)
            if n % batch_size == 0:
                assert all(high <= low for (_, high), (low, _) in pairwise(bounds))


def test_groups_stand_together_within_a_batch_and_batches_hold_the_same_examples():
    groups = np.random.default_rng(0).integers(0, 3, 10)
    plain, grouped = (EpochOrder(10, 24, seed=1, batch_size=4, groups=given) for given in (None, groups))
    for start in range(0, 24, 4):
        ours = [grouped[start + place] for place in range(4)]
        assert sorted(ours) == sorted(plain[start + place] for place in range(4))
        assert [groups[index] for _, index in ours] == sorted(groups[index] for _, index in ours)
