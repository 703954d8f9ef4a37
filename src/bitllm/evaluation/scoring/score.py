"""Score a system's captions beside their floors, and compare two systems on the same images."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

from bitllm.errors import DataError
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer, CaptionScores, Tokenizer
from bitllm.evaluation.scoring.caption_scores import score_differences
from bitllm.evaluation.scoring.floors import best_constant_caption, score_floors
from bitllm.metrics.intervals import Estimate


def score_captions(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    training_references: Sequence[Sequence[str]] | None = None,
    image_ids: Sequence[Hashable] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    tokenizer: Tokenizer = "python",
) -> CaptionScores:
    """Score one system's captions; with training references given, beside the floors and the human ceiling.

    Parameters
    ----------
    captions
        Raw captions, one per image (or per trial).
    references
        Raw references of each caption, at least one.
    training_references
        Sets of training references, from which the best constant caption is chosen. Without them no floors
        are computed.
    image_ids
        Which image each caption belongs to, if some share one.
    n_bootstrap
        Resamplings of the images.
    seed
        Of the resampling, the permutations and the choice of the constant caption.
    tokenizer
        ``"python"``, or ``"java"`` for the jar of the COCO tools (for numbers to be published).

    Raises
    ------
    DataError
        If captions and references do not fit, an image has no references, or there are fewer than two images.
    """
    scorer = CaptionScorer(references, image_ids=image_ids, tokenizer=tokenizer)
    scores = scorer.score(captions, n_bootstrap=n_bootstrap, seed=seed)
    if training_references is None:
        return scores
    constant = best_constant_caption(training_references, seed=seed)
    floors = score_floors(scorer, captions, constant=constant, seed=seed)
    return replace(scores, floors=floors)


def compare_captions(
    a: CaptionScores,
    b: CaptionScores,
    *,
    names: Sequence[str] = ("CIDEr", "ROUGE-L", "BLEU-4"),
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Paired differences a − b on the same images, of the metrics named that both have.

    Random halves of the images are drawn, the same ones for both; BLEU is computed anew from the counts of each.

    Raises
    ------
    DataError
        If the two were not scored on the same images in the same order, with the same references.
    """
    images_a, images_b = (tuple(dict.fromkeys(scores.per_image.image_ids)) for scores in (a, b))
    if images_a != images_b or a.references_sha256 != b.references_sha256:
        same = sum(x == y for x, y in zip(images_a, images_b, strict=False))
        raise DataError(
            f"comparison: expected the same images and references in both systems, found {len(images_a)} and "
            f"{len(images_b)} images, {same} in the same place, references {a.references_sha256[:8]} and "
            f"{b.references_sha256[:8]}; score both on the same references"
        )
    return score_differences(a.per_image, b.per_image, names=names, n_draws=n_draws, seed=seed)
