"""CIDEr-D, the consensus of a caption with its references: what the COCO caption tools call CIDEr.

Fast enough to be a reward: document frequencies are frozen, and what concerns the references of an image is
computed once. Kept as the COCO tools have it, for equal numbers: the "length" of the penalty counts bigrams;
the mean runs over n = 1..4 even where a caption is too short for n-grams of that order.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from bitllm.errors import DataError
from bitllm.metrics.bleu import require_references

_ORDERS = 4
_SIGMA = 6.0  # width of the Gaussian length penalty of CIDEr-D
_POINTS = 1000.0 / _ORDERS  # mean over the orders, × 10 (CIDEr-D's scale) × 100 (points)

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs: frozen, so that a reward is not its batch's."""

    counts: Mapping[Ngram, int]
    """Number of images with the n-gram in at least one reference."""
    n_images: int
    """Number of images that were counted."""
    _idf: dict[Ngram, float] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Take the logarithms once."""
        log_n = math.log(self.n_images)
        self._idf.update({ngram: log_n - math.log(max(1, count)) for ngram, count in self.counts.items()})

    @classmethod
    def fit(cls, references: Sequence[Sequence[str]]) -> "DocumentFrequencies":
        """Count the n-grams (n = 1..4) of tokenised references, one set per image.

        Raises
        ------
        DataError
            If there is no image.
        """
        if not references:
            raise DataError("document frequencies: expected references of at least one image, found none")
        counts: Counter[Ngram] = Counter()
        for texts in references:
            counts.update({ngram for text in texts for ngram in _ngrams(text)})
        return cls(counts, len(references))

    @property
    def idf(self) -> Mapping[Ngram, float]:
        """Logarithm of (images / images with the n-gram), of the n-grams that were seen."""
        return self._idf

    @property
    def idf_of_unseen(self) -> float:
        """The idf of any other n-gram."""
        return math.log(self.n_images)


class Cider:
    """CIDEr-D against references whose vectors are computed once.

    Parameters
    ----------
    references
        Tokenised references: a sequence (then an image's key is its place) or a mapping from keys.
    df
        Document frequencies; by default those of ``references``, as the COCO tools do. A reward gives those
        of all training references: with its own 16 images the idf would be another at every step, and with
        one image every score would be 0.
    """

    def __init__(
        self,
        references: Mapping[Hashable, Sequence[str]] | Sequence[Sequence[str]],
        df: DocumentFrequencies | None = None,
    ) -> None:
        items = references.items() if isinstance(references, Mapping) else enumerate(references)
        self._references: dict[Hashable, Sequence[str]] = dict(items)
        self.df = df if df is not None else DocumentFrequencies.fit(list(self._references.values()))
        self._images: dict[Hashable, _Image] = {}

    def score(self, keys: Sequence[Hashable], captions: Sequence[str]) -> Float[np.ndarray, " n"]:
        """CIDEr-D in points of each tokenised caption against the references of its image.

        Raises
        ------
        DataError
            If there are not as many keys as captions, a key is unknown or has no reference.
        """
        if len(keys) != len(captions):
            raise DataError(f"CIDEr: expected a key for each of {len(captions)} captions, found {len(keys)}")
        return np.array([self._image(key).score(text) for key, text in zip(keys, captions, strict=True)])

    def _image(self, key: Hashable) -> "_Image":
        image = self._images.get(key)
        if image is None:
            texts = self._references.get(key)
            if not texts:
                raise DataError(
                    f"CIDEr: expected references of image {key}, found none; add them or leave it out"
                )
            image = self._images[key] = _Image(texts, self.df)
        return image


def cider_d(
    captions: Sequence[str], references: Sequence[Sequence[str]], df: DocumentFrequencies | None = None
) -> Float[np.ndarray, " n"]:
    """CIDEr-D of each caption in points; their mean is the corpus score (61.06, say).

    Parameters
    ----------
    captions, references
        Tokenised captions and the tokenised references of each, at least one.
    df
        Document frequencies; by default those of ``references``.

    Raises
    ------
    DataError
        If there are not as many captions as sets of references, or a set is empty.

    References
    ----------
    Vedantam et al. (2015), "CIDEr: consensus-based image description evaluation", CVPR, section 7 (CIDEr-D).
    """
    require_references(captions, references)
    return Cider(references, df).score(range(len(captions)), captions)


def cider_matrix(
    captions: Sequence[str], references: Sequence[Sequence[str]], df: DocumentFrequencies
) -> Float[np.ndarray, "captions images"]:
    """CIDEr-D in points of every caption against the references of every image, by sparse matrix products.

    Clipping is linear once an n-gram that occurs k times is counted as k features, so one product per order
    gives all pairs. Memory: captions × references × 8 bytes, a few times.
    """
    texts = [text for image in references for text in image]
    owner = np.repeat(np.arange(len(references)), [len(image) for image in references])
    total = np.zeros((len(captions), len(texts)))
    columns: dict[tuple[Ngram, int], int] = {}
    for order in range(1, _ORDERS + 1):
        ours, our_norms = _features(captions, order, df, columns, is_reference=False)
        theirs, their_norms = _features(texts, order, df, columns, is_reference=True)
        shape = (len(captions), len(columns)), (len(texts), len(columns))
        product = sparse.csr_array(ours, shape=shape[0]) @ sparse.csr_array(theirs, shape=shape[1]).T
        norms = np.outer(our_norms, their_norms)
        total += np.divide(product.toarray(), norms, out=np.zeros_like(norms), where=norms > 0)
    delta = _n_bigrams(captions)[:, None] - _n_bigrams(texts)[None, :]
    total *= np.exp(-(delta**2) / (2 * _SIGMA**2))
    average = sparse.csr_array(
        (_POINTS / np.bincount(owner, minlength=len(references))[owner], (np.arange(len(texts)), owner)),
        shape=(len(texts), len(references)),
    )
    return total @ average


class _Image:
    """The references of one image as an index from n-grams to their weights in each reference."""

    def __init__(self, references: Sequence[str], df: DocumentFrequencies) -> None:
        self._idf, self._unseen = df.idf, df.idf_of_unseen
        self._n_bigrams = [max(0, len(text.split()) - 1) for text in references]
        self._scale = _POINTS / len(references)
        index: dict[Ngram, list[float]] = {}
        for place, text in enumerate(references):
            weights = {
                ngram: count * self._idf.get(ngram, self._unseen)
                for ngram, count in Counter(_ngrams(text)).items()
            }
            inverse = _inverse_norms(weights)
            for ngram, weight in weights.items():
                order = len(ngram) - 1
                triple = (place * _ORDERS + order, weight, weight * inverse[order])
                index.setdefault(ngram, []).extend(triple)
        # flat tuples of numbers, which the garbage collector need not follow: three times as quick to build
        self._index: dict[Ngram, tuple[Any, ...]] = {
            ngram: tuple(triples) for ngram, triples in index.items()
        }

    def score(self, caption: str) -> float:
        """CIDEr-D in points of one tokenised caption."""
        idf, unseen, index = self._idf, self._unseen, self._index
        products = [0.0] * (_ORDERS * len(self._n_bigrams))
        weights = {
            ngram: count * idf.get(ngram, unseen) for ngram, count in Counter(_ngrams(caption)).items()
        }
        for ngram, weight in weights.items():
            triples = index.get(ngram)
            if triples is not None:
                numbers = iter(triples)
                for slot, theirs, scaled in zip(numbers, numbers, numbers, strict=True):
                    products[slot] += (weight if weight < theirs else theirs) * scaled
        first, second, third, fourth = _inverse_norms(weights)
        n_bigrams = max(0, len(caption.split()) - 1)
        total = 0.0
        for place, their_bigrams in enumerate(self._n_bigrams):
            one, two, three, four = products[place * _ORDERS : (place + 1) * _ORDERS]
            cosines = one * first + two * second + three * third + four * fourth
            if cosines:
                total += cosines * _length_penalty(n_bigrams - their_bigrams)
        return total * self._scale


def _inverse_norms(weights: dict[Ngram, float]) -> list[float]:
    squares = [0.0] * _ORDERS
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
    return [1 / math.sqrt(square) if square > 0 else 0.0 for square in squares]


_PENALTIES = [math.exp(-(delta**2) / (2 * _SIGMA**2)) for delta in range(64)]


def _length_penalty(delta: int) -> float:
    delta = abs(delta)
    return _PENALTIES[delta] if delta < len(_PENALTIES) else math.exp(-(delta**2) / (2 * _SIGMA**2))


def _ngrams(text: str) -> list[Ngram]:
    words = text.split()
    second, third, fourth = words[1:], words[2:], words[3:]
    return [
        *zip(words, strict=False),
        *zip(words, second, strict=False),
        *zip(words, second, third, strict=False),
        *zip(words, second, third, fourth, strict=False),
    ]


def _n_bigrams(texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    return np.array([max(0, len(text.split()) - 1) for text in texts], dtype=np.float64)


def _features(
    texts: Sequence[str],
    order: int,
    df: DocumentFrequencies,
    columns: dict[tuple[Ngram, int], int],
    *,
    is_reference: bool,
) -> tuple[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]], Float[np.ndarray, " n"]]:
    """Entries of a sparse matrix with a column per (n-gram, k-th occurrence), and its vectors' norms."""
    norms = np.zeros(len(texts))
    cells = list(_cells(texts, order, df, columns, norms))
    values = np.array([(count * idf * idf if is_reference else 1.0) for _, _, count, idf in cells])
    rows = np.array([row for row, _, _, _ in cells], dtype=np.int64)
    places = np.array([column for _, column, _, _ in cells], dtype=np.int64)
    return (values, (rows, places)), np.sqrt(norms)


def _cells(
    texts: Sequence[str],
    order: int,
    df: DocumentFrequencies,
    columns: dict[tuple[Ngram, int], int],
    norms: Float[np.ndarray, " n"],
) -> Iterator[tuple[int, int, int, float]]:
    for row, text in enumerate(texts):
        counts = Counter(ngram for ngram in _ngrams(text) if len(ngram) == order)
        for ngram, count in counts.items():
            idf = df.idf.get(ngram, df.idf_of_unseen)
            norms[row] += (count * idf) ** 2
            for occurrence in range(count):
                yield row, columns.setdefault((ngram, occurrence), len(columns)), count, idf
