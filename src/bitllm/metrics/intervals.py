"""Intervals over images: the bootstrap for a score, random halves of the images for a difference of two systems.

Everything is computed from per-image numbers that can be summed: a sample of images is a row of counts, and a corpus
score is a function of the sums. So BLEU, which is not a mean, costs no more than a mean.

The interval of a difference consists of its values on random subsets of the images, in which each image is included
with probability one half. If there is no difference and the sign of each image's difference is random, zero is
equally likely to lie between any two adjacent values (Hartigan's typical values). This inverts the exchange test,
which swaps the two systems on random images. A 95 % interval therefore excludes 0 one time in twenty, whatever the
distribution of the differences. For the percentile bootstrap this holds only with many images: for the CIDEr of 48
images (mostly zeros, a few large numbers) it excludes 0 about one time in eleven (``benchmarks/coverage.py``).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from bitllm.errors import DataError

_ROWS_AT_ONCE = 128  # resamplings in memory at a time

Statistic = Callable[[np.ndarray], float]


class Estimate(NamedTuple):
    """A number with its 95 % interval over images and its p-value, if they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Two-sided p-value of no difference."""

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval are known."""
        return self.low is not None and self.high is not None

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval lies above 0; False without an interval."""
        return self.low is not None and self.low > 0

    def shown(self, digits: int = 1, *, sign: bool = False) -> str:
        """The number with its interval, e.g. ``+7.9 [3.3, 12.4]``, with true minus signs."""
        value = _shown(self.value, digits)
        value = f"+{value}" if sign and self.value > 0 else value
        if self.low is None or self.high is None:
            return value
        return f"{value} [{_shown(self.low, digits)}, {_shown(self.high, digits)}]"


def _shown(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")  # adding 0 turns −0 into 0


def sum_by_image(
    values: Shaped[np.ndarray, "n k"], image_ids: Sequence[Hashable] | None
) -> Float[np.ndarray, "images k"]:
    """Sums over the rows of each image, so that trials of one image are resampled together.

    Without ``image_ids`` every row is its own image.
    """
    if image_ids is None:
        return values.astype(np.float64)
    if len(image_ids) != len(values):
        raise DataError(
            f"image ids: expected one for each of {len(values)} rows, found {len(image_ids)}; give one per row"
        )
    places = {image: place for place, image in enumerate(dict.fromkeys(image_ids))}
    sums = np.zeros((len(places), values.shape[1]))
    np.add.at(sums, [places[image] for image in image_ids], values)
    return sums


def bootstrap_mean(
    values: Shaped[np.ndarray, " n"], *, n_boot: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """The mean of one number per image, with its percentile bootstrap interval."""
    return bootstrap_of_sums(_with_count(values), _ratio, n_boot=n_boot, seed=seed, level=level)


def bootstrap_of_sums(
    per_image: Shaped[np.ndarray, "n k"],
    statistic: Statistic,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """A statistic of sums over images, with its percentile bootstrap interval.

    Parameters
    ----------
    per_image
        One row of summable numbers per image.
    statistic
        Function of the column sums over the images of a sample.
    n_boot
        Number of resamplings.
    seed
        Seed; the same seed and number of images give the same resamplings.
    level
        Nominal coverage.

    References
    ----------
    Efron and Tibshirani (1993), "An introduction to the bootstrap", chapter 13.
    """
    draws = [statistic(sums) for sums in resampled_sums(per_image, n_boot=n_boot, seed=seed)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(statistic(per_image.astype(np.float64).sum(axis=0)), float(low), float(high))


def resampled_sums(
    per_image: Shaped[np.ndarray, "n k"], *, n_boot: int, seed: int
) -> Float[np.ndarray, "n_boot k"]:
    """Column sums over images drawn with replacement, one row per resampling."""

    def weights(rng: np.random.Generator, rows: int, n: int) -> Int[np.ndarray, "rows n"]:
        return _times_drawn(rng.integers(0, n, size=(rows, n)), n)

    return _weighted_sums(per_image, weights, n_draws=n_boot, seed=seed)


def sums_over_halves(
    per_image: Shaped[np.ndarray, "n k"], *, n_draws: int, seed: int
) -> Float[np.ndarray, "n_draws k"]:
    """Column sums over random subsets that contain each image with probability ½; the empty subset is never drawn.

    The same seed and number of images give the same subsets.
    """

    def weights(rng: np.random.Generator, rows: int, n: int) -> Int[np.ndarray, "rows n"]:
        chosen = rng.integers(0, 2, size=(rows, n))
        while (empty := ~chosen.any(axis=1)).any():
            chosen[empty] = rng.integers(0, 2, size=(int(empty.sum()), n))
        return chosen

    return _weighted_sums(per_image, weights, n_draws=n_draws, seed=seed)


def _weighted_sums(
    per_image: Shaped[np.ndarray, "n k"],
    weights: Callable[[np.random.Generator, int, int], Int[np.ndarray, "rows n"]],
    *,
    n_draws: int,
    seed: int,
) -> Float[np.ndarray, "n_draws k"]:
    """Column sums with random weights of the images, computed in blocks of draws."""
    n = _count_images(per_image)
    rng = np.random.default_rng(seed)
    values = per_image.astype(np.float64)
    starts = range(0, n_draws, _ROWS_AT_ONCE)
    rows = [min(_ROWS_AT_ONCE, n_draws - start) for start in starts]
    return np.concatenate([weights(rng, n_rows, n).astype(np.float64) @ values for n_rows in rows])


def paired_difference(
    a: Shaped[np.ndarray, " n"], b: Shaped[np.ndarray, " m"], n_draws: int = 1000, seed: int = 0
) -> Estimate:
    """Difference between the means of two systems with one number per image each, with a 95 % interval.

    Raises
    ------
    DataError
        If the systems do not have the same number of images, or fewer than two.
    """
    return paired_difference_of_sums(_with_count(a), _with_count(b), _ratio, n_draws=n_draws, seed=seed)


def paired_difference_of_sums(
    a: Shaped[np.ndarray, "n k"],
    b: Shaped[np.ndarray, "m k"],
    statistic: Statistic,
    *,
    n_draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Difference of a statistic of sums between two systems; each draw uses the same images for both.

    References
    ----------
    Hartigan (1969), "Using subsample values as typical values", JASA 64. Exact for a mean if the difference of each
    image has either sign with equal probability, and for a ratio of sums if both systems have the same denominators;
    an approximation for BLEU.
    """
    if len(a) != len(b):
        raise DataError(
            f"paired difference: expected the same images in both systems, found {len(a)} and {len(b)}; "
            "score both on the same images"
        )
    sums_a = sums_over_halves(a, n_draws=n_draws, seed=seed)
    # The same seed gives the same subsets for both systems: this makes the difference paired.
    sums_b = sums_over_halves(b, n_draws=n_draws, seed=seed)
    draws = np.array([statistic(x) - statistic(y) for x, y in zip(sums_a, sums_b, strict=True)])
    observed = statistic(a.sum(axis=0)) - statistic(b.sum(axis=0))
    return difference_from_draws(observed, draws, n_images=len(a), level=level)


def difference_from_draws(
    observed: float, draws: Float[np.ndarray, " n_draws"], *, n_images: int, level: float = 0.95
) -> Estimate:
    """Interval and p-value of an observed difference from its values on the subsets of :func:`sums_over_halves`.

    With few images (five at 95 %) or few draws the p-value cannot be small enough for an interval of this level. The
    interval then contains all draws, and is extended to 0.
    """
    # The empty subset has no mean and is never drawn. It belongs to the 2^n subsets of the exact test, where it
    # counts in both tails, so it is added to the tail probability.
    empty = 0.5**n_images
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (empty + (1 - empty) * (tail + 1) / (len(draws) + 1)))
    place = math.floor((len(draws) + 1) * ((1 - level) / 2 - empty) / (1 - empty))
    ordered = np.sort(draws)
    if place < 1:
        return Estimate(float(observed), min(float(ordered[0]), 0.0), max(float(ordered[-1]), 0.0), p)
    return Estimate(float(observed), float(ordered[place - 1]), float(ordered[-place]), p)


def _count_images(per_image: Shaped[np.ndarray, "n k"]) -> int:
    if len(per_image) < 2:
        raise DataError(f"interval: expected at least 2 images, found {len(per_image)}; evaluate more images")
    return len(per_image)


def _with_count(values: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    return np.stack([values.astype(np.float64), np.ones(len(values))], axis=1)


def _ratio(sums: Shaped[np.ndarray, "2"]) -> float:
    return float(sums[0] / sums[1])


def _times_drawn(drawn: Int[np.ndarray, "rows n"], n: int) -> Int[np.ndarray, "rows n"]:
    rows = len(drawn)
    flat = (drawn + n * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * n).reshape(rows, n)
