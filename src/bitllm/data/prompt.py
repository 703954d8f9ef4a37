"""Prompts: instructions, the chat template, and the tokens of a prompt and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

INSTRUCTIONS: tuple[str, ...] = (
    "describe the image .",
    "describe what the person sees .",
    "what is in the image ?",
    "write a caption of the image .",
)
"""Wordings of the instruction for training; decoding uses the first."""
SYSTEM_PROMPT = "You caption brain activity."
"""System message, for chat templates with one; their default message is three times as long."""
PROMPT_DATE = "26 Jul 2024"
"""Fixed date for chat templates that contain one (Llama 3's default); with today's date, prompts would change daily."""


@dataclass(frozen=True)
class Prompter:
    """Turns an instruction into the token ids of a prompt.

    Parameters
    ----------
    tokenizer
        The LLM's tokenizer; its chat template is used if it has one.
    n_placeholders, placeholder_id
        Number of placeholder tokens in front of the instruction, which a prefix interface replaces by brain tokens (0
        for ``cross_attention``), and the id of that token.
    """

    tokenizer: PreTrainedTokenizerBase
    n_placeholders: int = 0
    placeholder_id: int | None = None

    def prompt_ids(self, instruction: str) -> list[int]:
        """Token ids of the prompt, up to the start of the answer."""
        if self.n_placeholders:
            placeholder = str(self.tokenizer.convert_ids_to_tokens(int(self.placeholder_id or 0)))
            instruction = placeholder * self.n_placeholders + instruction
        if self.tokenizer.chat_template is None:
            return _ids(self.tokenizer(instruction))
        messages = [{"role": "user", "content": instruction}]
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


def pad_answers(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> dict[str, Int[Tensor, "B T"]]:
    """Prompts with their answers, padded on the right; labels are −100 except on the answer."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    labels = [[-100] * len(prompt) + list(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return {
        "input_ids": torch.tensor([row + [pad_id] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def plain_caption(caption: str) -> str:
    """A caption in the form that the LLM is trained on: lower case, without the final period, single spaces."""
    return " ".join(caption.strip().lower().rstrip(".").split())


def choose(n: int, *, seed: int, epoch: int, index: int, purpose: str) -> int:
    """A number from 0 to ``n`` − 1 as a pure function of (seed, epoch, index), so that a resumed run draws the same."""
    key = [seed, epoch, index, int.from_bytes(purpose.encode()[:7], "little")]
    return int(np.random.default_rng(key).integers(n))
