"""Training examples: trials with brain tokens or betas, an instruction, and one of the image's captions."""

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
from bitllm.files import file_written_whole, sha256_of_json
from bitllm.model.captioner import Captioner
from bitllm.model.checkpoint.base import weights_hash
from bitllm.model.embed import brain_tokens_of, encode
from bitllm.model.encoder import BrainEncoder
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.training.distributed import barrier, is_main

_BATCH = 512


@dataclass(frozen=True)
class CaptionedTrials:
    """Trials with their brain tokens, prompts and captions.

    Attributes
    ----------
    anatomies
        Voxel coordinates and labels of the trials' subjects.
    brain_tokens
        One row for each trial; None if the encoder is trained, and batches hold betas instead.
    seed
        Together with epoch and index it determines the instruction and the caption of an example.
    context
        Context length of the LLM, in tokens.
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
        cache_dir: Path | None = None,
        train_encoder: bool = False,
    ) -> "CaptionedTrials":
        """Trials with brain tokens of the model's frozen encoder, computed once, or with their betas.

        Parameters
        ----------
        cache_dir
            Folder for the brain tokens; None keeps them in main memory.
        train_encoder
            Whether the encoder is trained: batches then hold betas, because brain tokens change with every step.
        """
        anatomies = Anatomies.of(trials.store, trials.subjects, atlases)
        brain_tokens = None
        if not train_encoder:
            brain_tokens = cached_brain_tokens(model.model.encoder, trials, anatomies, cache_dir=cache_dir)
        context = model.config.llama.max_position_embeddings
        return cls(trials, anatomies, brain_tokens, Captioner.of(model, tokenizer).prompter, seed, context)

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


def cached_brain_tokens(
    encoder: BrainEncoder, trials: TrialSet, anatomies: Anatomies, *, cache_dir: Path | None
) -> Float[Tensor, "n N width"]:
    """Brain tokens of every trial, cached on disk by encoder weights and trials.

    Parameters
    ----------
    cache_dir
        Folder of the memory-mapped file: n × N × width float32 values (126 GB for the 240,000 training trials of the
        poster's size). None keeps them in main memory.
    """
    if cache_dir is None:
        return brain_tokens_of(encoder, trials, anatomies)
    key = [
        weights_hash(encoder),
        trials.store.sha256,
        list(trials.subjects),
        trials.subject_index.tolist(),
        [[int(row) for row in rows] for rows in trials.rows],
    ]
    place = Path(cache_dir) / f"{sha256_of_json(key)}.npy"
    if is_main() and not place.is_file():
        shape = (len(trials), encoder.n_brain_tokens, encoder.token_width)
        with file_written_whole(place) as unfinished:
            tokens = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(trials), _BATCH):
                indices = range(start, min(start + _BATCH, len(trials)))
                tokens[start : start + _BATCH] = encode(
                    encoder, brain_input(trials, anatomies, indices)
                ).cpu()
            tokens.flush()
    barrier()
    return torch.from_numpy(np.load(place, mmap_mode="c"))
