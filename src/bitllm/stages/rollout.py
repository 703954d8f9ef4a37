"""Rollouts: captions sampled from the policy, with the log-probabilities that rft learns from."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bitllm.data.prompt import Prompter, pad_left
from bitllm.model.likelihood import TokenLogProbs, token_log_probs
from bitllm.model.precision import computing


@dataclass(frozen=True)
class Rollout:
    """G captions for each of B brain inputs; rows of one input follow one another.

    Legend: R = B · G rows, T tokens of prompt and caption, L caption tokens.
    """

    input_ids: Int[Tensor, "R T"]
    attention_mask: Int[Tensor, "R T"]
    labels: Int[Tensor, "R T"]
    brain_tokens: Float[Tensor, "B N width"]
    captions: list[str]
    has_ended: Bool[Tensor, " R"]
    """Whether the caption came to its end token before the limit."""

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


@torch.no_grad()
def sample_rollout(
    model: Any,
    prompter: Prompter,
    instruction: str,
    brain_tokens: Float[Tensor, "B N width"],
    *,
    n_captions: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> Rollout:
    """Sample ``n_captions`` captions for each brain input.

    Parameters
    ----------
    model
        The policy (it is put into evaluation mode, and back).
    """
    tokenizer = prompter.tokenizer
    ids, mask = pad_left([prompter.prompt_ids(instruction)] * len(brain_tokens), tokenizer.pad_token_id)
    was_training = model.training
    model.eval()
    device = brain_tokens.device
    with computing(model):
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            brain_tokens=brain_tokens,
            use_cache=True,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=n_captions,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            suppress_tokens=prompter.never_said,
        )
    model.train(was_training)
    answer = out[:, ids.shape[1] :]
    is_end = answer == tokenizer.eos_token_id
    has_ended = is_end.any(-1)
    # everything up to the first end token, which pad = eos must not hide
    is_label = is_end.cumsum(-1) - is_end.long() == 0
    labels = torch.cat(
        [torch.full_like(out[:, : ids.shape[1]], -100), answer.masked_fill(~is_label, -100)], dim=-1
    )
    attention_mask = torch.cat(
        [mask.to(out.device).repeat_interleave(n_captions, 0), is_label.long()], dim=-1
    )
    captions = tokenizer.batch_decode(
        [row[keep] for row, keep in zip(answer, is_label, strict=True)], skip_special_tokens=True
    )
    return Rollout(
        out, attention_mask, labels, brain_tokens, [caption.strip() for caption in captions], has_ended
    )
