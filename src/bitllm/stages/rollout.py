"""Rollouts: captions sampled from the policy, and the log-probabilities of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from bitllm.data.prompt import Prompter, pad_left
from bitllm.model.end_tokens import before_end, end_token_ids
from bitllm.model.likelihood import TokenLogProbs, token_log_probs
from bitllm.model.precision import computing
from bitllm.training.distributed import is_sharded


@dataclass(frozen=True)
class Rollout:
    """G captions for each of B brain inputs; the rows of one input are adjacent.

    Legend: R = B · G rows, T tokens of prompt and caption, L caption tokens.
    """

    input_ids: Int[Tensor, "R T"]
    attention_mask: Int[Tensor, "R T"]
    labels: Int[Tensor, "R T"]
    brain_tokens: Float[Tensor, "B N width"]
    captions: list[str]
    has_ended: Bool[Tensor, " R"]
    """Whether the caption has an end token within the limit."""

    def log_probs(self, model: Any, *, temperature: float = 1.0) -> TokenLogProbs:
        """Log-probabilities of the sampled tokens under ``model``."""
        with computing(model):
            memory = model.model.brain_memory(brain_tokens=self.brain_tokens)
        memory = memory.repeat_interleave(len(self.captions) // len(memory), 0)
        return token_log_probs(
            model,
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            labels=self.labels,
            brain_memory=memory,
            temperature=temperature,
        )


class GumbelSampling(LogitsProcessor):
    """Noise that makes the largest score a sample of the softmax, with a generator for each brain input.

    argmax(logits / T + g) with g = −log(−log u) is distributed as softmax(logits / T) (Gumbel 1954; Maddison et al.
    2014). So the captions of an input depend on its seed alone: not on the batch, the number of processes, or where a
    run was resumed.
    """

    def __init__(
        self, seeds: Sequence[int], *, n_captions: int, temperature: float, device: torch.device
    ) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.n_captions, self.temperature = n_captions, temperature

    def __call__(
        self, input_ids: Int[Tensor, "R T"], scores: Float[Tensor, "R vocabulary"]
    ) -> Float[Tensor, "R vocabulary"]:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for rows, generator in zip(noise.split(self.n_captions), self.generators, strict=True):
            rows.exponential_(generator=generator)
        return scores / self.temperature - noise.log_()


@torch.no_grad()
def sample_rollout(
    model: Any,
    prompter: Prompter,
    instruction: str,
    brain_tokens: Float[Tensor, "B N width"],
    *,
    n_captions: int,
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
) -> Rollout:
    """Sample ``n_captions`` captions for each brain input.

    Parameters
    ----------
    model
        The policy; it samples in evaluation mode, its mode is restored.
    seeds
        One for each brain input; they determine the captions.
    """
    tokenizer = prompter.tokenizer
    ends = end_token_ids(model, tokenizer)
    prompts = [prompter.prompt_ids(instruction)] * (len(brain_tokens) * n_captions)
    ids, mask = pad_left(prompts, tokenizer.pad_token_id)
    was_training = model.training
    model.eval()
    device = brain_tokens.device
    sampling = GumbelSampling(seeds, n_captions=n_captions, temperature=temperature, device=device)
    with computing(model):
        memory = model.model.brain_memory(brain_tokens=brain_tokens)  # once for all captions of an input
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            brain_memory=memory.repeat_interleave(n_captions, 0),
            use_cache=True,
            do_sample=False,
            logits_processor=LogitsProcessorList([sampling]),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends,
            suppress_tokens=prompter.never_said,
            synced_gpus=is_sharded(model),  # a process that has finished its captions still serves its shards
        )
    model.train(was_training)
    answer = out[:, ids.shape[1] :]
    is_end = torch.isin(answer, torch.tensor(ends, device=answer.device))
    has_ended = is_end.any(-1)
    # everything up to the first end token, which pad = eos must not hide
    is_label = is_end.cumsum(-1) - is_end.long() == 0
    labels = torch.cat(
        [torch.full_like(out[:, : ids.shape[1]], -100), answer.masked_fill(~is_label, -100)], dim=-1
    )
    attention_mask = torch.cat([mask.to(out.device), is_label.long()], dim=-1)
    captions = tokenizer.batch_decode(
        [before_end(row, ends) for row in answer.tolist()], skip_special_tokens=True
    )
    return Rollout(
        out, attention_mask, labels, brain_tokens, [caption.strip() for caption in captions], has_ended
    )
