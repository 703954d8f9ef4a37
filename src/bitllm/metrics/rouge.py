"""ROUGE-L of captions as the COCO caption tools define it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bitllm.metrics.bleu import require_references

_BETA = 1.2  # weight of recall, the value of the COCO caption tools


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
    """ROUGE-L F-measure (longest common subsequence) of each caption with its references, in points (0 to 100).

    Precision and recall are each the best over the references, possibly of two different references; recall has more
    weight (β = 1.2). As in the COCO tools an empty text counts as one empty word, so an empty caption scores 0
    unless a reference is empty too.

    Parameters
    ----------
    captions
        Tokenized captions (words separated by single spaces).
    references
        Tokenized references of each caption, at least one.

    Raises
    ------
    DataError
        If there are not as many captions as sets of references, or a set is empty.

    References
    ----------
    Lin (2004), "ROUGE: a package for automatic evaluation of summaries", ACL workshop.
    """
    require_references(captions, references)
    scores = [_score(caption, texts) for caption, texts in zip(captions, references, strict=True)]
    return np.array(scores, dtype=np.float64)


def _score(caption: str, references: Sequence[str]) -> float:
    words = caption.split(" ")
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        length = longest_common_subsequence(words, reference_words)
        precision = max(precision, length / len(words))
        recall = max(recall, length / len(reference_words))
    if precision == 0 or recall == 0:
        return 0.0
    return 100 * (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; a row of the dynamic programming table is the bits of one integer.

    References
    ----------
    Hyyrö (2004), "Bit-parallel LCS-length computation revisited", AWOCA.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    all_ones = (1 << len(first)) - 1
    row = all_ones  # a zero bit marks a place where the length grows
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched) | (row - matched)
    return len(first) - (row & all_ones).bit_count()
