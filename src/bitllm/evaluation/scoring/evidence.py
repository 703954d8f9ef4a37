"""What the floors say about a system's captions: paired differences in CIDEr, and one sentence."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bitllm.evaluation.scoring.caption_scores import CaptionScores
from bitllm.metrics.intervals import Estimate, paired_difference_of_sums, sum_by_image

NO_EVIDENCE = "no evidence that the captions depend on the betas"


def cider_differences(
    own: Float[np.ndarray, " n"],
    floors: Mapping[str, Float[np.ndarray, " n"]],
    image_ids: Sequence[Hashable],
    *,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """CIDEr of the captions less that of each floor, paired over images.

    Parameters
    ----------
    own
        CIDEr of each caption.
    floors
        CIDEr of what each floor says in its place ("permuted": the mean over the permutations).
    image_ids
        Whose caption it is.
    seed
        Of the bootstrap.
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
    """Say whether the captions fit their own images better than others, and beat one constant sentence.

    Captions alone can show no more than that: whether a fit comes from the betas or from a leak, the controls
    of the decoder show.
    """
    permuted, constant = (differences[f"real - {name}"]["CIDEr"] for name in ("permuted", "constant"))
    if permuted.low <= 0:
        what = (
            "all are one sentence"
            if scores.distinct == 1
            else "dealt to other images they score as well"
            if permuted.high >= 0
            else "dealt to other images they score better"
        )
        return f"{NO_EVIDENCE}: {what} (CIDEr real - permuted {_shown(permuted)})"
    fit = f"fit their own images better than others (CIDEr real - permuted {_shown(permuted)})"
    if constant.low <= 0:
        return (
            f"no evidence that the captions are better than one sentence for all images (CIDEr real - constant "
            f"{_shown(constant)}), though they {fit}"
        )
    return f"the captions {fit}; whether by the betas, only the decoder's controls can show"


def _shown(difference: Estimate) -> str:
    return f"{difference.shown(sign=True)}, p = {difference.p:.3f}"
