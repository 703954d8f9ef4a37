"""Retrieval and N-way identification from a matrix of similarities, with chance levels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from bitllm.errors import DataError
from bitllm.metrics.intervals import Estimate, resampled_sums, sum_by_image


class Retrieval(NamedTuple):
    """Rank of the correct item in the gallery, over all queries."""

    r_at_1: float
    """Fraction (0 to 1) of queries whose target comes first."""
    r_at_5: float
    """Fraction of queries whose target is among the first five."""
    r_at_10: float
    """Fraction of queries whose target is among the first ten."""
    median_rank: float
    """Median of the target's rank; 1 is the best."""
    n: int
    """Size of the gallery."""
    chance_r_at_10: float
    """R@10 of random similarities."""
    chance_median_rank: float
    """Median rank of random similarities."""
    n_queries: int
    """Number of queries."""
    r_at_10_standard_error: float
    """Bootstrap standard error of R@10 over the images (targets); 0 with a single one."""
    r_at_10_interval: Estimate
    """95 % bootstrap interval of R@10 over the images; all of [0, 1] with a single one."""


def target_ranks(
    similarity: Float[np.ndarray, "queries gallery"],
    target: Int[np.ndarray, " targets"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " queries"]:
    """Rank of each query's target, 1 for the best. Ties are broken at random.

    Otherwise a query without information (all similarities equal) would always rank its target first, or always
    last.
    """
    n_queries, n_gallery = similarity.shape
    if n_queries == 0 or len(target) != n_queries:
        raise DataError(
            f"retrieval: expected a target for each query, found {len(target)} for {n_queries}; give one per query"
        )
    if target.min() < 0 or target.max() >= n_gallery:
        raise DataError(
            f"retrieval: expected targets from 0 to {n_gallery - 1} (indices in the gallery), "
            f"found {target.min()} to {target.max()}; check gallery and targets"
        )
    if np.isnan(similarity).any():
        raise DataError(
            f"retrieval: expected numbers, found {int(np.isnan(similarity).sum())} similarities that are not "
            "a number; look for zero or infinite embeddings"
        )
    own = similarity[np.arange(n_queries), target][:, None]
    n_better = (similarity > own).sum(axis=1)
    n_equal = (similarity == own).sum(axis=1) - 1
    return (1 + n_better + rng.integers(0, n_equal + 1)).astype(np.int64)


def retrieval(
    similarity: Float[np.ndarray, "queries gallery"],
    target: Int[np.ndarray, " queries"],
    rng: np.random.Generator,
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> Retrieval:
    """Recall at 1, 5 and 10 and the median rank of each query's target in the gallery.

    Parameters
    ----------
    similarity
        Similarity of every query (such as a trial) to every item of the gallery; larger is more similar.
    target
        Index of each query's target in the gallery. Queries with the same target (trials of one image) are
        resampled together for the interval.
    rng
        Random generator for the order of ties.
    n_boot, seed
        Number of resamplings and seed of the bootstrap over images.

    Raises
    ------
    DataError
        If a similarity is not a number, a target lies outside the gallery, or there is no query.
    """
    ranks = target_ranks(similarity, target, rng)
    n = similarity.shape[1]
    error, interval = _spread((ranks <= 10).astype(np.float64), target, n_boot, seed)
    return Retrieval(
        r_at_1=float((ranks <= 1).mean()),
        r_at_5=float((ranks <= 5).mean()),
        r_at_10=float((ranks <= 10).mean()),
        median_rank=float(np.median(ranks)),
        n=n,
        chance_r_at_10=min(10, n) / n,
        chance_median_rank=(n + 1) / 2,
        n_queries=len(ranks),
        r_at_10_standard_error=error,
        r_at_10_interval=interval,
    )


def identification_chances(
    ranks: Int[np.ndarray, " queries"], n_gallery: int, n_ways: int
) -> Float[np.ndarray, " queries"]:
    """For each query, the probability that its target beats ``n_ways`` − 1 distractors from the gallery.

    Parameters
    ----------
    ranks
        From :func:`target_ranks`.
    n_gallery
        Size of the gallery.
    n_ways
        Number of items to choose among, including the target; at most ``n_gallery``.
    """
    drawn = np.arange(n_ways - 1)[None, :]
    n_worse = n_gallery - ranks[:, None]
    return (np.maximum(n_worse - drawn, 0) / (n_gallery - 1 - drawn)).prod(axis=1)


def _spread(
    hits: Shaped[np.ndarray, " queries"], target: Int[np.ndarray, " queries"], n_boot: int, seed: int
) -> tuple[float, Estimate]:
    sums = sum_by_image(np.stack([hits, np.ones(len(hits))], axis=1), target.tolist())
    if len(sums) < 2:
        return 0.0, Estimate(float(hits.mean()), 0.0, 1.0)
    drawn = resampled_sums(sums, n_boot=n_boot, seed=seed)
    fractions = drawn[:, 0] / drawn[:, 1]
    low, high = np.quantile(fractions, [0.025, 0.975])
    return float(fractions.std(ddof=1)), Estimate(float(hits.mean()), float(low), float(high))
