"""The caption scorer: numbers of every caption, and scores, intervals and differences computed from them.

Scores are in the points of the COCO caption tools (BLEU-1 59.44, CIDEr 61.06).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bitllm.errors import BitLlmError, DataError
from bitllm.files import sha256_of_json
from bitllm.metrics.bleu import Bleu, bleu_from_counts, require_references
from bitllm.metrics.cider import Cider, DocumentFrequencies
from bitllm.metrics.intervals import (
    Estimate,
    difference_from_draws,
    resampled_sums,
    sum_by_image,
    sums_over_halves,
)
from bitllm.metrics.java import JAVA_TOKENIZER, ptb_tokenize_by_jar
from bitllm.metrics.rouge import rouge_l
from bitllm.metrics.tokenize import PYTHON_TOKENIZER, ptb_tokenize

Tokenizer = Literal["python", "java"]
_TOKENIZERS: dict[str, tuple[Callable[[Sequence[str]], list[str]], str]] = {
    "python": (ptb_tokenize, PYTHON_TOKENIZER),
    "java": (ptb_tokenize_by_jar, JAVA_TOKENIZER),
}
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
        means = float(sums[1] / sums[0]), float(sums[2] / sums[0])
        found = dict(zip(METRICS, [*bleu_from_counts(sums[3:_N_BASE]), *means], strict=True))
        start = _N_BASE
        for metric, numbers in self.extras:
            stop = start + numbers.shape[1]
            found[metric.name] = metric.value(sums[start:stop], float(sums[0]))
            start = stop
        return found

    def total(self) -> dict[str, float]:
        """Every metric in points, of all captions together."""
        return self.metrics(self.by_image().sum(axis=0))

    def of_each(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Every metric of each single caption, as the COCO tools report it per image."""
        rows = [self.metrics(row) for row in self._columns()]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _columns(self) -> Float[np.ndarray, "n m"]:
        columns = [np.ones(len(self.cider)), self.rouge_l, self.cider, self.bleu_counts]
        return np.column_stack([*columns, *(numbers for _, numbers in self.extras)])


def score_estimates(numbers: PerCaption, *, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Every metric in points with its 95 % percentile bootstrap interval over images."""
    by_image = numbers.by_image()
    rows = [numbers.metrics(sums) for sums in resampled_sums(by_image, n_boot=n_bootstrap, seed=seed)]
    low, high = np.quantile(np.array([list(row.values()) for row in rows]), [0.025, 0.975], axis=0)
    values = numbers.total()
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
        values.append(one.total())
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


class CaptionScorer:
    """Scores any number of systems against one set of references, which are processed once.

    Parameters
    ----------
    references
        Raw references, one set per caption.
    image_ids
        Image of each set. Captions with the same id (single trials) are resampled together, and their references
        count once in CIDEr's document frequencies. By default every caption has its own image.
    tokenizer
        ``"python"``, or ``"java"`` for the jar of the COCO tools.
    extras
        Other metrics. If one fails, it is skipped from then on and listed in ``not_run``.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        *,
        image_ids: Sequence[Hashable] | None = None,
        tokenizer: Tokenizer = "python",
        extras: Sequence[ExtraMetric] = (),
    ) -> None:
        require_references([""] * len(references), references)
        self.image_ids = tuple(range(len(references)) if image_ids is None else image_ids)
        if len(self.image_ids) != len(references):
            raise DataError(
                f"image ids: expected {len(references)}, one for each set, found {len(self.image_ids)}; "
                "give an id for each"
            )
        first = list({image: place for place, image in reversed(list(enumerate(self.image_ids)))}.values())
        if len(first) < 2:
            raise DataError(
                f"scores: expected at least 2 images, found {len(first)}; "
                "CIDEr's idf and every interval need more"
            )
        self._tokenize, self.tokenizer = _TOKENIZERS[tokenizer]
        self._known_words: dict[str, str] = {}
        self.raw_references = [list(texts) for texts in references]
        self.references = self.tokenized_sets(references)
        self.image_references = [self.raw_references[place] for place in sorted(first)]
        self.df = DocumentFrequencies.fit([self.references[place] for place in first])
        self._cider, self._bleu = Cider(self.references, self.df), Bleu(self.references)
        self._extras = list(extras)
        self.not_run: dict[str, str] = {}
        self.references_sha256 = sha256_of_json(sorted(sorted(references[place]) for place in first))

    def tokenized(self, texts: Sequence[str]) -> list[str]:
        """Tokenize texts in one call (for Java, one process); results are cached."""
        # in the order given, repeats included: the jar looks at the next line to tell an abbreviation from an end
        new = [text for text in texts if text not in self._known_words]
        if new:
            self._known_words.update(zip(new, self._tokenize(new), strict=True))
        return [self._known_words[text] for text in texts]

    def tokenized_sets(self, sets: Sequence[Sequence[str]]) -> list[list[str]]:
        """Tokenize sets of texts in one call."""
        flat = iter(self.tokenized([text for texts in sets for text in texts]))
        return [[next(flat) for _ in texts] for texts in sets]

    def metrics(self, captions: Sequence[str]) -> dict[str, float]:
        """Corpus metrics of raw captions without intervals, and those extra metrics that are computed for floors."""
        return self.per_caption(captions).total()

    def per_caption(self, captions: Sequence[str], *, is_floor: bool = True) -> PerCaption:
        """Numbers of each raw caption; with ``is_floor`` only the extra metrics that are computed for floors."""
        require_references(captions, self.references)
        batch = Batch(captions, self.tokenized(captions), self.raw_references, self.references)
        cider = self._cider.score(range(len(captions)), batch.words)
        return self._numbers(batch, cider, self._bleu.counts(batch.words), is_floor=is_floor)

    def per_held_out_reference(self, k: int) -> PerCaption:
        """Numbers of each image's reference ``k``, scored as a caption against the other references of the image."""
        sets = [(raw, words) for raw, words in zip(self.raw_references, self.references, strict=True)]
        batch = Batch(
            [raw[k] for raw, _ in sets],
            [words[k] for _, words in sets],
            [[*raw[:k], *raw[k + 1 :]] for raw, _ in sets],
            [[*words[:k], *words[k + 1 :]] for _, words in sets],
        )
        cider, counts = self._cider.score_of_reference(k), self._bleu.counts_of_reference(k)
        return self._numbers(batch, cider, counts, is_floor=True)

    def _numbers(
        self, batch: Batch, cider: Float[np.ndarray, " n"], counts: Int[np.ndarray, "n k"], *, is_floor: bool
    ) -> PerCaption:
        wanted = [metric for metric in self._extras if metric.is_on_floors or not is_floor]
        found = [(metric, self._of_extra(metric, batch)) for metric in wanted]
        return PerCaption(
            cider=cider,
            rouge_l=rouge_l(batch.words, batch.reference_words),
            bleu_counts=counts,
            image_ids=self.image_ids,
            extras=tuple(ExtraNumbers(metric, numbers) for metric, numbers in found if numbers is not None),
        )

    def _of_extra(self, metric: ExtraMetric, batch: Batch) -> Float[np.ndarray, "n k"] | None:
        try:
            return metric.numbers(batch)
        except BitLlmError as error:
            self._extras.remove(metric)
            self.not_run[metric.name] = str(error).removeprefix(f"{metric.name}: ")
            return None
