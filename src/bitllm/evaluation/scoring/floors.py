"""Reference points for a decoder's scores that need no brain: constant, permuted and human captions."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from bitllm.errors import DataError
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer
from bitllm.metrics.cider import DocumentFrequencies, mean_cider
from bitllm.metrics.tokenize import ptb_tokenize

_TRIES = 1000
_HUMAN_ROUNDS = 20
"""Up to this number of references per image, each is held out in turn."""
_HUMAN_PAIRS = 100_000
"""With more references, this is the number of comparisons between a held-out reference and another one, in at least 5
rounds: METEOR takes 0.2 ms for each."""


def human_ceiling(scorer: CaptionScorer, *, seed: int = 0) -> dict[str, Any]:
    """Score of people: each reference in turn against the others of its image, averaged over rounds.

    There are as many rounds as the image with the fewest references has. If it has more than 20, references are
    drawn for 5 to 20 rounds; ``drawn`` then records how many and with which seed. CIDEr uses the document
    frequencies of all references, as for systems. Each caption here has one reference fewer than a system's, which
    lowers BLEU, so a system may score above people.

    Parameters
    ----------
    scorer
        Scorer with the references.
    seed
        Seed of the draw of references.
    """
    n_rounds = min(len(texts) for texts in scorer.references)
    if n_rounds < 2:
        raise DataError(
            f"human ceiling: expected at least 2 references for every image, found {n_rounds}; "
            "leave out the ceiling"
        )
    drawn = _sample(n_rounds, _human_rounds(scorer), np.random.default_rng(seed)).tolist()
    rounds = [scorer.per_held_out_reference(k) for k in drawn]
    found: dict[str, Any] = dict(
        mean_metrics([numbers.metrics(numbers.by_image().sum(axis=0)) for numbers in rounds])
    )
    if len(drawn) < n_rounds:
        found["drawn"] = f"{len(drawn)} of {n_rounds} references of each image (seed {seed})"
    return found


def _human_rounds(scorer: CaptionScorer) -> int:
    sizes = [len(texts) for texts in scorer.references]
    if min(sizes) <= _HUMAN_ROUNDS:
        return min(sizes)
    return max(5, min(_HUMAN_ROUNDS, _HUMAN_PAIRS // sum(sizes)))


def best_constant_caption(
    training_references: Sequence[Sequence[str]],
    *,
    n_candidates: int = 2000,
    n_images: int = 500,
    tokenize: Callable[[Sequence[str]], list[str]] = ptb_tokenize,
    seed: int = 0,
) -> str:
    """The training caption with the best mean CIDEr if it is used for every training image.

    The search uses samples, so that it takes a few seconds for any data set: at most ``n_candidates`` different
    captions, scored against the references (with their document frequencies) of at most ``n_images`` images. It uses
    no test image, so a decoder could have known this caption.

    Parameters
    ----------
    training_references
        Raw references, one set per training image.
    n_candidates, n_images
        Sizes of the samples.
    tokenize
        Tokenizer of the metrics.
    seed
        Seed of the samples.
    """
    images = [texts for texts in training_references if texts]
    rng = np.random.default_rng(seed)
    pool = sorted({text for image in images for text in image})
    if not pool:
        raise DataError(
            f"constant caption: expected training references and candidates, found {len(images)} images and "
            f"{len(pool)} candidates; give the references of the training images"
        )
    drawn = [images[place] for place in _sample(len(images), n_images, rng)]
    tried = [pool[place] for place in _sample(len(pool), n_candidates, rng)]
    flat = iter(tokenize([text for image in drawn for text in image]))
    references = [[next(flat) for _ in image] for image in drawn]
    scores = mean_cider(tokenize(tried), references, DocumentFrequencies.fit(references))
    return tried[int(scores.argmax())]


def permuted_captions(
    captions: Sequence[str], image_ids: Sequence[Hashable], *, n_permutations: int = 5, seed: int = 0
) -> list[list[str]]:
    """Captions reassigned so that no image has one of its own, ``n_permutations`` times.

    The captions are as fluent and varied as before; only the assignment to images is random.
    """
    rng = np.random.default_rng(seed)
    orders = [derangement(image_ids, rng) for _ in range(n_permutations)]
    return [[captions[place] for place in order] for order in orders]


def derangement(groups: Sequence[Hashable], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A random permutation in which every position gets an element of another group.

    Parameters
    ----------
    groups
        Group (such as the image) of each position.
    rng
        Random generator.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group = np.array([numbers[name] for name in groups], dtype=np.int64)
    order = rng.permutation(len(group))
    for _ in range(_TRIES):
        kept = np.flatnonzero(group[order] == group)
        if len(kept) == 0:
            return order.astype(np.int64)
        for place in kept:
            other = rng.integers(len(group))
            order[place], order[other] = order[other], order[place]
    raise DataError(
        f"permutation: expected groups that can be exchanged, found {len(numbers)} with up to "
        f"{int(np.bincount(group).max(initial=0))} of {len(group)} places; give more images"
    )


def mean_metrics(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over rounds of every metric that all rounds have."""
    names = [name for name in rounds[0] if all(name in metrics for metrics in rounds)]
    return {name: float(np.mean([metrics[name] for metrics in rounds])) for name in names}


def _sample(n: int, size: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    return np.sort(rng.permutation(n)[:size]).astype(np.int64)
