"""BLEU-1 to BLEU-4 of captions, from counts that can be summed over any set of images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped
from sacrebleu.metrics import BLEU

from bitllm.errors import DataError

# The COCO tools add these to numerators and denominators so that no count of 0 divides.
_SMALL = 1e-9
_TINY = 1e-15


def bleu_counts(
    captions: Sequence[str], references: Sequence[Sequence[str]], max_order: int = 4
) -> Int[np.ndarray, "n k"]:
    """Count, per caption, what corpus BLEU sums over a corpus.

    The n-grams are matched by sacrebleu (``tokenize="none"``: the words are taken as they come). Of the
    lengths of the references the nearest to the caption's is kept, the shorter one of two equally near.

    Parameters
    ----------
    captions
        Tokenised captions (words separated by spaces).
    references
        Tokenised references of each caption, at least one.
    max_order
        Longest n-gram.

    Returns
    -------
    array
        Columns: words of the caption, words of the nearest reference, then for n = 1..max_order the n-grams
        of the caption that a reference holds (clipped), then for n = 1..max_order its n-grams.

    Raises
    ------
    DataError
        If there are not as many captions as sets of references, or a set is empty.
    """
    require_references(captions, references)
    scorer = BLEU(tokenize="none", smooth_method="none", effective_order=True, max_ngram_order=max_order)
    rows = np.zeros((len(captions), 2 + 2 * max_order), dtype=np.int64)
    for row, caption, texts in zip(rows, captions, references, strict=True):
        n_words = len(caption.split())
        lengths = [len(text.split()) for text in texts]
        found = scorer.sentence_score(caption, list(texts))
        row[0] = n_words
        # sacrebleu leaves out empty references, the COCO tools count them as references of length 0
        row[1] = min(lengths, key=lambda length: (abs(length - n_words), length))
        row[2 : 2 + max_order] = found.counts
        row[2 + max_order :] = found.totals
    return rows


def bleu_from_counts(counts_sum: Shaped[np.ndarray, " k"]) -> list[float]:
    """BLEU-1, BLEU-2, … of a corpus in points (0 to 100) from the sum of :func:`bleu_counts` over its images.

    The same arithmetic as the COCO caption tools, the constants that keep it from dividing by 0 included.

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


def require_references(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse captions that do not have one non-empty set of references each.

    Raises
    ------
    DataError
        If there are not as many captions as sets of references, or a set is empty.
    """
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
