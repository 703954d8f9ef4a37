"""Log-probabilities of the tokens of a caption; logits are computed only at positions that predict one.

The sft loss, the policy of rft and the bits of the evaluation use the same function.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from bitllm.model.precision import computing

_LOGITS_AT_ONCE = 2**26
"""Logits of one part: 0.27 GB as float32; 523 positions of Llama 3, 1,365 of SmolLM2."""


class TokenLogProbs(NamedTuple):
    """Log-probability of each label, in the order of the text."""

    log_probs: Float[Tensor, "B L"]
    """Natural logarithms; 0 where ``label_mask`` is false."""
    label_mask: Bool[Tensor, "B L"]
    """Which entries are labels; rows with fewer labels are padded."""


class Due(NamedTuple):
    """Positions of the labels of a batch, found while it is on the CPU, so that the host does not wait for the GPU."""

    places: Int[Tensor, "3 n"]
    """For each label: position in the flattened ids, row, and number within the row."""
    n_columns: int
    """The largest number of labels in a row."""

    @classmethod
    def of(cls, labels: Int[Tensor, "B T"]) -> "Due":
        """Labels other than −100; the first token of a row is left out because no earlier token predicts it."""
        is_due = labels != -100
        is_due[:, 0] = False
        row, column = is_due.nonzero().T
        number = is_due.long().cumsum(1)[row, column] - 1
        places = torch.stack([row * labels.shape[1] + column, row, number])
        return cls(places, int(number.max()) + 1 if len(row) else 0)

    def to(self, device: torch.device) -> "Due":
        """The same on another device."""
        return self._replace(places=self.places.to(device))


def token_log_probs(
    model: Any,
    *,
    input_ids: Int[Tensor, "B T"],
    labels: Int[Tensor, "B T"],
    brain_memory: Float[Tensor, "B ..."] | None,
    due: Due | None = None,
    temperature: float = 1.0,
) -> TokenLogProbs:
    """Log p(label | previous tokens, brain memory) for every label other than −100.

    The language head, the expensive part, runs only at these positions. Rows are padded on the right, so that under
    causal attention no label attends to padding and no attention mask is needed.

    Parameters
    ----------
    model
        A `BitLlmForCausalLM`, or one under PEFT.
    brain_memory
        Keys and values for the adapters; None for the LLM alone.
    due
        `Due.of` the labels; computed here by default.
    temperature
        Temperature of the softmax, as in sampling.
    """
    (place, row, number), n_columns = Due.of(labels) if due is None else due
    with computing(model):
        hidden = model.model(
            input_ids=input_ids, brain_memory=brain_memory, use_cache=False
        ).last_hidden_state
        # The hidden state at position t predicts token t + 1, hence place - 1.
        values = _log_probs(model, hidden.flatten(0, 1)[place - 1], labels.flatten()[place], temperature)
    label_mask = torch.zeros(len(labels), n_columns, dtype=torch.bool, device=labels.device)
    label_mask = label_mask.index_put((row, number), torch.ones_like(row, dtype=torch.bool))
    log_probs = values.new_zeros(label_mask.shape).index_put((row, number), values)
    return TokenLogProbs(log_probs, label_mask)


def _log_probs(
    model: Any, hidden: Float[Tensor, "n d"], chosen: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """Log p of the chosen tokens; of many positions a part at a time, so that memory does not grow with them.

    In the backward pass the logits of each part are computed again instead of being kept.
    """
    at_once = max(1, _LOGITS_AT_ONCE // model.config.llama.vocab_size)
    if len(hidden) <= at_once:
        return _log_probs_of_part(model, hidden, chosen, temperature)
    parts = zip(hidden.split(at_once), chosen.split(at_once), strict=True)
    return torch.cat(
        [
            checkpoint(_log_probs_of_part, model, *part, temperature, use_reentrant=False)
            if torch.is_grad_enabled()
            else _log_probs_of_part(model, *part, temperature)
            for part in parts
        ]
    )


def _log_probs_of_part(
    model: Any, hidden: Float[Tensor, "n d"], chosen: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    logits = model.lm_head(hidden).float()
    logits = logits if temperature == 1 else logits / temperature
    # log_softmax would allocate a second tensor of labels × vocabulary.
    return logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)


@dataclass
class AfterPrompt:
    """State of the LLM after the prompt, for each of R brain inputs; differentiable.

    All captions of an input continue from it, so that the prompt, most of the tokens, is processed once.
    """

    model: Any
    hidden: Float[Tensor, "R _ d"]
    """Hidden states of the last tokens."""
    cache: DynamicCache
    memory: Float[Tensor, "R ..."] | None
    """Memory of the adapters; None for a prefix, of which the soft tokens are in the cache."""

    @classmethod
    def of(cls, model: Any, ids: Int[Tensor, "R T"], memory: Float[Tensor, "R ..."] | None) -> "AfterPrompt":
        """Process the prompt of each row."""
        cache = DynamicCache()
        hidden = _read(model, ids, memory, cache)[:, -1:]
        return cls(model, hidden, cache, memory if model.config.interface == "cross_attention" else None)

    def rows(self, row: Int[np.ndarray, " n"]) -> "AfterPrompt":
        """The state with these rows, possibly repeated; each copy continues independently."""
        chosen = torch.from_numpy(row).to(self.hidden.device)
        cache = DynamicCache([(keys[chosen], values[chosen]) for keys, values, _ in self.cache])
        memory = None if self.memory is None else self.memory[chosen]
        return AfterPrompt(self.model, self.hidden[chosen], cache, memory)

    def read(self, ids: Int[Tensor, "R L"]) -> Float[Tensor, "R L d"]:
        """Hidden states of further tokens."""
        return _read(self.model, ids, self.memory, self.cache)

    def log_probs(self, labels: Int[Tensor, "R L"], *, temperature: float = 1.0) -> TokenLogProbs:
        """Natural log p of each token of each row's answer; labels are on the CPU, −100 beyond the end."""
        device, is_label = self.hidden.device, labels != -100
        place = is_label.flatten().nonzero()[:, 0].to(device)
        ids, label_mask = labels.clamp(min=0).to(device), is_label.to(device)
        hidden = torch.cat([self.hidden, self.read(ids[:, :-1])], 1) if ids.shape[1] > 1 else self.hidden
        values = _log_probs(self.model, hidden.flatten(0, 1)[place], ids.flatten()[place], temperature)
        log_probs = values.new_zeros(ids.numel()).index_put((place,), values)
        return TokenLogProbs(log_probs.view(ids.shape), label_mask)


def _read(
    model: Any, ids: Int[Tensor, "R L"], memory: Tensor | None, cache: DynamicCache
) -> Float[Tensor, "R L d"]:
    return model.model(
        input_ids=ids, brain_memory=memory, past_key_values=cache, use_cache=True
    ).last_hidden_state
