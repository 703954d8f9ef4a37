"""Brain evidence in bits: how much more probable the references are under the brain than under another image's.

    bits = log2 p(reference | betas of its image) − log2 p(reference | betas of another image)

free of the luck of decoding; 0 on average for a model that does not use its input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.prompt import INSTRUCTIONS, pad_answers, plain_caption
from bitllm.evaluation.grounding.system import System
from bitllm.model.likelihood import token_log_probs
from bitllm.model.precision import computing

_BATCH = 128


class Bits(NamedTuple):
    """Evidence for each image, averaged over its references."""

    per_caption: Float[np.ndarray, " n"]
    per_token: Float[np.ndarray, " n"]


def evidence_bits(
    system: System,
    brain_tokens: Float[Tensor, "n N width"],
    other: Int[np.ndarray, " n"],
    references: Sequence[Sequence[str]],
) -> Bits:
    """Evidence for the references of each image.

    Parameters
    ----------
    brain_tokens
        Of each image's betas.
    other
        For each image, the row of another one (`bitllm.evaluation.scoring.floors.derangement`).
    """
    real = _log2_likelihood(system, brain_tokens, references)
    wrong = _log2_likelihood(system, brain_tokens[torch.from_numpy(other)], references)
    differences = [(a[0] - b[0], a[1]) for a, b in zip(real, wrong, strict=True)]
    owner = np.repeat(np.arange(len(references)), [len(group) for group in references])
    n_references = np.bincount(owner)
    bits, tokens = np.array(differences).T
    return Bits(
        np.bincount(owner, bits) / n_references, np.bincount(owner, bits) / np.bincount(owner, tokens)
    )


@torch.no_grad()
def _log2_likelihood(
    system: System, brain_tokens: Tensor, references: Sequence[Sequence[str]]
) -> list[tuple[float, int]]:
    """log2 p and number of tokens of every reference, image after image."""
    pairs = [(image, reference) for image, group in enumerate(references) for reference in group]
    prompt = system.prompter.prompt_ids(INSTRUCTIONS[0])
    pad_id = system.prompter.tokenizer.pad_token_id
    rows: list[tuple[float, int]] = []
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        answers = [system.prompter.answer_ids(plain_caption(reference)) for _, reference in batch]
        tensors = pad_answers([prompt] * len(batch), answers, pad_id)
        with computing(system.model):
            memory = system.model.model.brain_memory(brain_tokens=brain_tokens[[image for image, _ in batch]])
        log_probs, label_mask = token_log_probs(
            system.model,
            brain_memory=memory,
            input_ids=tensors["input_ids"],
            attention_mask=tensors["attention_mask"],
            labels=tensors["labels"],
        )
        rows += list(zip((log_probs.sum(-1) / np.log(2)).tolist(), label_mask.sum(-1).tolist(), strict=True))
    return rows
