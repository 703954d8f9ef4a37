"""Diversity of a set of captions, which distinguishes decoding from one repeated sentence."""

from collections import Counter
from collections.abc import Sequence


def distinct_n(captions: Sequence[str], n: int) -> float:
    """Different n-grams as a fraction (0 to 1) of all n-grams of tokenized captions; 0 without any.

    References
    ----------
    Li et al. (2016), "A diversity-promoting objective function for neural conversation models", NAACL.
    """
    total, different = 0, set()
    for caption, times in Counter(captions).items():
        words = caption.split()
        ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
        total += times * len(ngrams)
        different.update(ngrams)
    return len(different) / total if total else 0.0


def n_distinct_captions(captions: Sequence[str]) -> int:
    """Number of different captions, including an empty one."""
    return len(set(captions))


def mean_length(captions: Sequence[str]) -> float:
    """Mean number of words of tokenized captions; 0 without captions."""
    return sum(len(caption.split()) for caption in captions) / len(captions) if captions else 0.0
