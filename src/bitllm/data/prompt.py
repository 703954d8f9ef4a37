"""Prompts: instructions, the chat template, and the tokens of a prompt and its answer."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from bitllm.errors import ModelError

INSTRUCTIONS: tuple[str, ...] = (
    "describe the image .",
    "describe what the person sees .",
    "what is in the image ?",
    "write a caption of the image .",
)
"""Wordings of the instruction for training; decoding uses the first."""
SYSTEM_PROMPT = "You caption brain activity."
"""System message, for chat templates with one; their default message is three times as long."""
_REMEMBERED = 20_000  # texts of each kind with their tokens
PROMPT_DATE = "26 Jul 2024"
"""Fixed date for chat templates that contain one (Llama 3's default); with today's date, prompts would change daily."""


class Prompt(NamedTuple):
    """An instruction or question, after earlier questions with their answers."""

    instruction: str
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, answer) pairs, the oldest first."""


@dataclass(frozen=True)
class Prompter:
    """Turns an instruction into the token ids of a prompt.

    Parameters
    ----------
    tokenizer
        The LLM's tokenizer (of transformers); its chat template is used if it has one.
    n_placeholders, placeholder_id
        Number of placeholder tokens in front of the instruction, which a prefix interface replaces by brain tokens (0
        for ``cross_attention``), and the id of that token.
    """

    tokenizer: Any
    n_placeholders: int = 0
    placeholder_id: int | None = None

    def prompt_ids(self, instruction: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids of the prompt, up to the start of the answer.

        Parameters
        ----------
        instruction
            The instruction or question to be answered.
        history
            Earlier questions with their answers, in order. Placeholders for brain tokens stand once, before the first
            question. Every answer has its end token, so that the prompt of a turn begins with the prompt and the answer
            of the turn before.

        Raises
        ------
        ModelError
            If the chat template rewrites earlier turns.
        """
        first, *later = [*(question for question, _ in history), instruction]
        ids = list(self._first_turn_ids(first))
        for (_, answer), question in zip(history, later, strict=True):
            ids += [*self.answer_ids(answer), *self._later_turn_ids(question)]
        return ids

    def conversation(self, turns: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of every turn of a conversation: those up to the start of its answer, and those of the answer.

        One after the other they are the prompt and the answer of the last turn.
        """
        return [
            (
                self._later_turn_ids(question) if number else self._first_turn_ids(question),
                self._turn_answer_ids(answer),
            )
            for number, (question, answer) in enumerate(turns)
        ]

    # Templates are slow, and many conversations ask and answer the same.
    @cached_property
    def _first_turn_ids(self) -> Callable[[str], list[int]]:
        return lru_cache(_REMEMBERED)(self._opening_ids)

    @cached_property
    def _later_turn_ids(self) -> Callable[[str], list[int]]:
        return lru_cache(_REMEMBERED)(self._next_turn_ids)

    @cached_property
    def _turn_answer_ids(self) -> Callable[[str], list[int]]:
        return lru_cache(_REMEMBERED)(self.answer_ids)

    def _opening_ids(self, question: str) -> list[int]:
        """Token ids of a conversation's first turn, after the placeholders, up to the start of its answer."""
        if self.n_placeholders:
            placeholder = str(self.tokenizer.convert_ids_to_tokens(int(self.placeholder_id or 0)))
            question = placeholder * self.n_placeholders + question
        return self._ids_of_messages([question])

    def _next_turn_ids(self, question: str) -> list[int]:
        """Token ids from the end token of an answer to the start of the next one."""
        if self.tokenizer.chat_template is None:
            return _ids(self.tokenizer(question, add_special_tokens=False))
        # Templates differ in what they write between turns: it is found in a conversation with a known first turn.
        asked, answer = "what ?", "this"
        start, whole = self._ids_of_messages([asked]), self._ids_of_messages([asked, answer, question])
        rest, answer_ids = whole[len(start) :], self.answer_ids(answer)
        n = len(answer_ids) if rest[: len(answer_ids)] == answer_ids else len(answer_ids) - 1
        if whole[: len(start)] != start or rest[:n] != answer_ids[:n]:
            raise ModelError(
                "chat template: expected earlier turns as they were written, found a template that rewrites them; ask "
                "one question at a time, or use another LLM"
            )
        return rest[n:]

    def _ids_of_messages(self, texts: Sequence[str]) -> list[int]:
        """Token ids of messages, by the user and the assistant in turn, up to the start of the next answer."""
        if self.tokenizer.chat_template is None:
            return _ids(self.tokenizer(" ".join(texts)))
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": text}
            for number, text in enumerate(texts)
        ]
        if "system" in str(self.tokenizer.chat_template):
            messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
        return _ids(
            self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                date_string=PROMPT_DATE,
            )
        )

    def answer_ids(self, caption: str) -> list[int]:
        """Token ids of a caption and the end token."""
        return [*_ids(self.tokenizer(caption, add_special_tokens=False)), self.tokenizer.eos_token_id]

    def answers_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """`answer_ids` of many captions, tokenized in one call."""
        tokens = _ids(self.tokenizer(list(captions), add_special_tokens=False)) if captions else []
        return [[*ids, self.tokenizer.eos_token_id] for ids in tokens]

    @property
    def never_said(self) -> list[int] | None:
        """Tokens that must not be generated: a placeholder in a caption would be replaced by a brain token."""
        return [int(self.placeholder_id or 0)] if self.n_placeholders else None

    def without_brain(self) -> "Prompter":
        """The same prompts without placeholders, for the LLM alone."""
        return Prompter(self.tokenizer)


def _ids(encoding: Any) -> list[Any]:
    return list(encoding["input_ids"])


def plain_caption(caption: str) -> str:
    """A caption in the form that the LLM is trained on: lower case, without the final period, single spaces."""
    return " ".join(caption.strip().lower().rstrip(".").split())


def plain_question(question: str) -> str:
    """A question in the form of `INSTRUCTIONS`: lower case, single spaces, punctuation as separate words."""
    return " ".join(re.sub(r"(?<!\d)([.,])|([.,])(?!\d)|([?!])", r" \1\2\3 ", question.lower()).split())


def choose(n: int, *, seed: int, epoch: int, index: int, purpose: str) -> int:
    """A number from 0 to ``n`` − 1 as a pure function of (seed, epoch, index), so that a resumed run draws the same."""
    return int(_generator(seed, epoch, index, purpose).integers(n))


def drawn_number(*, seed: int, epoch: int, index: int, purpose: str) -> float:
    """A number from 0 to 1 (excluded), drawn like `choose`."""
    return float(_generator(seed, epoch, index, purpose).random())


def _generator(seed: int, epoch: int, index: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, index, int.from_bytes(purpose.encode()[:7], "little")])
