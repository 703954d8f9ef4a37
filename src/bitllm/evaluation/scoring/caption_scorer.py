"""The scorer of captions: any number of systems against one set of references."""

import importlib.metadata
import platform
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from bitllm.errors import BitLlmError, DataError
from bitllm.evaluation.scoring.caption_scores import (
    METRICS,
    Batch,
    CaptionScores,
    ExtraMetric,
    ExtraNumbers,
    PerCaption,
    corpus_metrics,
    score_estimates,
)
from bitllm.files import sha256_of_json
from bitllm.metrics.bleu import Bleu, require_references
from bitllm.metrics.cider import Cider, DocumentFrequencies
from bitllm.metrics.diversity import distinct_n, mean_length, n_distinct_captions
from bitllm.metrics.java import JAVA_TOKENIZER, java_version, ptb_tokenize_by_jar
from bitllm.metrics.rouge import rouge_l
from bitllm.metrics.tokenize import PYTHON_TOKENIZER, ptb_tokenize

__all__ = ["METRICS", "CaptionScorer", "CaptionScores", "PerCaption", "Tokenizer", "corpus_metrics"]

Tokenizer = Literal["python", "java"]
_TOKENIZERS: dict[str, tuple[Callable[[Sequence[str]], list[str]], str]] = {
    "python": (ptb_tokenize, PYTHON_TOKENIZER),
    "java": (ptb_tokenize_by_jar, JAVA_TOKENIZER),
}
_PACKAGES = ("bitllm", "numpy", "nltk")


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
        self._uses_java = tokenizer == "java"
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
        per_caption = self.per_caption(captions)
        return per_caption.metrics(per_caption.by_image().sum(axis=0))

    def score(self, captions: Sequence[str], *, n_bootstrap: int = 1000, seed: int = 0) -> CaptionScores:
        """Score raw captions, in the order of the references."""
        words = self.tokenized(captions)
        per_caption = self.per_caption(captions, is_floor=False)
        found = score_estimates(per_caption, n_bootstrap=n_bootstrap, seed=seed)
        return CaptionScores(
            metrics={name: one.value for name, one in found.items()},
            intervals=found,
            per_image=per_caption,
            distinct=n_distinct_captions(captions),
            distinct_1=distinct_n(words, 1),
            distinct_2=distinct_n(words, 2),
            mean_length=mean_length(words),
            n_images=len(set(self.image_ids)),
            references_sha256=self.references_sha256,
            tokenizer=self.tokenizer,
            versions=_versions() | ({"java": java_version() or "unknown"} if self._uses_java else {}),
        )

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


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}
