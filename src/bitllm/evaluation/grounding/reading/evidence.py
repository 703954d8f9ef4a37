"""How much the betas say for each word of a caption that was decoded.

    bits of a word = Σ over its tokens of log2 p(token | betas of its image) − mean over other images of
                     log2 p(token | betas of another image)

What stands before a token is the caption itself. A word that the language model would say anyway has about 0 bits,
however true it is; a word with many is one that these betas and not those of other images call for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bitllm.evaluation.grounding.bits import reference_tokens, token_log2_probs
from bitllm.evaluation.grounding.system import System


class Word(NamedTuple):
    """A word of a caption with its brain evidence."""

    word: str
    bits: float


def word_evidence(
    system: System,
    captions: Sequence[str],
    brain_tokens: Float[Tensor, "n N width"],
    others: Sequence[Float[Tensor, "n N width"]],
) -> list[list[Word]]:
    """Bits of every word of every caption.

    Parameters
    ----------
    captions
        One caption of each input.
    brain_tokens
        Of the inputs that are to speak for the captions.
    others
        Of other images' betas, one or more draws, each with one row for every caption.
    """
    tokens = reference_tokens(system.prompter, [[caption] for caption in captions])
    real = token_log2_probs(system, tokens, brain_tokens)
    control = np.mean([token_log2_probs(system, tokens, rows) for rows in others], axis=0)
    return [
        [Word(word, float(values[numbers == place].sum())) for place, word in enumerate(tokens.words[row])]
        for row, (values, numbers) in enumerate(zip(real - control, tokens.word, strict=True))
    ]
