"""Ground a system: decode the held-out subject under real betas and under every control, and score all of it.

Each control answers "how much of the score comes from the brain?": a score is never given without them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.errors import SplitError
from bitllm.evaluation.grounding.bits import Bits, evidence_bits
from bitllm.evaluation.grounding.controls import BETAS_CONTROLS, betas_of, control_betas
from bitllm.evaluation.grounding.system import System
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer, CaptionScores
from bitllm.evaluation.scoring.captions_file import CaptionRecord
from bitllm.evaluation.scoring.floors import derangement
from bitllm.evaluation.scoring.score import compare_captions
from bitllm.metrics.intervals import bootstrap_mean
from bitllm.training.decode import greedy_captions
from bitllm.training.embed import brain_tokens_of_betas


@dataclass(frozen=True)
class HeldOut:
    """The test trials of one subject, averaged over repetitions or single, with their references and scorer."""

    store: Store
    subject: str
    trials: TrialSet
    betas: Float[np.ndarray, "n voxels"]
    references: list[tuple[str, ...]]
    scorer: CaptionScorer

    @property
    def nsd_id(self) -> Int[np.ndarray, " n"]:
        """Image of each row."""
        return self.trials.nsd_id

    def records(self, captions: Sequence[str], *, control: str) -> list[CaptionRecord]:
        """Lines of ``captions.jsonl``."""
        return [
            CaptionRecord(
                nsd_id=int(self.nsd_id[row]),
                subject=self.subject,
                caption=caption,
                references=self.references[row],
                n_repetitions=self.trials.n_repetitions(row),
                control=control,
            )
            for row, caption in enumerate(captions)
        ]


def read_held_out(store: Store, split: Split, *, averaged: bool) -> HeldOut:
    """The test part of a split.

    Raises
    ------
    SplitError
        If the split has several test subjects.
    """
    if len(split.test_subjects) != 1:
        raise SplitError(
            f"split `{split.name}`: expected one test subject, found {', '.join(split.test_subjects)}; "
            "ground them one at a time"
        )
    trials = select_trials(store, split, "test", averaged=averaged)
    references = [store.captions[int(nsd_id)] for nsd_id in trials.nsd_id]
    return HeldOut(
        store,
        split.test_subjects[0],
        trials,
        betas_of(trials),
        references,
        CaptionScorer(references, image_ids=trials.nsd_id.tolist()),
    )


@dataclass(frozen=True)
class Grounding:
    """Captions, scores and evidence of one system."""

    captions: dict[str, list[str]]
    """For "real" and every control, one caption for each row."""
    scores: dict[str, CaptionScores]
    """Of the same."""
    differences: dict[str, dict[str, dict[str, float]]]
    """Real − control for each control and metric, paired over images."""
    bits: dict[str, dict[str, float]]
    """Evidence per caption and per token, with its interval."""
    bits_per_image: Float[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0))


def ground(
    system: System,
    held_out: HeldOut,
    *,
    baselines: dict[str, list[str]],
    seed: int,
    max_new_tokens: int = 24,
    on_decoded: Callable[[str], None] | None = None,
) -> Grounding:
    """Decode and score a system under real betas and all controls.

    Parameters
    ----------
    system
        What decodes.
    held_out
        Whose brain.
    baselines
        Captions of controls that need no decoding, e.g. ``constant`` and ``nearest``.
    seed
        Of shuffles, permutations and the bootstrap.
    max_new_tokens
        Longest caption, in tokens.
    on_decoded
        Called with the name of each input that is decoded.
    """
    n = len(held_out.trials)
    other = derangement(held_out.nsd_id.tolist(), np.random.default_rng(seed))
    captions: dict[str, list[str]] = {}
    for control in ("real", *BETAS_CONTROLS):
        if control == "permuted":
            # greedy decoding is a function of the betas: those of another image give that image's caption
            captions[control] = [captions["real"][row] for row in other]
        else:
            brain_tokens = control_tokens(system, held_out, control, seed=seed)
            captions[control] = _decode(system, brain_tokens, n=n, max_new_tokens=max_new_tokens)
        if on_decoded is not None:
            on_decoded(control)
    captions |= {**baselines, "llm_alone": _decode(system, None, n=n, max_new_tokens=max_new_tokens)}
    scores = {control: held_out.scorer.score(texts, seed=seed) for control, texts in captions.items()}
    differences = {
        control: {
            name: difference._asdict()
            for name, difference in compare_captions(scores["real"], scores[control], seed=seed).items()
        }
        for control in captions
        if control != "real"
    }
    bits = evidence_bits(
        system,
        control_tokens(system, held_out, "real", seed=seed),
        other,
        held_out.references,
    )
    return Grounding(captions, scores, differences, _with_intervals(bits, seed=seed), bits.per_caption)


def control_tokens(
    system: System, held_out: HeldOut, control: str, *, seed: int
) -> Float[Tensor, "n N width"]:
    """Brain tokens of the held-out subject under a control ("real": none)."""
    anatomies = Anatomies.of(held_out.store, [held_out.subject], system.atlases)
    betas = held_out.betas
    if control != "real":
        betas = control_betas(control, betas, held_out.nsd_id, seed=seed)
    return brain_tokens_of_betas(system.encoder, list(betas), held_out.subject, anatomies)


def _decode(
    system: System, brain_tokens: Float[Tensor, "n N width"] | None, *, n: int, max_new_tokens: int
) -> list[str]:
    """Greedy captions; inputs that are all equal are decoded once."""
    if brain_tokens is None or bool((brain_tokens == brain_tokens[:1]).all()):
        one = None if brain_tokens is None else brain_tokens[:1]
        return greedy_captions(system.model, system.prompter, one, max_new_tokens=max_new_tokens) * n
    return greedy_captions(system.model, system.prompter, brain_tokens, max_new_tokens=max_new_tokens)


def _with_intervals(bits: Bits, *, seed: int) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for name, values in bits._asdict().items():
        interval = bootstrap_mean(values, seed=seed)
        rows[name] = {"mean": float(values.mean()), "low": interval.low, "high": interval.high}
    return rows


def score_row(scores: CaptionScores) -> dict[str, Any]:
    """Metrics of one input in points, with the number of distinct captions and their mean length."""
    return {**scores.metrics, "distinct": scores.distinct, "mean_length": scores.mean_length}


def interval_rows(scores: CaptionScores) -> dict[str, dict[str, float]]:
    """Intervals of the metrics."""
    return {name: interval._asdict() for name, interval in scores.intervals.items()}
