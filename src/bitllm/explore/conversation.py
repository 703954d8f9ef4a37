"""Questions about one trial: the answers of a system, beside those with another image's betas and without a brain.

Each input has a conversation of its own: the earlier turns of a prompt have that input's own answers, so that no
information from the trial's betas reaches the control through the history.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bitllm.data.prompt import INSTRUCTIONS, Prompt, Prompter, plain_caption, plain_question
from bitllm.errors import ConfigError
from bitllm.evaluation.bits import word_evidence
from bitllm.metrics.answers import exact_match
from bitllm.model.captioner import Captioner

MOST_TURNS, LONGEST_QUESTION = 12, 300
"""Number of turns, and number of characters of a question."""
REAL, CHANGED, CONTROL, ALONE = "real", "perturbed", "control", "alone"


@dataclass(frozen=True)
class Inputs:
    """Brain tokens of one trial and of its control."""

    real: Float[Tensor, "1 N width"]
    control: Float[Tensor, "1 N width"]
    others: Float[Tensor, "k N width"]
    """Of other images' betas, for the bits."""
    changed: Float[Tensor, "1 N width"] | None = None
    """Of the trial's betas after a change."""

    @property
    def by_name(self) -> dict[str, Float[Tensor, "1 N width"] | None]:
        """The inputs that are asked, in order; None is the LLM without a brain."""
        changed = {} if self.changed is None else {CHANGED: self.changed}
        return {REAL: self.real, **changed, CONTROL: self.control, ALONE: None}


Tell = Callable[[str, int, str, dict[str, Any]], None]
"""Called as ``tell(kind, turn, input, content)``; kind is ``answer_text`` after each token, ``answer`` at the end."""


def converse(
    system: Captioner,
    inputs: Inputs,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    known: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    tell: Tell = lambda kind, turn, name, content: None,
) -> list[dict[str, dict[str, Any]]]:
    """Answers to questions in turn, for each of them by input.

    An answer has its text (``answer``), its ``probability`` under its own input, and, except without a brain, its
    ``words`` with their bits: log2 p given the trial's own betas − the mean over other images' betas. ``accepted`` are
    the true answers and ``is_right`` whether it is one of them (None without any).

    Parameters
    ----------
    questions
        In any form.
    known
        True answers to questions in plain form (`plain_question`).

    Raises
    ------
    ConfigError
        If a question is empty or too long, or there are too many.
    """
    asked = [_checked(question) for question in questions]
    if not 0 < len(asked) <= MOST_TURNS:
        raise ConfigError(f"questions: expected 1 to {MOST_TURNS}, found {len(asked)}; ask fewer at a time")
    history: dict[str, tuple[tuple[str, str], ...]] = dict.fromkeys(inputs.by_name, ())
    turns = []
    for turn, question in enumerate(asked):
        said = {}
        for name, brain_tokens in inputs.by_name.items():
            prompt = Prompt(question, history[name])
            (text,) = system.greedy(
                brain_tokens,
                instruction=[prompt],
                max_new_tokens=max_new_tokens,
                on_text=lambda text, name=name, turn=turn: tell("answer_text", turn, name, {"text": text}),  # type: ignore[misc]
            )
            said[name] = {
                "answer": text,
                "probability": _probability(system, text, prompt, brain_tokens),
                "words": []
                if brain_tokens is None
                else mean_word_bits(system, text, inputs.real, inputs.others, prompt),
                "accepted": list(known.get(question, ())),
                "is_right": exact_match(text, known[question]) == 1 if question in known else None,
            }
            history[name] = (*history[name], (question, plain_caption(text)))
            tell("answer", turn, name, said[name])
        turns.append(said)
    return turns


def unknown_words(prompter: Prompter, questions: Sequence[str]) -> list[str]:
    """Words of the questions that the LLM's vocabulary does not have; only small LLMs lack words."""
    unknown = prompter.tokenizer.unk_token_id
    words = dict.fromkeys(word for question in questions for word in plain_question(question).split())
    ids = {word: prompter.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
    return [] if unknown is None else [word for word, found in ids.items() if unknown in found]


def _checked(question: str) -> str:
    asked = plain_question(question)
    if not asked or len(question) > LONGEST_QUESTION:
        found = f"one of {len(question)}" if asked else "an empty one"
        raise ConfigError(
            f"question: expected 1 to {LONGEST_QUESTION} characters, found {found}; ask a shorter question, in quotes"
        )
    return asked


def _probability(
    system: Captioner, text: str, prompt: Prompt, brain_tokens: Float[Tensor, "1 N width"] | None
) -> float:
    """Probability of an answer as a whole, with its end token."""
    ids = system.prompter.answers_ids([text])
    log2 = system.log2_probs(ids, np.array([0]), brain_tokens, instruction=[prompt])
    return round(float(2 ** log2.sum()), 6)


def mean_word_bits(
    system: Captioner,
    text: str,
    scored_with: Float[Tensor, "1 N width"],
    others: Float[Tensor, "k N width"],
    prompt: Prompt = Prompt(INSTRUCTIONS[0]),  # noqa: B008 - frozen
) -> list[dict[str, Any]]:
    """Bits of each word of a caption, or of an answer to a prompt, averaged over the other inputs."""
    n = len(others)
    rows = word_evidence(system, [text] * n, scored_with.expand_as(others), [others], prompt=prompt)
    return [
        {"word": of_word[0].word, "bits": round(float(np.mean([word.bits for word in of_word])), 3)}
        for of_word in zip(*rows, strict=True)
    ]
