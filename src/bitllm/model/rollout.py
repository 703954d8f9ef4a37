"""Captions sampled for rft, with what their log-probabilities need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from bitllm.model.likelihood import AfterPrompt, Due, TokenLogProbs, token_log_probs
from bitllm.model.precision import computing


@dataclass(frozen=True)
class Rollout:
    """G captions for each of B brain inputs; the rows of one input are adjacent.

    Legend: R = B · G rows, T tokens of prompt and caption, L caption tokens.
    """

    input_ids: Int[Tensor, "R T"]
    labels: Int[Tensor, "R T"]
    """On the CPU, like ``has_ended``."""
    brain_tokens: Float[Tensor, "B N width"]
    captions: list[str]
    has_ended: Bool[Tensor, " R"]
    """Whether the caption has an end token within ``max_new_tokens``."""

    def log_probs(self, model: Any, *, temperature: float = 1.0) -> TokenLogProbs:
        """Log-probabilities of the sampled tokens under ``model``."""
        n_each = len(self.captions) // len(self.brain_tokens)
        start = int((self.labels[0] != -100).nonzero()[0])
        with computing(model):
            memory = model.model.brain_memory(brain_tokens=self.brain_tokens)
        if (
            model.model.language_model.gradient_checkpointing and model.training
        ):  # it works without a cache only
            return token_log_probs(
                model,
                input_ids=self.input_ids,
                labels=self.labels.to(memory.device),
                due=Due.of(self.labels).to(memory.device),
                brain_memory=memory.repeat_interleave(n_each, 0),
                temperature=temperature,
            )
        with computing(model):
            prompt = AfterPrompt.of(model, self.input_ids[::n_each, :start], memory)
            rows = np.repeat(np.arange(len(memory)), n_each)
            return prompt.rows(rows).log_probs(self.labels[:, start:], temperature=temperature)


@dataclass(frozen=True)
class MixedRollout:
    """Captions or answers after prompts of different lengths: a `Rollout` for each length."""

    parts: tuple[Rollout, ...]
    place: Int[np.ndarray, " R"]
    """For each row, in the order of the inputs, its position among the rows of all parts."""

    @property
    def captions(self) -> list[str]:
        """Texts, in the order of the inputs."""
        texts = [text for part in self.parts for text in part.captions]
        return [texts[place] for place in self.place]

    @property
    def has_ended(self) -> Bool[Tensor, " R"]:
        """Whether each text has an end token within ``max_new_tokens``."""
        return torch.cat([part.has_ended for part in self.parts])[torch.from_numpy(self.place)]

    def log_probs(self, model: Any, *, temperature: float = 1.0) -> TokenLogProbs:
        """Log-probabilities of the sampled tokens under ``model``; shorter rows end with masked positions."""
        found = [part.log_probs(model, temperature=temperature) for part in self.parts]
        length = max(one.log_probs.shape[1] for one in found)
        place = torch.from_numpy(self.place).to(found[0].log_probs.device)
        return TokenLogProbs(
            *(
                torch.cat([pad(one, (0, length - one.shape[1])) for one in column])[place]
                for column in zip(*found, strict=True)
            )
        )


class GumbelSampling:
    """Sampling from the softmax by argmax of noisy scores, with one random generator for each brain input.

    argmax(logits / T + g) with g = −log(−log u) is distributed as softmax(logits / T) (Gumbel 1954; Maddison et al.
    2014). The captions of an input therefore depend only on its seed: not on the batch, the number of processes, or
    where a run was resumed.
    """

    def __init__(
        self, seeds: Sequence[int], *, n_captions: int, temperature: float, device: torch.device
    ) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.n_captions, self.temperature = n_captions, temperature

    def __call__(self, scores: Float[Tensor, "R vocabulary"]) -> Int[Tensor, " R"]:
        noise = torch.empty_like(scores)
        for rows, generator in zip(noise.split(self.n_captions), self.generators, strict=True):
            # If e is exponential, −log e is Gumbel distributed. This is why the noise is subtracted below.
            rows.exponential_(generator=generator)
        return (scores / self.temperature - noise.log_()).argmax(-1)
