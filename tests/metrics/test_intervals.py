import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from bitllm.errors import DataError
from bitllm.metrics.intervals import (
    bootstrap_mean,
    bootstrap_of_sums,
    difference_from_draws,
    paired_difference,
    paired_difference_of_sums,
    resampled_sums,
    sum_by_image,
    sums_over_halves,
)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says(rng):
    n_trials = 200
    intervals = [bootstrap_mean(rng.exponential(size=80), n_boot=300, seed=k) for k in range(n_trials)]
    covered = sum(one.low <= 1 <= one.high for one in intervals) / n_trials
    # percentile intervals of 80 skewed numbers cover a little less than 95 %; ±3 standard errors
    assert 0.87 <= covered <= 0.99


def test_the_interval_of_a_mean_is_as_wide_as_theory_says(rng):
    values = rng.standard_normal(400)
    _, low, high, _ = bootstrap_mean(values, n_boot=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_resampled_sums_equal_a_loop_over_draws():
    per_image = np.arange(12).reshape(4, 3)
    sums = resampled_sums(per_image, n_boot=300, seed=5)
    rng, expected = np.random.default_rng(5), []
    for size in (128, 128, 44):
        expected += [per_image[row].sum(axis=0) for row in rng.integers(0, 4, size=(size, 4))]
    assert np.array_equal(sums, np.array(expected))


def test_the_same_seed_gives_the_same_interval(rng):
    values = rng.standard_normal(30)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_a_statistic_of_sums_need_not_be_a_mean(rng):
    per_image = rng.integers(1, 9, size=(200, 2))
    _, low, high, _ = bootstrap_of_sums(per_image, lambda sums: float(sums[0] / sums[1]), n_boot=500)
    assert low < per_image[:, 0].sum() / per_image[:, 1].sum() < high


def test_pairing_finds_a_small_shift_that_two_intervals_would_hide(rng):
    b = 10 * rng.standard_normal(100)
    a = b + 0.5 + 0.5 * rng.standard_normal(100)
    found = paired_difference(a, b)
    assert found.low > 0
    assert found.value == pytest.approx((a - b).mean())
    assert found.p == pytest.approx(2 / 1001)
    reverse = paired_difference(b, a)
    assert reverse.value == -found.value
    assert reverse.high == pytest.approx(-found.low)


def test_random_halves_are_sums_over_images_that_are_in_or_out():
    sums = sums_over_halves(2 ** np.arange(10).reshape(10, 1), n_draws=4000, seed=5)[:, 0].astype(int)
    assert sums.min() == 1  # never the empty one
    assert sums.max() == 1023  # each at most once
    shares = [(sums >> place & 1).mean() for place in range(10)]
    assert shares == pytest.approx([0.5] * 10, abs=0.04)  # 5 standard errors


def test_the_p_value_is_that_of_exchanging_the_two_systems_on_every_image(rng):
    for shift in (0.1, 0.4, 0.8):
        a, b = rng.standard_normal((2, 10))
        a += shift
        exact = permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        assert paired_difference(a, b, n_draws=20_000).p == pytest.approx(exact.pvalue, abs=0.015)


def null_scores(rng, n):
    """As CIDEr of captions of no brain: mostly 0, a few large."""
    return np.where(rng.random((2, n)) < 0.25, rng.exponential(size=(2, n)) ** 2, 0.0)


def test_without_a_difference_one_interval_in_twenty_leaves_out_zero_however_skewed_the_scores(rng):
    n_times, out = 800, {"halves": 0, "bootstrap": 0}
    for seed in range(n_times):
        a, b = null_scores(rng, 30)
        found = paired_difference(a, b, n_draws=119, seed=seed)
        out["halves"] += found.low > 0 or found.high < 0
        _, low, high, _ = bootstrap_mean(a - b, n_boot=119, seed=seed)
        out["bootstrap"] += low > 0 or high < 0
    # 5 % and three standard errors; the percentile bootstrap lies beyond them, so that the test can tell
    assert out["halves"] / n_times <= 0.05 + 3 * (0.05 * 0.95 / n_times) ** 0.5 < out["bootstrap"] / n_times


@given(st.integers(2, 40), st.integers(0, 10_000), st.sampled_from([7, 60, 200, 999]))
def test_the_interval_leaves_out_zero_where_p_is_at_most_a_twentieth_and_nowhere_else(n, seed, n_draws):
    rng = np.random.default_rng(seed)
    a, b = np.round(2 * rng.standard_normal((2, n)))  # ties too
    found = paired_difference(a + 1, b, n_draws=n_draws, seed=seed)
    assert (found.low > 0 or found.high < 0) == (found.p <= 0.05)


def test_five_images_are_too_few_for_an_interval_and_theirs_reaches_to_zero():
    five, six = (np.arange(1.0, n + 1) for n in (5, 6))
    found = paired_difference(five, np.zeros(5))
    assert (found.value, found.low, found.high) == (3, 0, 5)
    assert found.p == pytest.approx(2 / 32, abs=0.003)
    found = paired_difference(six, np.zeros(6))
    assert found.low > 0
    assert found.p == pytest.approx(2 / 64, abs=0.003)


def test_so_few_draws_that_no_p_is_small_give_an_interval_that_reaches_to_zero():
    found = difference_from_draws(2.0, np.array([1.0, 2.0, 3.0]), n_images=100)
    assert found == (2.0, 0.0, 3.0, pytest.approx(0.5))


def test_two_equal_systems_differ_by_nothing():
    values = np.arange(10.0)
    assert paired_difference(values, values) == (0, 0, 0, 1)


def test_trials_of_one_image_are_added_up():
    values = np.array([[1, 10], [2, 20], [4, 40]])
    assert sum_by_image(values, ["x", "y", "x"]).tolist() == [[5, 50], [2, 20]]
    assert sum_by_image(values, None).tolist() == values.tolist()


def test_too_few_or_unequal_images_are_refused():
    with pytest.raises(DataError, match="expected at least 2 images, found 1"):
        bootstrap_mean(np.ones(1))
    with pytest.raises(DataError, match="expected the same images in both systems, found 3 and 2"):
        paired_difference(np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="expected one for each of 3 rows, found 1"):
        sum_by_image(np.ones((3, 1)), ["x"])
    with pytest.raises(DataError, match="found 2 and 4"):
        paired_difference_of_sums(np.ones((2, 2)), np.ones((4, 2)), lambda sums: float(sums[0]))
