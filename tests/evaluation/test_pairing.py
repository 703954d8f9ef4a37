from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitllm.errors import DataError
from bitllm.evaluation.pairing import ADJACENT_TRIALS, exchange, neighbors, other_images


def some_of(held_out, rows, nsd_id):
    """The held-out subject with these rows alone."""
    index = np.zeros(len(rows), dtype=np.int64)
    trials = replace(held_out.trials, rows=rows, nsd_id=nsd_id, subject_index=index)
    return replace(held_out, trials=trials)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=8, unique=True), st.integers(0, 99))
def test_neighbors_are_those_of_a_loop_over_trials(rows, seed):
    rng = np.random.default_rng(seed)
    sessions = np.sort(rng.integers(0, 3, 40))
    items = [tuple(sorted({row, int(rng.integers(0, 40))})) for row in rows]
    found = neighbors(items, items[:3], sessions)
    for a, one in enumerate(items):
        for b, other in enumerate(items[:3]):
            near = any(
                sessions[i] == sessions[j] and abs(i - j) <= ADJACENT_TRIALS for i in one for j in other
            )
            assert found[a, b] == near


def test_every_row_is_used_once_and_given_to_another_image_that_is_no_neighbor(held_out):
    found = other_images(held_out, seed=1)
    n = len(held_out.nsd_id)
    assert sorted(found.order) == list(range(n))
    assert (held_out.nsd_id[found.order] != held_out.nsd_id).all()
    near = neighbors(held_out.trials.rows, held_out.trials.rows, held_out.sessions)
    assert found.n_adjacent == near[np.arange(n), found.order].sum() == 0
    assert not np.array_equal(found.order, other_images(held_out, seed=2).order)


def test_where_only_neighbors_are_left_they_are_exchanged_and_counted(held_out):
    two = some_of(held_out, [(0,), (1,)], held_out.nsd_id[:2])
    found = other_images(two, seed=0)
    assert found.order.tolist() == [1, 0]
    assert found.n_adjacent == 2


def test_one_image_cannot_be_exchanged(held_out):
    one = some_of(held_out, [(0,), (9,)], np.repeat(held_out.nsd_id[:1], 2))
    with pytest.raises(DataError, match="expected images that can be exchanged, found 1 in 2 rows of subj08"):
        other_images(one, seed=0)


def test_an_exchange_that_is_impossible_is_none():
    assert exchange(np.ones((3, 3), dtype=bool), np.random.default_rng(0)) is None
