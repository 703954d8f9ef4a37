"""Evidence within groups of images: by number of repetitions, by category, by likeness to training images."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from bitllm.evaluation.bits import bits_by_row, difference_of_ratios
from bitllm.evaluation.outcomes import Outcomes
from bitllm.evaluation.scoring.caption_scorer import CaptionScores
from bitllm.evaluation.words import WordCategories
from bitllm.metrics.intervals import bootstrap_mean, paired_difference

_N_THIRDS = 3


class Strata:
    """Numbers within a group of rows.

    Parameters
    ----------
    found
        What came out for every input.
    scores
        Of "real" and "permuted".
    seed
        Of the bootstrap.
    """

    def __init__(self, found: Outcomes, scores: dict[str, CaptionScores], *, seed: int) -> None:
        self.found, self.seed = found, seed
        self.real = scores["real"].per_image.cider
        self.permuted = scores["permuted"].per_image.cider
        log2 = found.log2_probs
        self.bits, self.words = bits_by_row(
            log2["real"], log2["permuted"], found.tokens, len(found.held_out.trials)
        )

    def row(self, chosen: Bool[np.ndarray, " n"]) -> dict[str, Any]:
        """CIDEr, real − permuted and bits per word of some rows; with one image or none, only their number."""
        n = int(chosen.sum())
        if n < 2:
            return {"n_images": n}
        low, high = bootstrap_mean(self.real[chosen], seed=self.seed)
        bits = self.bits[chosen]
        return {
            "n_images": n,
            "CIDEr": {"mean": float(self.real[chosen].mean()), "low": low, "high": high},
            "CIDEr, real - permuted": paired_difference(
                self.real[chosen], self.permuted[chosen], seed=self.seed
            )._asdict(),
            "bits_per_word": difference_of_ratios(
                bits, np.zeros(n), self.words[chosen], list(range(n)), seed=self.seed
            ),
        }

    def by_repetitions(self) -> list[dict[str, Any]]:
        """One row for each number of averaged trials."""
        counts = self.found.held_out.n_repetitions
        return [{"n_repetitions": int(n), **self.row(counts == n)} for n in np.unique(counts)]

    def by_category(self, categories: WordCategories) -> list[dict[str, Any]]:
        """One row for each category that an image is of; an image may be of several."""
        references = self.found.held_out.references
        return [
            {"category": name, **self.row(categories.images_of(name, references))}
            for name in categories.nouns
        ]

    def by_similarity(self, similarity: Float[np.ndarray, " n"]) -> dict[str, Any]:
        """Thirds of the images by the cosine of their picture to the nearest training picture.

        A positive correlation says that what is decoded best is what resembles a training image.
        """
        order = np.argsort(similarity, kind="stable")
        rows = []
        for name, part in zip(
            ("least alike", "middle", "most alike"), np.array_split(order, _N_THIRDS), strict=True
        ):
            chosen = np.isin(np.arange(len(order)), part)
            limits = [float(similarity[part].min()), float(similarity[part].max())] if len(part) else []
            rows.append({"third": name, "similarity": limits, **self.row(chosen)})
        correlation = spearmanr(similarity, self.real - self.permuted)
        return {
            "thirds": rows,
            "spearman_with_CIDEr_real_minus_permuted": _number(correlation.statistic),
            "p": _number(correlation.pvalue),
        }


def _number(value: float) -> float | None:
    """None where a correlation is not defined, as when every caption is the same."""
    return None if np.isnan(value) else float(value)
