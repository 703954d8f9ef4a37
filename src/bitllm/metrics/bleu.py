"""BLEU-1 to BLEU-4 of captions, from counts that can be summed over any set of images."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

from bitllm.errors import DataError

Ngram = tuple[str, ...]

_ORDERS = 4

# The COCO tools add these to numerators and denominators so that no count of 0 divides.
_SMALL = 1e-9
_TINY = 1e-15


class Bleu:
    """Counts for corpus BLEU, against references whose n-grams are counted once.

    Parameters
    ----------
    references
        Tokenized references (words separated by spaces), one set per caption.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self._images = [_Image(texts) for texts in references]

    def counts(self, captions: Sequence[str]) -> Int[np.ndarray, "n 10"]:
        """Counts of each tokenized caption against its references; see :func:`bleu_counts`."""
        require_references(captions, [image.texts for image in self._images])
        found = [image.counts(text) for text, image in zip(captions, self._images, strict=True)]
        return np.array(found, dtype=np.int64).reshape(-1, 2 + 2 * _ORDERS)

    def counts_of_reference(self, k: int) -> Int[np.ndarray, "n 10"]:
        """Counts of each image's reference ``k``, as a caption, against the other references of its image."""
        others = [[*image.texts[:k], *image.texts[k + 1 :]] for image in self._images]
        require_references([""] * len(others), others)
        found = [image.counts(image.texts[k], without=k) for image in self._images]
        return np.array(found, dtype=np.int64).reshape(-1, 2 + 2 * _ORDERS)


def bleu_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Int[np.ndarray, "n 10"]:
    """Counts of each caption that corpus BLEU sums over a corpus.

    The reference length is that of the reference closest in length to the caption, of two the shorter one.

    Parameters
    ----------
    captions
        Tokenized captions (words separated by spaces).
    references
        Tokenized references of each caption, at least one.

    Returns
    -------
    array
        Columns: words of the caption, words of the reference closest in length, matched (clipped) n-grams for
        n = 1..4, n-grams of the caption for n = 1..4.

    Raises
    ------
    DataError
        If there are not as many captions as sets of references, or a set is empty.
    """
    require_references(captions, references)
    return Bleu(references).counts(captions)


def bleu_from_counts(counts_sum: Shaped[np.ndarray, " k"]) -> list[float]:
    """BLEU-1, BLEU-2, … of a corpus in points (0 to 100), from the sum of :func:`bleu_counts` over its images.

    The same arithmetic as in the COCO caption tools, including the constants that prevent division by 0.

    References
    ----------
    Papineni et al. (2002), "BLEU: a method for automatic evaluation of machine translation", ACL.
    """
    max_order = (len(counts_sum) - 2) // 2
    n_words, n_reference_words = float(counts_sum[0]), float(counts_sum[1])
    correct, total = counts_sum[2 : 2 + max_order], counts_sum[2 + max_order :]
    ratio = (n_words + _TINY) / (n_reference_words + _SMALL)
    brevity = float(np.exp(1 - 1 / ratio)) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(max_order):
        product *= (float(correct[order]) + _TINY) / (float(total[order]) + _SMALL)
        scores.append(100.0 * brevity * product ** (1 / (order + 1)))
    return scores


def ngrams(text: str) -> list[Ngram]:
    """All n-grams (n = 1..4) of a tokenized text, with repetitions."""
    words = text.split()
    second, third, fourth = words[1:], words[2:], words[3:]
    return [
        *zip(words, strict=False),
        *zip(words, second, strict=False),
        *zip(words, second, third, strict=False),
        *zip(words, second, third, fourth, strict=False),
    ]


def require_references(captions: Sequence[str], references: Sequence[Sequence[object]]) -> None:
    """Refuse captions that do not have exactly one non-empty set of references each."""
    if len(captions) != len(references):
        raise DataError(
            f"references: expected one set for each of {len(captions)} captions, found {len(references)}; "
            "give the references in the order of the captions"
        )
    empty = [place for place, texts in enumerate(references) if not texts]
    if empty:
        raise DataError(
            f"references: expected at least one for every caption, found none for {len(empty)} of "
            f"{len(references)} (the first is number {empty[0]}); add them or leave those images out"
        )


class _Image:
    """N-gram counts of the references of one image.

    Stored for each n-gram are the largest count in a reference, that reference, and the largest count in the others.
    So any reference can be left out, and the cost of a caption does not depend on the number of references.
    """

    def __init__(self, references: Sequence[str]) -> None:
        self.texts = list(references)
        self._n_words = [len(text.split()) for text in references]
        self._most: dict[Ngram, tuple[int, int, int]] = {}
        for place, text in enumerate(references):
            for ngram, count in Counter(ngrams(text)).items():
                most, owner, second = self._most.get(ngram, (0, -1, 0))
                if count > most:
                    self._most[ngram] = (count, place, most)
                elif count > second:
                    self._most[ngram] = (most, owner, count)

    def counts(self, caption: str, without: int = -1) -> list[int]:
        """:func:`bleu_counts` of one caption, against all references except that with index ``without``."""
        n_words = len(caption.split())
        lengths = [n for place, n in enumerate(self._n_words) if place != without]
        nearest = min((abs(length - n_words), length) for length in lengths)[1]
        correct = [0] * _ORDERS
        for ngram, count in Counter(ngrams(caption)).items():
            most, owner, second = self._most.get(ngram, (0, -1, 0))
            if owner == without:
                most = second
            correct[len(ngram) - 1] += min(count, most)
        return [n_words, nearest, *correct, *(max(0, n_words - order) for order in range(_ORDERS))]
