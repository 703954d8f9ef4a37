"""CIDEr-D, the consensus of a caption with its references: what the COCO caption tools call CIDEr.

Fast enough for a reward: document frequencies are fixed, and the references of an image are processed once. For
equal numbers it follows two peculiarities of the COCO tools: the length penalty compares numbers of bigrams, and the
mean is over n = 1..4 even if a caption is too short for n-grams of some order.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from bitllm.errors import DataError
from bitllm.metrics.bleu import Ngram, ngrams, require_references

_ORDERS = 4
_SIGMA = 6.0  # width of the Gaussian length penalty of CIDEr-D
_POINTS = 1000.0 / _ORDERS  # mean over the orders, × 10 (CIDEr-D's scale) × 100 (points)


@dataclass(frozen=True)
class DocumentFrequencies:
    """Number of images in which each n-gram occurs; fixed, so that a reward does not depend on its batch."""

    counts: Mapping[Ngram, int]
    """Number of images with the n-gram in at least one reference."""
    n_images: int
    """Number of images."""
    _idf: dict[Ngram, float] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Compute the logarithms once."""
        log_n = math.log(self.n_images)
        self._idf.update({ngram: log_n - math.log(max(1, count)) for ngram, count in self.counts.items()})

    @classmethod
    def fit(cls, references: Sequence[Sequence[str]]) -> "DocumentFrequencies":
        """Count the n-grams (n = 1..4) of tokenized references, one set per image."""
        if not references:
            raise DataError(
                "document frequencies: expected references of at least one image, found none; add them"
            )
        counts: Counter[Ngram] = Counter()
        for texts in references:
            counts.update({ngram for text in texts for ngram in ngrams(text)})
        return cls(counts, len(references))

    @property
    def idf(self) -> Mapping[Ngram, float]:
        """log(images / images with the n-gram) of all counted n-grams."""
        return self._idf

    @property
    def idf_of_unseen(self) -> float:
        """The idf of any other n-gram: as if it occurred in one image, like in the COCO tools."""
        return math.log(self.n_images)


class Cider:
    """CIDEr-D against references that are processed once.

    Parameters
    ----------
    references
        Tokenized references: a mapping from image keys, or a sequence (the key is then the index).
    df
        Document frequencies; by default those of ``references``, as in the COCO tools. A reward needs those of all
        training references: with those of a batch they would change in every step, and a single image would always
        score 0.
    max_cached
        Number of images with cached vectors; by default all.
    """

    def __init__(
        self,
        references: Mapping[Hashable, Sequence[str]] | Sequence[Sequence[str]],
        df: DocumentFrequencies | None = None,
        *,
        max_cached: int | None = None,
    ) -> None:
        items = references.items() if isinstance(references, Mapping) else enumerate(references)
        self._references: dict[Hashable, Sequence[str]] = dict(items)
        self.df = df if df is not None else DocumentFrequencies.fit(list(self._references.values()))
        self._images: dict[Hashable, _Image] = {}
        self._max_cached = len(self._references) if max_cached is None else max_cached

    def score(self, keys: Sequence[Hashable], captions: Sequence[str]) -> Float[np.ndarray, " n"]:
        """CIDEr-D in points of each tokenized caption against the references of its image."""
        if len(keys) != len(captions):
            raise DataError(
                f"CIDEr: expected a key for each of {len(captions)} captions, found {len(keys)}; give one per caption"
            )
        return np.array([self._image(key).score(text) for key, text in zip(keys, captions, strict=True)])

    def score_of_reference(self, k: int) -> Float[np.ndarray, " n"]:
        """CIDEr-D in points of each image's reference ``k`` against the other references of its image."""
        sets = list(self._references.items())
        require_references([""] * len(sets), [[*texts[:k], *texts[k + 1 :]] for _, texts in sets])
        found = np.zeros(len(sets))
        for place, (key, texts) in enumerate(sets):
            similarities = self._image(key).similarities(texts[k])
            del similarities[k]
            found[place] = _POINTS * sum(similarities) / len(similarities)
        return found

    def _image(self, key: Hashable) -> "_Image":
        image = self._images.get(key)
        if image is None:
            texts = self._references.get(key)
            if not texts:
                raise DataError(
                    f"CIDEr: expected references of image {key}, found none; add them or leave it out"
                )
            while len(self._images) >= max(1, self._max_cached):
                del self._images[next(iter(self._images))]
            image = self._images[key] = _Image(texts, self.df)
        return image


def cider_d(
    captions: Sequence[str], references: Sequence[Sequence[str]], df: DocumentFrequencies | None = None
) -> Float[np.ndarray, " n"]:
    """CIDEr-D of each caption in points; the mean is the corpus score (such as 61.06).

    Parameters
    ----------
    captions, references
        Tokenized captions, and the tokenized references of each (at least one).
    df
        Document frequencies; by default those of ``references``.

    References
    ----------
    Vedantam et al. (2015), "CIDEr: consensus-based image description evaluation", CVPR, section 7 (CIDEr-D).
    """
    require_references(captions, references)
    return Cider(references, df).score(range(len(captions)), captions)


def mean_cider(
    captions: Sequence[str], references: Sequence[Sequence[str]], df: DocumentFrequencies
) -> Float[np.ndarray, " n"]:
    """Mean CIDEr-D over all images, in points, of each caption if it were used for every image.

    All pairs are computed at once. Clipping becomes linear if an n-gram that occurs k times counts as k features. So
    the references of one length (on which the penalty depends) can be summed before any caption is compared.

    Parameters
    ----------
    captions
        Tokenized captions.
    references
        Tokenized references of each image, at least one.
    df
        Document frequencies.
    """
    require_references([""] * len(references), references)
    summed: dict[tuple[Ngram, int], dict[int, float]] = {}
    for texts in references:
        for text in texts:
            _add_reference(summed, text, df, share=1 / len(texts))
    return np.array([_mean_of(text, summed, df) for text in captions]) * _POINTS / max(1, len(references))


def _add_reference(
    summed: dict[tuple[Ngram, int], dict[int, float]], text: str, df: DocumentFrequencies, *, share: float
) -> None:
    counts = Counter(ngrams(text))
    idf = {ngram: df.idf.get(ngram, df.idf_of_unseen) for ngram in counts}
    inverse = _inverse_norms({ngram: n * idf[ngram] for ngram, n in counts.items()})
    n_bigrams = max(0, len(text.split()) - 1)
    for ngram, n in counts.items():
        value = n * idf[ngram] ** 2 * inverse[len(ngram) - 1] * share
        for occurrence in range(n):
            of_length = summed.setdefault((ngram, occurrence), {})
            of_length[n_bigrams] = of_length.get(n_bigrams, 0.0) + value


def _mean_of(
    caption: str, summed: Mapping[tuple[Ngram, int], Mapping[int, float]], df: DocumentFrequencies
) -> float:
    counts = Counter(ngrams(caption))
    weights = {ngram: n * df.idf.get(ngram, df.idf_of_unseen) for ngram, n in counts.items()}
    inverse = _inverse_norms(weights)
    n_bigrams = max(0, len(caption.split()) - 1)
    total = 0.0
    for ngram, n in counts.items():
        for occurrence in range(n):
            for length, value in summed.get((ngram, occurrence), {}).items():
                total += value * inverse[len(ngram) - 1] * _length_penalty(n_bigrams - length)
    return total


class _Image:
    """The references of one image, as an index from n-grams to their weights in each reference."""

    def __init__(self, references: Sequence[str], df: DocumentFrequencies) -> None:
        self._idf, self._unseen = df.idf, df.idf_of_unseen
        self._n_bigrams = [max(0, len(text.split()) - 1) for text in references]
        self._scale = _POINTS / len(references)
        index: dict[Ngram, list[float]] = {}
        for place, text in enumerate(references):
            weights = {
                ngram: count * self._idf.get(ngram, self._unseen)
                for ngram, count in Counter(ngrams(text)).items()
            }
            inverse = _inverse_norms(weights)
            for ngram, weight in weights.items():
                order = len(ngram) - 1
                # (slot of reference and order, tf-idf weight, the same divided by the norm of the reference)
                triple = (place * _ORDERS + order, weight, weight * inverse[order])
                index.setdefault(ngram, []).extend(triple)
        # flat tuples of numbers are not tracked by the garbage collector: three times as fast to build
        self._index: dict[Ngram, tuple[Any, ...]] = {
            ngram: tuple(triples) for ngram, triples in index.items()
        }

    def score(self, caption: str) -> float:
        """CIDEr-D in points of one tokenized caption."""
        return sum(self.similarities(caption)) * self._scale

    def similarities(self, caption: str) -> list[float]:
        """Sum over n of the penalized cosine similarity of a tokenized caption with each reference."""
        idf, unseen, index = self._idf, self._unseen, self._index
        products = [0.0] * (_ORDERS * len(self._n_bigrams))
        weights = {ngram: count * idf.get(ngram, unseen) for ngram, count in Counter(ngrams(caption)).items()}
        for ngram, weight in weights.items():
            triples = index.get(ngram)
            if triples is not None:
                numbers = iter(triples)  # zip takes from one iterator three times: it yields the triples
                for slot, theirs, scaled in zip(numbers, numbers, numbers, strict=True):
                    # CIDEr-D clips the caption's weight at that of the reference, against repeated n-grams.
                    products[slot] += (weight if weight < theirs else theirs) * scaled
        first, second, third, fourth = _inverse_norms(weights)
        n_bigrams = max(0, len(caption.split()) - 1)
        found = []
        for place, their_bigrams in enumerate(self._n_bigrams):
            one, two, three, four = products[place * _ORDERS : (place + 1) * _ORDERS]
            cosines = one * first + two * second + three * third + four * fourth
            found.append(cosines * _length_penalty(n_bigrams - their_bigrams) if cosines else 0.0)
        return found


def _inverse_norms(weights: dict[Ngram, float]) -> list[float]:
    squares = [0.0] * _ORDERS
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
    return [1 / math.sqrt(square) if square > 0 else 0.0 for square in squares]


# captions rarely differ by more than 63 bigrams; the table saves most calls of exp
_PENALTIES = [math.exp(-(delta**2) / (2 * _SIGMA**2)) for delta in range(64)]


def _length_penalty(delta: int) -> float:
    delta = abs(delta)
    return _PENALTIES[delta] if delta < len(_PENALTIES) else math.exp(-(delta**2) / (2 * _SIGMA**2))
