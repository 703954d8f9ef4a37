"""Answers of a system to every input (the real betas and each control): captions, log-probabilities of references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.errors import DataError
from bitllm.evaluation.bits import ReferenceTokens, reference_tokens
from bitllm.evaluation.controls import BETAS_CONTROLS, control_betas
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.pairing import other_images
from bitllm.model.captioner import Captioner

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcomes:
    """Answers under "real" and every control that was run."""

    held_out: HeldOut
    order: Int[np.ndarray, " n"]
    """For each row, the row that provides its betas under "permuted"."""
    tokens: ReferenceTokens
    captions: dict[str, list[str]] = field(default_factory=dict)
    """One caption for each row."""
    log2_probs: dict[str, Float[np.ndarray, "R L"]] = field(default_factory=dict)
    """log2 p of the tokens of all references."""
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the controls were made."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Controls that could not be made, with the reason."""


def outcomes(
    system: Captioner,
    held_out: HeldOut,
    *,
    seed: int,
    max_new_tokens: int,
    controls: Sequence[str] = BETAS_CONTROLS,
    likelihood_of: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Decode and score the references under real and permuted betas, the controls, and without a brain.

    Parameters
    ----------
    controls
        A selection of `BETAS_CONTROLS`; permuted and the LLM alone are always run.
    likelihood_of
        Inputs for which the references are scored; by default all. Permuted is scored if real is.
    progress
        Called as ``progress(what, done, total)``.
    """
    others = other_images(held_out, seed=seed)
    found = Outcomes(held_out, others.order, reference_tokens(system.prompter, held_out.references))
    found.about["permuted"] = {"n_adjacent": others.n_adjacent}
    n, tell = len(held_out.trials), progress or (lambda what, done, total: None)

    def score(name: str, brain_tokens: Tensor | None) -> None:
        found.log2_probs[name] = system.log2_probs(
            found.tokens.answers,
            found.tokens.row,
            brain_tokens,
            on_batch=lambda done, total: tell(f"{system.name}: {name}, likelihood", done, total),
        )

    def take(name: str, brain_tokens: Tensor | None) -> None:
        what = f"{system.name}: {name}"
        found.captions[name] = system.greedy(
            brain_tokens, n=n, max_new_tokens=max_new_tokens, on_batch=lambda done: tell(what, done, n)
        )
        if likelihood_of is None or name in likelihood_of:
            score(name, brain_tokens)

    real = held_out.brain_tokens(system.encoder, system.atlases)
    take("real", real)
    # Greedy decoding is a function of the betas, so the betas of another row give the caption of that row.
    found.captions["permuted"] = [found.captions["real"][row] for row in others.order]
    if "real" in found.log2_probs:
        score("permuted", real[others.order.tolist()])
    for control in controls:
        try:
            made = control_betas(control, held_out, seed=seed)
        except DataError as error:
            found.not_run[control] = str(error)
            continue
        found.about[control] = made.about
        take(control, held_out.brain_tokens(system.encoder, system.atlases, made.betas))
    take("llm_alone", None)
    return found
