"""What sft learns from: trials with their brain tokens or betas, an instruction, and one of the image's captions."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies, brain_input
from bitllm.data.dataset import TrialSet
from bitllm.data.prompt import INSTRUCTIONS, Prompter, choose, pad_answers, plain_caption
from bitllm.errors import DataError
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.training.embed import kept_brain_tokens


def prompter_for(model: BitLlmForCausalLM, tokenizer: Any) -> Prompter:
    """Prompts with room for the brain tokens where the interface is a prefix."""
    if model.config.interface == "cross_attention":
        return Prompter(tokenizer)
    return Prompter(tokenizer, model.model.encoder.n_brain_tokens, model.config.brain_token_id)


@dataclass(frozen=True)
class CaptionedTrials:
    """Trials, their brain tokens, and how they are asked and answered.

    Attributes
    ----------
    anatomies
        Where the voxels of the trials' subjects lie.
    brain_tokens
        Of every trial; None where the encoder learns, and a batch holds betas instead.
    seed
        Chooses instruction and caption, together with epoch and index.
    context
        Longest text that the LLM reads, in tokens.
    """

    trials: TrialSet
    anatomies: Anatomies
    brain_tokens: Float[Tensor, "n N width"] | None
    prompter: Prompter
    seed: int
    context: int

    @classmethod
    def of(
        cls,
        trials: TrialSet,
        model: BitLlmForCausalLM,
        tokenizer: Any,
        *,
        atlases: tuple[str, ...],
        seed: int,
        kept_in: Path | None = None,
        encoder_learns: bool = False,
    ) -> "CaptionedTrials":
        """Trials with the brain tokens that the model's frozen encoder gives, computed once, or with their betas.

        Parameters
        ----------
        kept_in
            Folder that the brain tokens are kept in; the memory where it is not given.
        encoder_learns
            Whether batches hold betas, since brain tokens change with every step.
        """
        anatomies = Anatomies.of(trials.store, trials.subjects, atlases)
        brain_tokens = None
        if not encoder_learns:
            brain_tokens = kept_brain_tokens(model.model.encoder, trials, anatomies, folder=kept_in)
        context = model.config.llama.max_position_embeddings
        return cls(trials, anatomies, brain_tokens, prompter_for(model, tokenizer), seed, context)

    @cached_property
    def _captions(self) -> dict[int, tuple[str, ...]]:
        return self.trials.store.captions

    @cached_property
    def _caption_lengths(self) -> dict[int, list[int]]:
        return {
            image: [
                len(self.prompter.answer_ids(plain_caption(caption))) for caption in self._captions[image]
            ]
            for image in sorted(set(self.trials.nsd_id.tolist()))
        }

    def batch(self, pairs: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Prompts, answers and brain tokens (or betas with their anatomy) of (epoch, index) pairs.

        Raises
        ------
        DataError
            If prompt and caption are longer than the LLM's context.
        """
        prompts, answers = [], []
        for epoch, index in pairs:
            image = int(self.trials.nsd_id[index])
            prompts.append(self.prompter.prompt_ids(self._instruction(epoch, index)))
            caption = plain_caption(self._captions[image][self._caption(epoch, index)])
            answers.append(self.prompter.answer_ids(caption))
            if len(prompts[-1]) + len(answers[-1]) > self.context:
                raise DataError(
                    f"captions: expected at most {self.context - len(prompts[-1])} tokens beside the prompt, found "
                    f"{len(answers[-1])} in a caption of image {image}; shorten it in the captions file and "
                    "prepare again, or take an LLM with a longer context"
                )
        indices = [index for _, index in pairs]
        return {
            **pad_answers(prompts, answers, self.prompter.tokenizer.pad_token_id),
            **self._brain(indices),
            "nsd_id": torch.from_numpy(self.trials.nsd_id[indices]),
        }

    def lengths(self, epoch: int) -> Int[np.ndarray, " n"]:
        """Number of tokens of each trial's prompt and caption in an epoch."""
        prompt = [len(self.prompter.prompt_ids(instruction)) for instruction in INSTRUCTIONS]
        return np.array(
            [
                prompt[self._instruction_number(epoch, index)]
                + self._caption_lengths[int(image)][self._caption(epoch, index)]
                for index, image in enumerate(self.trials.nsd_id)
            ]
        )

    def _brain(self, indices: list[int]) -> dict[str, Tensor]:
        if self.brain_tokens is None:
            return brain_input(self.trials, self.anatomies, indices)._asdict()
        return {"brain_tokens": self.brain_tokens[indices]}

    def _instruction(self, epoch: int, index: int) -> str:
        return INSTRUCTIONS[self._instruction_number(epoch, index)]

    def _instruction_number(self, epoch: int, index: int) -> int:
        return choose(len(INSTRUCTIONS), purpose="prompt", seed=self.seed, epoch=epoch, index=index)

    def _caption(self, epoch: int, index: int) -> int:
        n = len(self._captions[int(self.trials.nsd_id[index])])
        return choose(n, purpose="caption", seed=self.seed, epoch=epoch, index=index)
