"""Score a file of captions and its floors, for the command line."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from bitllm.config import LARGEST_SEED, require_number
from bitllm.errors import BitLlmError, DataError, ModelError
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer, CaptionScores
from bitllm.evaluation.scoring.caption_scores import ExtraMetric, compare_captions
from bitllm.evaluation.scoring.captions_file import CaptionPairs, in_order_of, read_input, read_references
from bitllm.evaluation.scoring.extra_metrics import (
    bertscore_metric,
    clip_metrics,
    meteor_metric,
    spice_metric,
)
from bitllm.evaluation.scoring.floors import (
    best_constant_caption,
    human_ceiling,
    mean_metrics,
    permuted_captions,
)
from bitllm.metrics.intervals import Estimate, paired_difference_of_sums, sum_by_image
from bitllm.metrics.java import Meteor, why_no_meteor, why_no_spice

NO_EVIDENCE = "no evidence that the captions depend on the betas"
_ORACLE_SEARCH = 5000  # captions and images among which the oracle's constant caption is looked for


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `bitllm score`: further metrics and their models."""

    tokenizer: Literal["auto", "java", "python"] = "python"
    """``"auto"`` is Java where it runs, else Python."""
    meteor: bool = False
    """METEOR, where Java and its jar are there."""
    spice: bool = False
    """SPICE, where Java and its jars are there."""
    bertscore: str | None = None
    """Folder or hub id of an encoder."""
    bertscore_layer: int | None = None
    """Hidden layer of it to be used; by default the last one."""
    clip: str | None = None
    """Folder or hub id of a CLIP."""
    images: Path | None = None
    """Folder of pictures named for the ids, or a store."""
    seed: int = 0
    """Of the bootstrap and the permutations."""


def score_file(
    captions: Path,
    references: Path | None,
    *,
    training_references: Path | None = None,
    compare: Path | None = None,
    options: ScoreOptions = ScoreOptions(),
) -> CaptionScores:
    """Scores of a file of captions, with the floors "constant", "permuted" and "human".

    Parameters
    ----------
    captions
        Our ``captions.jsonl``, or one of the formats of `bitllm.data.io.captions`.
    references
        References in one of these formats, if the captions do not contain them.
    training_references
        References of training images, to choose the constant caption; without them it is chosen on the test
        references and labeled oracle.
    compare
        Captions of another system on the same images.
    options
        Further metrics and their models.
    """
    require_number("--seed", options.seed, least=0, most=LARGEST_SEED)
    notes: list[str] = []
    pairs = read_input(captions, references, notes)
    training = None
    if training_references is not None:
        training = list(read_references(training_references, notes).values())
    other = None
    if compare is not None:
        other = in_order_of(compare, read_input(compare, references, notes), pairs.ids)
    not_run: dict[str, str] = {}
    with ExitStack() as stack:
        extras = _extras(options, pairs, stack, not_run)
        scorer, of_words = _scorer(pairs, extras, options)
        scores = scorer.score(list(pairs.captions), seed=options.seed)
        floors, differences = _floors(scorer, scores, pairs, training, options.seed)
        notes = [*dict.fromkeys([*notes, *of_words])]
        if "human" not in floors:
            not_run["human ceiling"] = "expected at least 2 references for every image, found 1"
        if other is not None:
            theirs = _scores_of_other(scorer, pairs, other, extras, options)
            differences[f"{captions.name} - {compare.name if compare else ''}"] = compare_captions(
                scores, theirs, names=list(scores.metrics), seed=options.seed
            )
    n_empty = sum(not text.strip() for text in pairs.captions)
    if n_empty:
        notes.append(f"{n_empty} of {len(pairs.captions)} captions are empty; they are scored as they are")
    return replace(
        scores,
        floors=floors,
        differences=differences,
        not_run=not_run | scorer.not_run,
        notes=notes,
        summary=summary_of(scores, floors, differences),
        versions=scores.versions | _versions_of_models(options),
    )


def _extras(
    options: ScoreOptions, pairs: CaptionPairs, stack: ExitStack, not_run: dict[str, str]
) -> list[ExtraMetric]:
    _require_pictures(options, pairs)
    found = []
    if options.meteor:
        try:  # it reads its tables while we go on
            found.append(meteor_metric(stack.enter_context(Meteor())))
        except BitLlmError as error:
            not_run["METEOR"] = str(error).removeprefix("METEOR: ")
    else:
        not_run["METEOR"] = "left out (--no-meteor)"
    if (problem := why_no_spice() if options.spice else "left out (--no-spice)") is not None:
        not_run["SPICE"] = problem
    else:
        found.append(spice_metric())
    if options.bertscore is None:
        not_run["BERTScore"] = "no model given (--bertscore MODEL)"
    else:
        try:
            found.append(bertscore_metric(options.bertscore, options.bertscore_layer))
        except ModelError as error:
            not_run["BERTScore"] = str(error)
    if options.clip is None or options.images is None:
        not_run["CLIP-S"] = not_run["RefCLIP-S"] = "no model given (--clip MODEL --images FOLDER)"
    else:
        try:
            found += clip_metrics(options.clip, options.images, pairs.ids)
        except ModelError as error:
            not_run["CLIP-S"] = not_run["RefCLIP-S"] = str(error)
    return found


def _require_pictures(options: ScoreOptions, pairs: CaptionPairs) -> None:
    if options.clip is not None and options.images is None:
        raise DataError("--clip: expected images for CLIP-S, found none; give them with --images FOLDER")
    if pairs.are_coco_ids and options.images is not None and (options.images / "manifest.json").is_file():
        raise DataError(
            f"{options.images}: expected a folder of pictures named for COCO's ids, as the captions have them, found a "
            "store, which counts by nsd_id; name that folder, or write captions and references by nsd_id"
        )


def _scorer(
    pairs: CaptionPairs, extras: list[ExtraMetric], options: ScoreOptions
) -> tuple[CaptionScorer, list[str]]:
    """The scorer, and a note about its tokenizer."""
    sets, ids = [list(texts) for texts in pairs.references], list(pairs.ids)
    if options.tokenizer != "auto":
        return CaptionScorer(sets, image_ids=ids, tokenizer=options.tokenizer, extras=extras), []
    try:
        return CaptionScorer(sets, image_ids=ids, tokenizer="java", extras=extras), []
    except DataError:
        raise
    except BitLlmError as error:
        scorer = CaptionScorer(sets, image_ids=ids, tokenizer="python", extras=extras)
        reason = str(error).removesuffix("; or use the tokenizer `python`")
        return scorer, [f"words are by the Python tokenizer, since Java's does not run: {reason}"]


def _floors(
    scorer: CaptionScorer,
    scores: CaptionScores,
    pairs: CaptionPairs,
    training: list[tuple[str, ...]] | None,
    seed: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Scores of the floors, and the difference in CIDEr between the captions and each floor."""
    captions = list(pairs.captions)
    constant = best_constant_caption(
        scorer.image_references if training is None else training,
        n_candidates=_ORACLE_SEARCH,
        n_images=_ORACLE_SEARCH,
        tokenize=scorer.tokenized,
        seed=seed,
    )
    chosen_on = "oracle: the references of the test" if training is None else "training references"
    said = scorer.per_caption([constant] * len(captions))
    dealt = [scorer.per_caption(texts) for texts in permuted_captions(captions, scorer.image_ids, seed=seed)]
    floors: dict[str, dict[str, Any]] = {
        "constant": {
            "caption": constant,
            "chosen_on": chosen_on,
            **said.metrics(said.by_image().sum(axis=0)),
        },
        "permuted": mean_metrics([numbers.metrics(numbers.by_image().sum(axis=0)) for numbers in dealt]),
    }
    if min(len(texts) for texts in scorer.references) > 1:
        floors["human"] = human_ceiling(scorer, seed=seed)
    differences = cider_differences(
        scores.per_image.cider,
        {"permuted": np.mean([numbers.cider for numbers in dealt], axis=0), "constant": said.cider},
        scorer.image_ids,
        seed=seed,
    )
    return floors, differences


def _scores_of_other(
    scorer: CaptionScorer,
    pairs: CaptionPairs,
    other: CaptionPairs,
    extras: list[ExtraMetric],
    options: ScoreOptions,
) -> CaptionScores:
    if (other.ids, other.references) != (pairs.ids, pairs.references):
        # trials in another number, or references of its own: the pictures of a CLIP would be in another order
        rest = [metric for metric in extras if "CLIP" not in metric.name]
        scorer, _ = _scorer(other, rest, options)
    return scorer.score(list(other.captions), seed=options.seed)


def _versions_of_models(options: ScoreOptions) -> dict[str, str]:
    layer = "last layer" if options.bertscore_layer is None else f"layer {options.bertscore_layer}"
    found = {"BERTScore": f"{options.bertscore}, {layer}"} if options.bertscore else {}
    if options.clip:
        found["CLIP"] = options.clip
    if options.meteor and why_no_meteor() is None:
        found["METEOR"] = "1.5"
    return found


def cider_differences(
    own: Float[np.ndarray, " n"],
    floors: Mapping[str, Float[np.ndarray, " n"]],
    image_ids: Sequence[Hashable],
    *,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """CIDEr of the captions minus that of each floor, paired over images.

    Parameters
    ----------
    own
        CIDEr of each caption.
    floors
        CIDEr of each floor's caption for the same row ("permuted": mean over the permutations).
    image_ids
        Image of each caption.
    seed
        Seed of the random halves.
    """

    def sums(values: np.ndarray) -> np.ndarray:
        return sum_by_image(np.stack([values, np.ones(len(values))], axis=1), image_ids)

    def mean(total: np.ndarray) -> float:
        return float(total[0] / total[1])

    return {
        f"real - {name}": {"CIDEr": paired_difference_of_sums(sums(own), sums(values), mean, seed=seed)}
        for name, values in floors.items()
    }


def summary_of(
    scores: CaptionScores, floors: Mapping[str, Any], differences: Mapping[str, Mapping[str, Estimate]]
) -> str:
    """A sentence: whether captions fit their own images better than others, and beat one constant sentence.

    Captions alone cannot show whether a fit comes from the betas or from a leak; the controls of the decoder can.
    """
    permuted, constant = (differences[f"real - {name}"]["CIDEr"] for name in ("permuted", "constant"))
    if not permuted.is_above_zero:
        what = (
            "all are one sentence"
            if scores.distinct == 1
            else "dealt to other images they score as well"
            if permuted.high is None or permuted.high >= 0
            else "dealt to other images they score better"
        )
        return f"{NO_EVIDENCE}: {what} (CIDEr real - permuted {_shown(permuted)})"
    fit = f"fit their own images better than others (CIDEr real - permuted {_shown(permuted)})"
    if not constant.is_above_zero:
        return (
            f"no evidence that the captions are better than one sentence for all images (CIDEr real - constant "
            f"{_shown(constant)}), though they {fit}"
        )
    return f"the captions {fit}; whether by the betas, only the decoder's controls can show"


def _shown(difference: Estimate) -> str:
    return f"{difference.shown(sign=True)}, p = {difference.p:.3f}"
