"""Training examples: trials with betas (or pooled betas), and a caption of the image or questions about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies, TrialBetas, pad_turns
from bitllm.data.dataset import TrialSet
from bitllm.data.prompt import INSTRUCTIONS, Prompter, choose, plain_caption
from bitllm.data.tasks.exchange import turns_of
from bitllm.data.tasks.mixture import CAPTIONS_ALONE, TaskMixture
from bitllm.errors import DataError
from bitllm.model.captioner import Captioner
from bitllm.model.encoder import BrainEncoder
from bitllm.model.likelihood import Due
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.voxels import Anatomy, check_anatomy
from bitllm.training.distributed import rows_of_all_ranks

_BATCH = 512


Turn = tuple[list[int], list[int]]
"""Token ids up to the start of an answer, and those of the answer."""


@dataclass(frozen=True)
class InstructedTrials:
    """Trials with betas (or pooled betas), and for each epoch an instruction with a caption, or questions with answers.

    Attributes
    ----------
    betas
        The betas of the trials, on the device of the model.
    pooled
        Pooled betas of each trial under the frozen encoder, on its device. None if the encoder is trained; batches
        then contain betas.
    mixture
        Tasks of the examples; with captions alone, every example is a caption.
    seed
        Determines, with epoch and index, the task and the texts of an example.
    context
        Context length of the LLM, in tokens.
    """

    betas: TrialBetas
    pooled: Float[Tensor, "n queries"] | None
    prompter: Prompter
    mixture: TaskMixture
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
        train_encoder: bool = False,
        tasks: Mapping[str, float] = CAPTIONS_ALONE,
        questions_each: int = 1,
    ) -> "InstructedTrials":
        """Trials for a model; with a frozen encoder, betas are pooled here, once.

        Parameters
        ----------
        train_encoder
            Whether the encoder is trained. Batches then contain betas, because pooled betas change in every step.
        tasks
            Weight of each task.
        questions_each
            Most questions in an example; dialogues are as long as they are.
        """
        encoder = model.model.encoder
        mixture = TaskMixture.of(trials.store, tasks, trials.nsd_id.tolist(), questions_each=questions_each)
        anatomies = checked_anatomies(encoder, trials, atlases)
        betas = TrialBetas(trials, anatomies, encoder.queries.device, resident=train_encoder)
        pooled = None if train_encoder else pooled_betas(encoder, betas)
        context = model.config.llama.max_position_embeddings
        return cls(betas, pooled, Captioner.of(model, tokenizer).prompter, mixture, seed, context)

    @property
    def trials(self) -> TrialSet:
        """The trials without texts."""
        return self.betas.trials

    @cached_property
    def _answers(self) -> dict[int, list[list[int]]]:
        """Tokens of all captions of each image."""
        captions = self.trials.store.captions
        images = sorted(set(self.trials.nsd_id.tolist()))
        texts = [plain_caption(caption) for image in images for caption in captions[image]]
        tokens = iter(self.prompter.answers_ids(texts))
        return {image: [next(tokens) for _ in captions[image]] for image in images}

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return [self.prompter.prompt_ids(instruction) for instruction in INSTRUCTIONS]

    def batch(self, pairs: list[tuple[int, int]]) -> dict[str, Any]:
        """Texts and pooled betas (or betas with their anatomy) of (epoch, index) pairs."""
        indices = [index for _, index in pairs]
        text = pad_turns(
            [self._turns(epoch, index) for epoch, index in pairs], self.prompter.tokenizer.pad_token_id
        )
        return {
            "input_ids": text["input_ids"],
            "labels": text["labels"],
            "due": Due.of(text["labels"]),
            **self._brain(indices),
            "nsd_id": torch.from_numpy(self.trials.nsd_id[indices]),
        }

    def lengths(self, epoch: int) -> Int[np.ndarray, " n"]:
        """Number of tokens of the text of each trial in an epoch."""
        return np.array([_length(self._turns(epoch, index)) for index in range(len(self.trials))])

    def _turns(self, epoch: int, index: int) -> list[Turn]:
        """The turns of an example that fit the context of the LLM, the first ones of a longer conversation."""
        nsd_id = int(self.trials.nsd_id[index])
        rows = self.trials.rows[index]
        trial = (self.trials.subject_of(index), rows[0]) if len(rows) == 1 else None
        drawn = self.mixture.conversation(nsd_id, seed=self.seed, epoch=epoch, index=index, trial=trial)
        turns = (
            self.prompter.conversation(turns_of(drawn))
            if drawn
            else [(self._prompts[self._instruction(epoch, index)], self._answer(epoch, index))]
        )
        if _length(turns[:1]) > self.context:
            prompt, answer = turns[0]
            where, what = (
                (drawn[0].source, f"the answer {drawn[0].id}") if drawn else ("captions", "a caption")
            )
            raise DataError(
                f"{where}: expected at most {self.context - len(prompt)} tokens after the prompt, found {len(answer)} "
                f"in {what} of image {nsd_id}; shorten it in its file and prepare again, or use an LLM with a longer "
                "context"
            )
        while _length(turns) > self.context:
            turns = turns[:-1]
        return turns

    def _brain(self, indices: list[int]) -> dict[str, Any]:
        if self.pooled is None:
            return self.betas.batch(indices)
        return {"pooled": self.pooled[torch.tensor(indices, device=self.pooled.device)]}

    def _instruction(self, epoch: int, index: int) -> int:
        return choose(len(INSTRUCTIONS), purpose="prompt", seed=self.seed, epoch=epoch, index=index)

    def _answer(self, epoch: int, index: int) -> list[int]:
        answers = self._answers[int(self.trials.nsd_id[index])]
        return answers[choose(len(answers), purpose="caption", seed=self.seed, epoch=epoch, index=index)]


def _length(turns: Sequence[Turn]) -> int:
    return sum(len(part) for turn in turns for part in turn)


def checked_anatomies(encoder: BrainEncoder, trials: TrialSet, atlases: tuple[str, ...]) -> Anatomies:
    """Coordinates and labels of the trials' subjects, checked once for all batches."""
    anatomies = Anatomies.of(trials.store, trials.subjects, atlases)
    check_anatomy(
        Anatomy(anatomies.coords_mm, anatomies.atlas_labels, anatomies.voxel_mask), encoder.n_labels
    )
    return anatomies


@torch.no_grad()
def pooled_betas(encoder: BrainEncoder, betas: TrialBetas) -> Float[Tensor, "n queries"]:
    """Pooled betas of every trial under a frozen encoder, on its device; each process computes a part.

    At the poster's size 1,024 float32 values per trial: 0.7 GB for all training trials of NSD; brain tokens would
    take 91 GB.
    """

    def compute(part: range) -> Float[Tensor, "n queries"]:
        found = torch.empty(len(part), len(encoder.queries), device=encoder.queries.device)
        for start in range(0, len(part), _BATCH):
            batch = betas.batch(part[start : start + _BATCH])
            anatomy = Anatomy(*(batch[name] for name in Anatomy._fields))
            found[start : start + _BATCH] = encoder.pooled(
                batch["betas"],
                batch["subject_index"].to(found.device),
                anatomy,
                per_subject=batch["per_subject"],
            )
        return found

    was_training = encoder.training
    encoder.eval()
    pooled = rows_of_all_ranks(len(betas.trials), compute)
    encoder.train(was_training)
    return pooled


@torch.no_grad()
def frozen_brain_tokens(
    encoder: BrainEncoder, pooled: Float[Tensor, "B queries"]
) -> Float[Tensor, "B N width"]:
    """Brain tokens of pooled betas under a frozen encoder: in float32 and without dropout."""
    was_training = encoder.training
    encoder.eval()
    with torch.autocast(pooled.device.type, enabled=False):
        brain_tokens = encoder.tokens(pooled)
    encoder.train(was_training)
    return brain_tokens
