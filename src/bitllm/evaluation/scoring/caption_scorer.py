"""The record of a system's caption scores, and the scorer that makes it.

Scores are in the points of the COCO caption tools (BLEU-1 59.44, CIDEr 61.06).
"""

import importlib.metadata
import platform
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from bitllm.errors import DataError
from bitllm.files import sha256_of_json
from bitllm.metrics.bleu import bleu_counts, bleu_from_counts, require_references
from bitllm.metrics.cider import Cider, DocumentFrequencies
from bitllm.metrics.diversity import distinct_n, mean_length, n_distinct_captions
from bitllm.metrics.intervals import Interval, resampled_sums, sum_by_image
from bitllm.metrics.rouge import rouge_l
from bitllm.metrics.tokenize import JAVA_TOKENIZER, PYTHON_TOKENIZER, ptb_tokenize, ptb_tokenize_by_jar

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
Tokenizer = Literal["python", "java"]
_TOKENIZERS = {"python": (ptb_tokenize, PYTHON_TOKENIZER), "java": (ptb_tokenize_by_jar, JAVA_TOKENIZER)}
_PACKAGES = ("bitllm", "numpy", "nltk", "sacrebleu")


@dataclass(frozen=True)
class PerCaption:
    """What each caption contributes, in the order of the captions."""

    cider: Float[np.ndarray, " n"]
    """CIDEr-D in points."""
    rouge_l: Float[np.ndarray, " n"]
    """ROUGE-L in points."""
    bleu_counts: Int[np.ndarray, "n k"]
    """The counts that corpus BLEU sums."""
    image_ids: tuple[Hashable, ...]
    """Whose caption it is; single trials of one image share an id."""

    def by_image(self) -> Float[np.ndarray, "images m"]:
        """Sums over the captions of each image, from which :func:`corpus_metrics` follow."""
        ones = np.ones(len(self.cider))
        columns = np.column_stack([ones, self.rouge_l, self.cider, self.bleu_counts])
        return sum_by_image(columns, self.image_ids)


@dataclass(frozen=True)
class CaptionScores:
    """The scores of one system on one set of images, with what is needed to judge and repeat them."""

    metrics: dict[str, float]
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr in points."""
    intervals: dict[str, Interval]
    """95 % percentile bootstrap interval of each over images; CIDEr's idf is fixed from all references."""
    per_image: PerCaption
    """The numbers of each caption."""
    distinct: int
    """Number of different captions."""
    distinct_1: float
    """Different words as a fraction of all words."""
    distinct_2: float
    """Different pairs of words as a fraction of all pairs."""
    mean_length: float
    """Mean number of words, without punctuation."""
    n_images: int
    """Number of different images."""
    references_sha256: str
    """Checksum of the references, whatever the order of images: scores compare only where it is the same."""
    tokenizer: str
    """Which tokenizer made the words."""
    versions: dict[str, str]
    """Versions of what computed the scores."""
    floors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Scores of "constant" and "permuted" captions and of "human" ones, where they were asked for."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of each caption, as JSON values."""
        content = {name: value for name, value in vars(self).items() if name != "per_image"}
        return content | {"intervals": {name: list(interval) for name, interval in self.intervals.items()}}


class CaptionScorer:
    """Scores any number of systems against one set of references, whose vectors are computed once.

    Parameters
    ----------
    references
        Raw references, one set for each caption that will be scored.
    image_ids
        Which image each set belongs to; captions with one id (single trials) are resampled together and
        their references counted once in CIDEr's idf. By default every caption has its own image.
    tokenizer
        ``"python"``, or ``"java"`` for the jar of the COCO tools.

    Raises
    ------
    DataError
        If there are fewer than two images, or an image has no references.
    BitLlmError
        If the Java tokenizer is asked for and does not run.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        *,
        image_ids: Sequence[Hashable] | None = None,
        tokenizer: Tokenizer = "python",
    ) -> None:
        require_references([""] * len(references), references)
        self.image_ids = tuple(range(len(references)) if image_ids is None else image_ids)
        if len(self.image_ids) != len(references):
            raise DataError(
                f"image ids: expected {len(references)}, one for each set, found {len(self.image_ids)}"
            )
        first = list({image: place for place, image in reversed(list(enumerate(self.image_ids)))}.values())
        if len(first) < 2:
            raise DataError(
                f"scores: expected at least 2 images, found {len(first)}; "
                "CIDEr's idf and every interval need more"
            )
        self._tokenize, self.tokenizer = _TOKENIZERS[tokenizer]
        self.references = self.tokenized_sets(references)
        self.df = DocumentFrequencies.fit([self.references[place] for place in first])
        self._cider = Cider(self.references, self.df)
        self.references_sha256 = sha256_of_json(sorted(sorted(references[place]) for place in first))

    def tokenized_sets(self, sets: Sequence[Sequence[str]]) -> list[list[str]]:
        """Tokenise sets of texts in one go, which for Java is one process."""
        flat = iter(self._tokenize([text for texts in sets for text in texts]))
        return [[next(flat) for _ in texts] for texts in sets]

    def metrics(self, captions: Sequence[str]) -> dict[str, float]:
        """Corpus metrics of raw captions alone, without intervals.

        Raises
        ------
        DataError
            If there are not as many captions as sets of references.
        """
        return corpus_metrics(self._per_caption(self._tokenize(captions)).by_image().sum(axis=0))

    def score(self, captions: Sequence[str], *, n_bootstrap: int = 1000, seed: int = 0) -> CaptionScores:
        """Score raw captions, in the order of the references.

        Raises
        ------
        DataError
            If there are not as many captions as sets of references.
        """
        words = self._tokenize(captions)
        per_caption = self._per_caption(words)
        by_image = per_caption.by_image()
        return CaptionScores(
            metrics=corpus_metrics(by_image.sum(axis=0)),
            intervals=_intervals(by_image, n_bootstrap, seed),
            per_image=per_caption,
            distinct=n_distinct_captions(captions),
            distinct_1=distinct_n(words, 1),
            distinct_2=distinct_n(words, 2),
            mean_length=mean_length(words),
            n_images=len(by_image),
            references_sha256=self.references_sha256,
            tokenizer=self.tokenizer,
            versions=_versions(),
        )

    def _per_caption(self, words: Sequence[str]) -> PerCaption:
        require_references(words, self.references)
        return PerCaption(
            cider=self._cider.score(range(len(words)), words),
            rouge_l=rouge_l(words, self.references),
            bleu_counts=bleu_counts(words, self.references),
            image_ids=self.image_ids,
        )


def corpus_metrics(sums: Float[np.ndarray, " m"]) -> dict[str, float]:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr in points, from the sum of :meth:`PerCaption.by_image`."""
    bleu = bleu_from_counts(sums[3:])
    values = [*bleu, float(sums[1] / sums[0]), float(sums[2] / sums[0])]
    return dict(zip(METRICS, values, strict=True))


def _intervals(by_image: Float[np.ndarray, "images m"], n_bootstrap: int, seed: int) -> dict[str, Interval]:
    draws = [
        list(corpus_metrics(sums).values())
        for sums in resampled_sums(by_image, n_boot=n_bootstrap, seed=seed)
    ]
    low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0)
    return {name: Interval(float(low[i]), float(high[i])) for i, name in enumerate(METRICS)}


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}
