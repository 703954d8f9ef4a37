import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.metrics.intervals import (
    bootstrap_mean,
    bootstrap_of_sums,
    paired_difference,
    paired_difference_of_sums,
    resampled_sums,
    sum_by_image,
)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says(rng):
    n_trials = 200
    intervals = [bootstrap_mean(rng.exponential(size=80), n_boot=300, seed=k) for k in range(n_trials)]
    covered = sum(low <= 1 <= high for low, high in intervals) / n_trials
    # percentile intervals of 80 skewed numbers cover a little less than 95 %; ±3 standard errors
    assert 0.87 <= covered <= 0.99


def test_the_interval_of_a_mean_is_as_wide_as_theory_says(rng):
    values = rng.standard_normal(400)
    low, high = bootstrap_mean(values, n_boot=4000)
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
    low, high = bootstrap_of_sums(per_image, lambda sums: float(sums[0] / sums[1]), n_boot=500)
    assert low < per_image[:, 0].sum() / per_image[:, 1].sum() < high


def test_pairing_finds_a_small_shift_that_two_intervals_would_hide(rng):
    b = 10 * rng.standard_normal(100)
    a = b + 0.5 + 0.5 * rng.standard_normal(100)
    found = paired_difference(a, b)
    assert found.low > 0
    assert found.difference == pytest.approx((a - b).mean())
    assert found.p == pytest.approx(2 / 1001)
    reverse = paired_difference(b, a)
    assert reverse.difference == -found.difference
    assert reverse.high == pytest.approx(-found.low)


def test_without_a_difference_p_values_are_uniform(rng):
    p = [paired_difference(*rng.standard_normal((2, 40)), n_boot=200, seed=k).p for k in range(200)]
    # the bootstrap's tails are a little light at 40 images: 5 % asked for, up to 11 % let pass
    assert np.mean(np.array(p) <= 0.05) <= 0.11
    assert 0.35 <= np.median(p) <= 0.65


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
