"""The effect of a claim with its interval over brains, models and images, and the verdict by a rule set beforehand.

Every image of every world gives one paired difference: both arms have the same brain, model seed and image. Two
intervals are made, and the wider one counts. One is Student's t of the brains' mean differences: brains, not images,
are what a verdict generalises over. The other is a bootstrap of model seeds and images (the same ones for all model
seeds) within the brains at hand, for brains whose means happen to lie close together. Of one brain there is only the
second, and no verdict.

A bootstrap in three levels (brains, then model seeds, then images) would count the spread within brains twice, as the
brains' means have it already. Of 300 experiments without an effect on normal numbers, an interval that left out 0 came
out in none with such a bootstrap of three brains, and in 0 to 3 % (three brains) or 1 to 5 % (five) with the wider of
the two; the more the brains differ, the more often.

The rule: *borne out* where the interval lies above 0; *not borne out* where it lies below the claim's negligible
difference; *undecided* otherwise, and where there are fewer than three brains.
"""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from bitllm.errors import DataError
from bitllm.experiments.config import Arm, Claim

Verdict = Literal["borne out", "not borne out", "undecided"]

LEAST_BRAINS = 3
_KEYS = ["simulator_seed", "model_seed", "nsd_id"]


class Effect(NamedTuple):
    """Both arms' means and their paired difference."""

    more: float
    less: float
    difference: float
    low: float
    high: float
    p: float
    """Two-sided p-value of no difference: the larger one of the two intervals'."""
    n_brains: int
    n_models: int
    """Model seeds on each brain."""
    n_images: int
    """Images of each brain."""


def effect_of(claim: Claim, rows: pd.DataFrame, *, n_draws: int = 2000, seed: int = 0) -> Effect:
    """The paired effect of a claim in the rows of an experiment.

    Raises
    ------
    DataError
        If an arm has no rows, or the two arms do not have the same images.
    """
    arms = [_values(rows, arm, claim.measure) for arm in (claim.more, claim.less)]
    if not arms[0].index.equals(arms[1].index):
        raise DataError(
            f"claim `{claim.text}`: expected the same worlds and images for {claim.more} and {claim.less}, found "
            f"{len(arms[0])} and {len(arms[1])} rows that do not match; run the experiment again"
        )
    by_brain = _by_brain(arms[0] - arms[1])
    difference = float(np.mean([values.mean() for values in by_brain]))
    low, high, p = _within_brains(by_brain, n_draws=n_draws, seed=seed)
    if len(by_brain) > 1:
        means = np.array([values.mean() for values in by_brain])
        half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
        low, high = min(low, difference - half), max(high, difference + half)
        p = max(p, float(stats.ttest_1samp(means, 0.0).pvalue)) if means.std() > 0 else p
    n_models, n_images = by_brain[0].shape
    return Effect(
        more=float(arms[0].mean()),
        less=float(arms[1].mean()),
        difference=difference,
        low=float(low),
        high=float(high),
        p=p,
        n_brains=len(by_brain),
        n_models=n_models,
        n_images=n_images,
    )


def verdict_of(effect: Effect, negligible: float) -> Verdict:
    """The verdict on a claim that the difference is positive."""
    if effect.n_brains < LEAST_BRAINS:
        return "undecided"
    if effect.low > 0:
        return "borne out"
    return "not borne out" if effect.high < negligible else "undecided"


def draw_means(
    by_brain: list[Float[np.ndarray, "models images"]], *, n_draws: int, seed: int
) -> Float[np.ndarray, " n_draws"]:
    """Mean over all brains of each one's mean over models and images drawn with replacement."""
    rng = np.random.default_rng(seed)
    means = np.zeros(n_draws)
    for values in by_brain:
        n_models, n_images = values.shape
        models = rng.multinomial(n_models, np.full(n_models, 1 / n_models), size=n_draws) / n_models
        images = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=n_draws) / n_images
        means += ((models @ values) * images).sum(axis=1)
    return means / len(by_brain)


def _within_brains(by_brain: list[np.ndarray], *, n_draws: int, seed: int) -> tuple[float, float, float]:
    """Ends of the percentile interval, and p."""
    draws = draw_means(by_brain, n_draws=n_draws, seed=seed)
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (n_draws + 1))


def _values(rows: pd.DataFrame, arm: Arm, measure: str) -> pd.Series:
    chosen = rows[(rows["system"] == arm.system) & (rows["control"] == arm.control)]
    if chosen.empty:
        raise DataError(f"results: expected rows of {arm}, found none; run the experiment again")
    return chosen.set_index(_KEYS)[measure].sort_index()


def _by_brain(values: pd.Series) -> list[np.ndarray]:
    """One array of models × images for each brain."""
    return [
        part.droplevel("simulator_seed").unstack("nsd_id").to_numpy(dtype=np.float64)
        for _, part in values.groupby(level="simulator_seed")
    ]
