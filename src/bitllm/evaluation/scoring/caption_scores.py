"""The scores of a system's captions, and the per-caption numbers from which they are computed.

Scores are in the points of the COCO caption tools (BLEU-1 59.44, CIDEr 61.06).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bitllm.errors import DataError
from bitllm.metrics.bleu import bleu_from_counts
from bitllm.metrics.intervals import (
    Estimate,
    difference_from_draws,
    resampled_sums,
    sum_by_image,
    sums_over_halves,
)

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
_N_BASE = 3 + 10  # columns of the sums that METRICS follow from: captions, ROUGE-L, CIDEr, counts of BLEU


class Batch(NamedTuple):
    """Captions to score, each with the references of its image."""

    captions: Sequence[str]
    """Raw text."""
    words: Sequence[str]
    """The same, tokenized."""
    references: Sequence[Sequence[str]]
    """Raw references of each caption."""
    reference_words: Sequence[Sequence[str]]
    """The same, tokenized."""


@dataclass(frozen=True, eq=False)
class ExtraMetric:
    """A metric other than BLEU, ROUGE-L and CIDEr: summable numbers per caption, and a score from their sums."""

    name: str
    """Name in the results."""
    numbers: Callable[[Batch], np.ndarray]
    """Summable numbers of each caption, ``[n, k]``."""
    value: Callable[[np.ndarray, float], float]
    """Score in points from sums ``[k]`` over a number of captions."""
    is_on_floors: bool = True
    """Whether it is fast enough to be computed for floors too."""


class ExtraNumbers(NamedTuple):
    """The per-caption numbers of an extra metric."""

    metric: ExtraMetric
    numbers: np.ndarray
    """One row per caption."""


@dataclass(frozen=True)
class PerCaption:
    """Summable numbers of each caption, in the order of the captions."""

    cider: Float[np.ndarray, " n"]
    """CIDEr-D in points."""
    rouge_l: Float[np.ndarray, " n"]
    """ROUGE-L in points."""
    bleu_counts: Int[np.ndarray, "n k"]
    """The counts that corpus BLEU sums."""
    image_ids: tuple[Hashable, ...]
    """Image of each caption; single trials of one image have the same id."""
    extras: tuple[ExtraNumbers, ...] = ()
    """The numbers of other metrics."""

    def by_image(self) -> Float[np.ndarray, "images m"]:
        """Sums over the captions of each image, the input of :meth:`metrics`."""
        return sum_by_image(self._columns(), self.image_ids)

    def metrics(self, sums: Float[np.ndarray, " m"]) -> dict[str, float]:
        """Every metric in points, from the sum of :meth:`by_image` over some images."""
        found = corpus_metrics(sums[:_N_BASE])
        start = _N_BASE
        for metric, numbers in self.extras:
            stop = start + numbers.shape[1]
            found[metric.name] = metric.value(sums[start:stop], float(sums[0]))
            start = stop
        return found

    def of_each(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Every metric of each single caption, as the COCO tools report it per image."""
        rows = [self.metrics(row) for row in self._columns()]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _columns(self) -> Float[np.ndarray, "n m"]:
        columns = [np.ones(len(self.cider)), self.rouge_l, self.cider, self.bleu_counts]
        return np.column_stack([*columns, *(numbers for _, numbers in self.extras)])


@dataclass(frozen=True)
class CaptionScores:
    """The scores of one system on one set of images, with what is needed to interpret and reproduce them."""

    metrics: dict[str, float]
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr and the requested extra metrics, in points."""
    intervals: dict[str, Estimate]
    """95 % percentile bootstrap interval of each metric over images; CIDEr's document frequencies are fixed."""
    per_image: PerCaption
    """The numbers of each caption."""
    distinct: int
    """Number of different captions."""
    distinct_1: float
    """Different words as a fraction of all words."""
    distinct_2: float
    """Different word pairs as a fraction of all pairs."""
    mean_length: float
    """Mean number of words, without punctuation."""
    n_images: int
    """Number of different images."""
    references_sha256: str
    """Checksum of the references, independent of the order of images; compare scores only if it is equal."""
    tokenizer: str
    """Name of the tokenizer."""
    versions: dict[str, str]
    """Versions of the software that computed the scores."""
    floors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Scores of "constant", "permuted" and "human" captions, if requested."""
    differences: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Paired differences: "real - permuted", "real - constant", and from another system if one was given."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Metrics and floors that were not computed, with the reason."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know: empty captions, another tokenizer than usual."""
    summary: str = ""
    """A sentence about the captions and their floors."""

    def to_json(self) -> dict[str, Any]:
        """JSON values of everything except the per-caption numbers."""
        content = {name: value for name, value in vars(self).items() if name != "per_image"}
        differences = {
            pair: {name: difference._asdict() for name, difference in of_pair.items()}
            for pair, of_pair in self.differences.items()
        }
        intervals = {name: [one.low, one.high] for name, one in self.intervals.items()}
        return content | {"intervals": intervals, "differences": differences}


def corpus_metrics(sums: Float[np.ndarray, " m"]) -> dict[str, float]:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr in points, from sums of the first columns of :meth:`PerCaption.by_image`."""
    bleu = bleu_from_counts(sums[3:_N_BASE])
    values = [*bleu, float(sums[1] / sums[0]), float(sums[2] / sums[0])]
    return dict(zip(METRICS, values, strict=True))


def score_estimates(numbers: PerCaption, *, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Every metric in points with its 95 % percentile bootstrap interval over images."""
    by_image = numbers.by_image()
    rows = [numbers.metrics(sums) for sums in resampled_sums(by_image, n_boot=n_bootstrap, seed=seed)]
    low, high = np.quantile(np.array([list(row.values()) for row in rows]), [0.025, 0.975], axis=0)
    values = numbers.metrics(by_image.sum(axis=0))
    return {
        name: Estimate(value, float(low[place]), float(high[place]))
        for place, (name, value) in enumerate(values.items())
    }


def score_differences(
    a: PerCaption,
    b: PerCaption,
    *,
    names: Sequence[str] = ("CIDEr", "ROUGE-L", "BLEU-4"),
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Paired differences a − b of the named metrics that both have; both must be of the same images in the same order.

    Both sides use the same random halves of the images; BLEU is computed from the counts of each half.
    """
    draws, values = [], []
    for one in (a, b):
        by_image = one.by_image()
        draws.append([one.metrics(sums) for sums in sums_over_halves(by_image, n_draws=n_draws, seed=seed)])
        values.append(one.metrics(by_image.sum(axis=0)))
    n_images = len(dict.fromkeys(a.image_ids))
    return {
        name: difference_from_draws(
            values[0][name] - values[1][name],
            np.array([x[name] - y[name] for x, y in zip(*draws, strict=True)]),
            n_images=n_images,
        )
        for name in names
        if all(name in one for one in values)
    }


def compare_captions(
    a: CaptionScores,
    b: CaptionScores,
    *,
    names: Sequence[str] = ("CIDEr", "ROUGE-L", "BLEU-4"),
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Paired differences a − b on the same images, for the named metrics that both have.

    Both sides use the same random halves of the images; BLEU is computed from the counts of each half.
    """
    images_a, images_b = (tuple(dict.fromkeys(scores.per_image.image_ids)) for scores in (a, b))
    if images_a != images_b or a.references_sha256 != b.references_sha256:
        same = sum(x == y for x, y in zip(images_a, images_b, strict=False))
        raise DataError(
            f"comparison: expected the same images and references in both systems, found {len(images_a)} and "
            f"{len(images_b)} images, {same} in the same place, references {a.references_sha256[:8]} and "
            f"{b.references_sha256[:8]}; score both on the same references"
        )
    return score_differences(a.per_image, b.per_image, names=names, n_draws=n_draws, seed=seed)
