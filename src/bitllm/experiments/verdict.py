"""A claim, its effect with an interval over brains, models and images, and the verdict by a predefined rule.

Both arms have the same brains, model seeds and images, so each image of each world gives one paired difference (for
corpus BLEU-4, each resample of a world's images). A claim of a *factor* is tested as the difference *more − factor ×
less*. Two intervals are computed, and the wider one counts: Student's t over the brains' mean differences, because a
verdict generalizes over brains, not images; and a bootstrap over model seeds and images (the same images for all
model seeds) within the given brains, in case the brains' means are close by chance. With a single brain there is
only the second interval, and no verdict.

A bootstrap over three levels (brains, then model seeds, then images) would count the variance within brains twice,
because the brains' means already contain it. In 300 simulated experiments without an effect (normal numbers), the
interval from such a bootstrap of three brains never excluded 0. The wider of the two intervals excluded 0 in 0 to 3
% (three brains) or 1 to 5 % (five brains), more often the more the brains differ.

The rule: *borne out* if the interval is above 0; *not borne out* if it is below the claim's negligible difference;
*undecided* otherwise, and with fewer than three brains.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field, model_validator
from scipy import stats

from bitllm.config import StrictConfig
from bitllm.errors import DataError
from bitllm.metrics.bleu import bleu_from_counts
from bitllm.metrics.intervals import Estimate

Numbers = Float[np.ndarray, "_models _images _numbers"]
Verdict = Literal["borne out", "not borne out", "undecided"]
Measure = Literal[
    "cider", "rouge_l", "bleu_4", "bits", "length", "recall_at_10", "recall_at_10_linear", "cosine_zero",
    "object_f1", "caption_recall_at_10", "accuracy", "answer_bits",
]  # fmt: skip

LEAST_BRAINS = 3
_KEYS = ["simulator_seed", "model_seed", "nsd_id"]

RETRIEVED = ("real", "permuted", "zero", "shuffle")
"""Inputs of the evaluation of an encoder alone."""
MEASURED_UNDER: dict[str, tuple[str, ...]] = {
    "bits": ("real",),
    "answer_bits": ("real",),
    "cosine_zero": ("real",),
    "recall_at_10": RETRIEVED,
    "recall_at_10_linear": RETRIEVED,
}
"""Inputs for which a measure exists, if not for all."""
ENCODER_MEASURES = ("cosine_zero", "recall_at_10", "recall_at_10_linear")
"""Measures of an encoder alone, in experiments with diagnostics."""


CAPTION_MEASURES = ("object_f1", "caption_recall_at_10")
"""Measures of captions against the image, in experiments with ``verified``."""
ANSWER_MEASURES = ("accuracy", "answer_bits")
"""Measures of the answers to questions about the image, for systems that were trained on the task."""
TYPE_OF_TASK = ": "
"""Separates a task from one of its types of questions."""


class Arm(StrictConfig):
    """One side of a comparison: a system with one input."""

    system: str
    """Name of the system."""
    control: str = "real"
    """Input: real, permuted, llm_alone or one of the experiment's controls; or a difference such as `real - permuted`,
    image by image."""

    @property
    def inputs(self) -> list[str]:
        """The inputs that it needs."""
        return self.control.split(" - ")

    def __str__(self) -> str:
        return self.system if self.control == "real" else f"{self.system} ({self.control})"


class Claim(StrictConfig):
    """A claim, written before the run: one arm has more of a measure than another."""

    text: str
    """The claim in words."""
    more: Arm
    """The arm that should have more."""
    less: Arm
    """The other arm."""
    measure: Measure = "cider"
    """The measure, per image (BLEU-4: of all images of a world)."""
    task: str | None = Field(default=None, exclude_if=lambda task: task is None)
    """The task of the questions, or ``TASK: TYPE`` for one type of them, for a measure of answers."""
    factor: float = Field(default=1.0, gt=0)
    """The first arm should have this many times as much."""
    negligible: float = Field(default=0.0, ge=0)
    """Largest difference that counts as none: the claim is not borne out if the interval is below it."""
    poster: str
    """The poster's figures, on NSD."""

    @model_validator(mode="after")
    def _names_a_task(self) -> "Claim":
        if (self.measure in ANSWER_MEASURES) != (self.task is not None):
            found = "none" if self.task is None else f"`{self.task}` with {self.measure}"
            raise ValueError(
                f"`task`: expected a task of questions with {' or '.join(ANSWER_MEASURES)} and with no other measure, "
                f"found {found}; change one of them"
            )
        return self

    @property
    def column(self) -> str:
        """The column of the rows with its numbers."""
        return "bleu_counts" if self.measure == "bleu_4" else column_of(self.measure, self.task)


def column_of(measure: str, task: str | None) -> str:
    """The column of a measure, for answers with the task: ``accuracy count``."""
    return measure if task is None else f"{measure} {task}"


class Effect(NamedTuple):
    """Means of both arms and their paired difference."""

    more: float
    less: float
    difference: Estimate
    """*more − factor × less*; p is the larger one of the two intervals."""
    n_brains: int
    n_models: int
    """Model seeds on each brain."""
    n_images: int
    """Images of each brain."""
    by_brain: tuple[float, ...] = ()
    """The difference on each brain."""


def effect_of(claim: Claim, rows: pd.DataFrame, *, n_draws: int = 2000, seed: int = 0) -> Effect:
    """The paired effect of a claim in the rows of an experiment."""
    arms = [_numbers(rows, arm, claim.column) for arm in (claim.more, claim.less)]
    if not arms[0].index.equals(arms[1].index):
        raise DataError(
            f"claim `{claim.text}`: expected the same worlds and images for {claim.more} and {claim.less}, found "
            f"{len(arms[0])} and {len(arms[1])} rows that do not match; run the experiment again"
        )
    value = bleu_4 if claim.measure == "bleu_4" else mean_of
    pairs = list(zip(*(_by_brain(numbers) for numbers in arms), strict=True))
    means = np.array([[_value(numbers, value) for numbers in pair] for pair in pairs])
    by_brain = means[:, 0] - claim.factor * means[:, 1]
    difference = float(by_brain.mean())
    draws = draw_differences(pairs, value, claim.factor, n_draws=n_draws, seed=seed)
    low, high, p = _percentiles(draws)
    if len(pairs) > 1:
        half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(by_brain)
        low, high = min(low, difference - half), max(high, difference + half)
        p = max(p, float(stats.ttest_1samp(by_brain, 0.0).pvalue)) if by_brain.std() > 0 else p
    n_models, n_images = pairs[0][0].shape[:2]
    return Effect(
        more=float(means[:, 0].mean()),
        less=float(means[:, 1].mean()),
        difference=Estimate(difference, float(low), float(high), p),
        n_brains=len(pairs),
        n_models=n_models,
        n_images=n_images,
        by_brain=tuple(by_brain.tolist()),
    )


def verdict_of(effect: Effect, negligible: float) -> Verdict:
    """The verdict on the claim that the difference is positive."""
    high = effect.difference.high
    if effect.n_brains < LEAST_BRAINS or high is None:
        return "undecided"
    if effect.difference.is_above_zero:
        return "borne out"
    return "not borne out" if high < negligible else "undecided"


def mean_of(sums: Float[np.ndarray, "*draws one"], n: int) -> Float[np.ndarray, " *draws"]:
    """Mean of a measure, from its sum over ``n`` images."""
    return np.asarray(sums[..., 0] / n)


def bleu_4(sums: Float[np.ndarray, "*draws counts"], n: int) -> Float[np.ndarray, " *draws"]:
    """Corpus BLEU-4 in points from the sums of its counts over images."""
    return np.asarray(np.apply_along_axis(lambda counts: bleu_from_counts(counts)[3], -1, sums))


def draw_differences(
    pairs: Sequence[tuple[Numbers, Numbers]],
    value: Callable[[np.ndarray, int], np.ndarray],
    factor: float,
    *,
    n_draws: int,
    seed: int,
) -> Float[np.ndarray, " n_draws"]:
    """Draws of the mean over brains of *more − factor × less*, with models and images resampled."""
    found = np.zeros(n_draws)
    sizes = tuple(more.shape[:2] for more, _ in pairs)
    for (more, less), (models, images) in zip(pairs, _weights(sizes, n_draws, seed), strict=True):
        n_images = more.shape[1]
        of_model = [
            value(np.tensordot(images, numbers, axes=(1, 1)), n_images)  # [draws, models]
            for numbers in (more, less)
        ]
        found += (models * (of_model[0] - factor * of_model[1])).sum(axis=1)
    return found / len(pairs)


@lru_cache(maxsize=1)  # the claims of a question have the same brains, models and images
def _weights(
    sizes: tuple[tuple[int, int], ...], n_draws: int, seed: int
) -> list[tuple[Float[np.ndarray, "n_draws models"], Float[np.ndarray, "n_draws images"]]]:
    """Weights of the models (as shares) and images of each brain in each draw."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.multinomial(n_models, np.full(n_models, 1 / n_models), size=n_draws) / n_models,
            # as floats, so that their product with the numbers uses a fast matrix product
            rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=n_draws).astype(np.float64),
        )
        for n_models, n_images in sizes
    ]


def _value(numbers: Numbers, value: Callable[[np.ndarray, int], np.ndarray]) -> float:
    return float(value(numbers.sum(axis=1), numbers.shape[1]).mean())


def _percentiles(draws: Float[np.ndarray, " n_draws"]) -> tuple[float, float, float]:
    """Ends of the percentile interval, and p."""
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def _numbers(rows: pd.DataFrame, arm: Arm, column: str) -> pd.DataFrame:
    """Summable numbers of an arm, one row for each world and image."""
    if len(arm.inputs) == 2:
        one, other = (_numbers(rows, arm.model_copy(update={"control": name}), column) for name in arm.inputs)
        return one - other
    chosen = rows[(rows["system"] == arm.system) & (rows["control"] == arm.control)]
    chosen = chosen[chosen[column].notna()] if column in chosen else chosen[:0]
    if chosen.empty:
        raise DataError(f"results: expected {column} of {arm}, found none; run the experiment again")
    values = (
        np.vstack(chosen[column].tolist())
        if column == "bleu_counts"
        else chosen[[column]].to_numpy(np.float64)
    )
    keys = pd.MultiIndex.from_frame(chosen[_KEYS])
    return pd.DataFrame(values, index=keys).sort_index()


def _by_brain(numbers: pd.DataFrame) -> list[Numbers]:
    """An array of models × images × numbers for each brain."""
    found = []
    for brain, part in numbers.groupby(level="simulator_seed"):
        images = [one.index.get_level_values("nsd_id") for _, one in part.groupby(level="model_seed")]
        if not all(one.equals(images[0]) for one in images):
            raise DataError(
                f"results: expected the same images of brain {brain} for all model seeds, found others; they are not "
                "of one simulated brain: run the experiment again"
            )
        found.append(part.to_numpy(np.float64).reshape(len(images), -1, part.shape[1]))
    return found
