"""The effect of a claim with its interval over brains, models and images, and the verdict by a rule set beforehand.

Every image of every world gives one paired difference: both arms have the same brain, model seed and image. The
interval is a bootstrap in three levels: brains are drawn, then model seeds on each, then images of each (the same ones
for all its model seeds). So brains, not images, are what a verdict generalises over.

A bootstrap of few brains is too narrow: their variance is missed by (k − 1)/k, and three of them do not have a normal's
tails. So the draws are spread about the observed effect by √(k/(k − 1)) · t(k − 1)/z. Of one brain no spread is known:
then the interval is over models and images alone, and there is no verdict.

The rule: *borne out* where the interval lies above 0; *not borne out* where it lies below the claim's negligible
difference; *undecided* otherwise, and where there are fewer than three brains.

References
----------
Hesterberg (2015), "What teachers should know about the bootstrap", The American Statistician 69: the expansion of
percentile intervals for small samples. His is of the levels of a percentile interval, ours of the draws themselves.
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
    """Two-sided p-value of no difference, from the same draws."""
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
    draws = spread(draw_means(by_brain, n_draws=n_draws, seed=seed), difference, len(by_brain))
    low, high = np.quantile(draws, [0.025, 0.975])
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    n_models, n_images = by_brain[0].shape
    return Effect(
        more=float(arms[0].mean()),
        less=float(arms[1].mean()),
        difference=difference,
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (tail + 1) / (n_draws + 1)),
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
    """Means over brains drawn with replacement, over models drawn within each, over images drawn within each."""
    rng = np.random.default_rng(seed)
    k = len(by_brain)
    means = np.empty((n_draws, k))
    brains = rng.integers(0, k, size=(n_draws, k))
    for place in range(k):
        for brain, values in enumerate(by_brain):
            chosen = np.flatnonzero(brains[:, place] == brain)
            n_models, n_images = values.shape
            models = rng.multinomial(n_models, np.full(n_models, 1 / n_models), size=len(chosen)) / n_models
            images = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=len(chosen)) / n_images
            means[chosen, place] = np.einsum("dm,mi,di->d", models, values, images, optimize=True)
    return means.mean(axis=1)


def spread(
    draws: Float[np.ndarray, " n_draws"], observed: float, n_brains: int
) -> Float[np.ndarray, " n_draws"]:
    """Draws spread about the observed effect for the small number of brains; as they are for one brain."""
    if n_brains < 2:
        return draws
    factor = np.sqrt(n_brains / (n_brains - 1)) * stats.t.ppf(0.975, n_brains - 1) / stats.norm.ppf(0.975)
    return observed + factor * (draws - observed)


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
