"""Log-probabilities of the tokens of a caption, computed only where a token is due.

One function for three uses: the sft loss, the policy of rft, and the bits of evidence.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bitllm.model.precision import computing


class TokenLogProbs(NamedTuple):
    """Log-probability of each label, in the order of the text."""

    log_probs: Float[Tensor, "B L"]
    """Natural logarithms; 0 where ``label_mask`` is false."""
    label_mask: Bool[Tensor, "B L"]
    """Which of the columns are labels."""


def token_log_probs(
    model: Any,
    *,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"],
    labels: Int[Tensor, "B T"],
    brain_memory: Float[Tensor, "B ..."] | None,
    temperature: float = 1.0,
) -> TokenLogProbs:
    """Log p(label | what stands before it, brain memory) for every label that is not −100.

    The head over the vocabulary, the costly part, runs on those positions alone.

    Parameters
    ----------
    model
        A `BitLlmForCausalLM`, or one under PEFT.
    brain_memory
        What its adapters read; None for the LLM alone.
    temperature
        Of the softmax, as in sampling.
    """
    positions = attention_mask.cumsum(-1).sub(1).clamp(min=0)
    due = labels[:, 1:] != -100
    with computing(model):
        hidden = model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            brain_memory=brain_memory,
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][due]).float() / temperature
    chosen = labels[:, 1:][due]
    values = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    n_labels = due.sum(-1)
    label_mask = torch.arange(int(n_labels.max()), device=due.device)[None] < n_labels[:, None]
    log_probs = torch.zeros(label_mask.shape, dtype=values.dtype, device=values.device)
    return TokenLogProbs(log_probs.masked_scatter(label_mask, values), label_mask)
