"""Evidence in bits: how much more probable a text is with the betas of its image than with a control.

References (`bits_per_word`):

    bits = log2 p(reference | betas of its image) − log2 p(reference | control)

They do not depend on what was decoded, and are 0 on average for a model that ignores its input.

Words of a decoded caption (`word_evidence`):

    bits of a word = Σ over its tokens of log2 p(token | betas of its image) − mean over other images of
                     log2 p(token | betas of another image)

Each token is conditioned on the preceding caption. A word that the language model would predict anyway has about 0
bits; a high value means that these betas predict the word better than other images' betas do.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bitllm.data.prompt import INSTRUCTIONS, Prompt, Prompter, plain_caption
from bitllm.metrics.intervals import Estimate, paired_difference_of_sums, sum_by_image
from bitllm.model.captioner import Captioner


@dataclass(frozen=True)
class ReferenceTokens:
    """The tokens of the references of all rows.

    Legend: R references (of all rows, in order), L tokens of the longest one.
    """

    row: Int[np.ndarray, " R"]
    """Row (of the held-out trials) of each reference."""
    answers: list[list[int]]
    """Token ids with the end token."""
    words: list[list[str]]
    """Words of each reference, in the form that the model is trained on (`plain_caption`)."""
    word: Int[np.ndarray, "R L"]
    """Index of the word of each token; −1 for the end token and padding."""

    @property
    def n_tokens(self) -> Int[np.ndarray, " R"]:
        """Number of tokens of each reference, including the end token."""
        return np.array([len(answer) for answer in self.answers])

    @property
    def n_words(self) -> Int[np.ndarray, " R"]:
        """Number of words of each reference."""
        return np.array([len(words) for words in self.words])

    def by_row(self, values: np.ndarray | None, n_rows: int) -> Float[np.ndarray, " n"]:
        """Sums over the references of each row, or their number without ``values``."""
        return np.bincount(self.row, values, minlength=n_rows).astype(np.float64)


def reference_tokens(prompter: Prompter, references: Sequence[Sequence[str]]) -> ReferenceTokens:
    """Tokenize the references of each row."""
    texts = [(row, plain_caption(text)) for row, group in enumerate(references) for text in group]
    answers = [prompter.answer_ids(text) for _, text in texts]
    word = np.full((len(texts), max(map(len, answers))), -1)
    for place, (_, text) in enumerate(texts):
        of_token = _word_of_each_token(prompter, text)
        word[place, : len(of_token)] = of_token
    return ReferenceTokens(
        np.array([row for row, _ in texts]), answers, [text.split() for _, text in texts], word
    )


def _word_of_each_token(prompter: Prompter, text: str) -> list[int]:
    """Index of the word in which each token ends; a token often starts with the space before its word."""
    offsets = prompter.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    return [len(text[:end].split()) - 1 for _, end in offsets]


def bits_per_word(
    real: Float[np.ndarray, "R L"],
    control: Float[np.ndarray, "R L"],
    tokens: ReferenceTokens,
    image_ids: Sequence[Hashable],
    *,
    seed: int,
    chosen: Bool[np.ndarray, "R L"] | None = None,
) -> Estimate | None:
    """Bits per word of the references, real − control, with interval and p over images.

    Parameters
    ----------
    real, control
        log2 p of the tokens of all references (`Captioner.log2_probs`).
    image_ids
        Image of each row; the trials of one image are resampled together.
    chosen
        Tokens that count, e.g. those of color words; by default all, including the end token. These are conditional
        probabilities: the tokens before the chosen ones are given. The result is None for fewer than two images.
    """
    n_words, n_rows = tokens.n_words, len(image_ids)
    if chosen is not None:
        n_words = np.array([len(set(w[mask].tolist())) for w, mask in zip(tokens.word, chosen, strict=True)])
        real, control = (np.where(chosen, log2, 0.0) for log2 in (real, control))
    counts = tokens.by_row(n_words, n_rows)
    # A ratio needs a nonzero denominator in every subset of images, so rows without a chosen word are left out.
    ids = [image for image, n in zip(image_ids, counts, strict=True) if n > 0]
    if len(set(ids)) < 2:
        return None
    a, b = (tokens.by_row(log2.sum(axis=1), n_rows)[counts > 0] for log2 in (real, control))
    return difference_of_ratios(a, b, counts[counts > 0], ids, seed=seed)


def difference_of_ratios(
    real: Float[np.ndarray, " n"],
    control: Float[np.ndarray, " n"],
    counts: Float[np.ndarray, " n"],
    image_ids: Sequence[Hashable],
    *,
    seed: int,
) -> Estimate:
    """Σ real / Σ counts − Σ control / Σ counts, with interval and p over images."""
    a, b = (sum_by_image(np.column_stack([sums, counts]), image_ids) for sums in (real, control))
    return paired_difference_of_sums(a, b, lambda sums: float(sums[0] / sums[1]), seed=seed)


class Word(NamedTuple):
    """A word of a caption with its bits."""

    word: str
    bits: float


def word_evidence(
    system: Captioner,
    captions: Sequence[str],
    brain_tokens: Float[Tensor, "n N width"],
    others: Sequence[Float[Tensor, "n N width"]],
    *,
    prompt: Prompt = Prompt(INSTRUCTIONS[0]),  # noqa: B008 - frozen
) -> list[list[Word]]:
    """Bits of every word of every caption, or answer to a prompt.

    Parameters
    ----------
    captions
        One caption for each input.
    brain_tokens
        Brain tokens of the images' own betas.
    others
        Brain tokens of other images' betas: one or more draws, each with one row per caption.
    prompt
        What the texts answer.
    """
    tokens = reference_tokens(system.prompter, [[caption] for caption in captions])
    prompts = [prompt] * len(captions)
    real, *control = (
        system.log2_probs(tokens.answers, tokens.row, rows, instruction=prompts)
        for rows in (brain_tokens, *others)
    )
    return [
        [Word(word, float(values[numbers == place].sum())) for place, word in enumerate(tokens.words[row])]
        for row, (values, numbers) in enumerate(
            zip(real - np.mean(control, axis=0), tokens.word, strict=True)
        )
    ]
