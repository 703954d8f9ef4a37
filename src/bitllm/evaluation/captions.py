"""Captions under every input, scored: real − control with intervals, and the sentence that says what follows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.scoring.caption_scorer import CaptionScores
from bitllm.evaluation.scoring.score import compare_captions

NO_EVIDENCE = "no evidence that the captions depend on the betas"


def score_inputs(
    held_out: HeldOut, captions: dict[str, list[str]], *, seed: int
) -> tuple[dict[str, CaptionScores], dict[str, dict[str, dict[str, float]]]]:
    """Scores of the captions of each input, and real − control for each control and metric, paired over images."""
    scores = {name: held_out.scorer.score(texts, seed=seed) for name, texts in captions.items()}
    differences = {
        name: {
            metric: difference._asdict()
            for metric, difference in compare_captions(scores["real"], scores[name], seed=seed).items()
        }
        for name in captions
        if name != "real"
    }
    return scores, differences


def score_row(scores: CaptionScores) -> dict[str, Any]:
    """Metrics of one input in points, with the number of distinct captions and their mean length."""
    return {**scores.metrics, "distinct": scores.distinct, "mean_length": scores.mean_length}


def interval_rows(scores: CaptionScores) -> dict[str, dict[str, float]]:
    """Intervals of the metrics."""
    return {name: interval._asdict() for name, interval in scores.intervals.items()}


class Verdict(NamedTuple):
    """Whether the captions depend on the betas, in one word and in one sentence."""

    is_evidence: bool
    sentence: str


def verdict(
    real_captions: Sequence[str],
    real_minus_permuted: dict[str, float],
    bits_per_word: dict[str, float] | None = None,
) -> Verdict:
    """Judge a decoder by its captions alone: CIDEr of real less that of another image's betas.

    Evidence is an interval that lies above 0. Whatever a decoder says for every image alike (a constant caption, the
    LLM's prior, a caption of training images found by shuffled betas) has a difference of 0 up to chance.

    Parameters
    ----------
    real_captions
        Captions under the real betas.
    real_minus_permuted
        ``difference``, ``low``, ``high`` of CIDEr.
    bits_per_word
        ``mean``, ``low``, ``high`` of the bits, real − permuted, told beside it.
    """
    row = real_minus_permuted
    number = f"CIDEr real − permuted {row['difference']:+.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    n_distinct = len(set(real_captions))
    is_evidence = row["low"] > 0
    if is_evidence:
        sentence = f"the captions depend on the betas: {number}"
    else:
        few = f"; {n_distinct} distinct captions for {len(real_captions)} inputs"
        same = "; every caption is the same" if n_distinct == 1 else few
        empty = "; all are empty" if not any(text.strip() for text in real_captions) else ""
        sentence = f"{NO_EVIDENCE}: {number}{same}{empty}"
    if bits_per_word is not None:
        sentence += f"; {_of_bits(bits_per_word, is_evidence=is_evidence)}"
    return Verdict(is_evidence, sentence)


def _of_bits(row: dict[str, float], *, is_evidence: bool) -> str:
    number = f"{row['mean']:+.3f} [{row['low']:.3f}, {row['high']:.3f}] bits per word"
    if row["low"] > 0 and not is_evidence:
        return f"yet the references are more probable under the right betas, {number}"
    return f"the references under the right betas: {number}"


def caption_rows(
    captions: dict[str, list[str]],
    scores: dict[str, CaptionScores],
    differences: dict[str, dict[str, dict[str, float]]],
) -> dict[str, dict[str, Any]]:
    """The captions' part of ``grounding.json``: one entry for each input."""
    return {
        name: {
            "metrics": scores[name].metrics,
            "intervals": interval_rows(scores[name]),
            "distinct": scores[name].distinct,
            "n_empty": int(np.sum([not text.strip() for text in captions[name]])),
            "mean_length": scores[name].mean_length,
            **({"real - control": differences[name]} if name in differences else {}),
        }
        for name in captions
    }
