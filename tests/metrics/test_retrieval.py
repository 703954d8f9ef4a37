import itertools

import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.metrics.retrieval import identification_chances, retrieval, target_ranks


def by_a_loop(similarity, target):
    ranks = []
    for row, place in zip(similarity, target, strict=True):
        ranks.append(1 + sum(value > row[place] for value in row))
    return np.array(ranks)


def test_ranks_and_recalls_equal_a_loop(rng):
    similarity, target = rng.standard_normal((60, 40)), rng.integers(0, 40, size=60)
    ranks = by_a_loop(similarity, target)
    found = retrieval(similarity, target, rng)
    assert np.array_equal(target_ranks(similarity, target, rng), ranks)
    assert found.r_at_1 == np.mean(ranks <= 1)
    assert found.r_at_5 == np.mean(ranks <= 5)
    assert found.r_at_10 == np.mean(ranks <= 10)
    assert found.median_rank == np.median(ranks)
    assert (found.n, found.n_queries, found.chance_r_at_10, found.chance_median_rank) == (40, 60, 0.25, 20.5)


def test_a_query_that_carries_nothing_is_at_chance(rng):
    found = retrieval(np.zeros((4000, 100)), np.arange(4000) % 100, rng, n_boot=50)
    assert found.r_at_10 == pytest.approx(0.1, abs=0.02)  # ±4 standard errors
    assert found.median_rank == pytest.approx(50.5, abs=4)


def test_ties_are_shared_out_evenly(rng):
    similarity = np.tile([0.0, 1.0, 1.0, 2.0, 1.0], (3000, 1))
    ranks = target_ranks(similarity, np.full(3000, 1), rng)
    shares = np.bincount(ranks, minlength=6)[1:] / 3000
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=0.04)


def test_trials_of_one_image_widen_the_interval_as_one_image(rng):
    ranks_of_images = rng.standard_normal((50, 50))
    once = retrieval(ranks_of_images, np.arange(50), rng)
    thrice = retrieval(np.repeat(ranks_of_images, 3, axis=0), np.repeat(np.arange(50), 3), rng)
    assert thrice.r_at_10_standard_error == pytest.approx(once.r_at_10_standard_error)
    expected = np.sqrt(once.r_at_10 * (1 - once.r_at_10) / 50)
    assert once.r_at_10_standard_error == pytest.approx(expected, rel=0.15)
    assert once.r_at_10_interval.low < once.r_at_10 < once.r_at_10_interval.high


def test_one_image_alone_has_no_interval(rng):
    found = retrieval(np.ones((2, 1)), np.zeros(2, dtype=int), rng)
    assert found.r_at_10_interval[1:3] == (0, 1)
    assert found.chance_r_at_10 == 1


def test_identification_equals_all_draws_of_distractors(rng):
    similarity, target = rng.standard_normal((7, 6)), rng.integers(0, 6, size=7)
    ranks = target_ranks(similarity, target, rng)
    for n in (2, 3, 4, 6):
        wins = []
        for row, place in zip(similarity, target, strict=True):
            others = np.delete(row, place)
            wins.append(np.mean([max(drawn) < row[place] for drawn in itertools.combinations(others, n - 1)]))
        assert identification_chances(ranks, 6, n) == pytest.approx(np.array(wins))


def test_identification_of_random_ranks_is_chance():
    for n in (2, 10, 50, 100):
        assert identification_chances(np.arange(1, 101), 100, n).mean() == pytest.approx(1 / n)


def test_what_is_no_similarity_matrix_is_refused(rng):
    similarity = np.zeros((2, 3))
    with pytest.raises(DataError, match="expected a target for each query, found 1 for 2"):
        target_ranks(similarity, np.zeros(1, dtype=int), rng)
    with pytest.raises(DataError, match=r"expected targets from 0 to 2 .*, found 0 to 3"):
        target_ranks(similarity, np.array([0, 3]), rng)
    similarity[0, 0] = np.nan
    with pytest.raises(DataError, match="found 1 similarities that are not a number"):
        target_ranks(similarity, np.array([0, 1]), rng)
