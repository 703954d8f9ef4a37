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


class Due(NamedTuple):
    """Where the labels of a batch are, found while it is still in main memory, so that nothing waits for the device."""

    places: Int[Tensor, "3 n"]
    """Of each label: its place in the flattened ids, its row, and its number within the row."""
    n_columns: int
    """The largest number of labels in a row."""

    @classmethod
    def of(cls, labels: Int[Tensor, "B T"]) -> "Due":
        """The labels that are not −100; one at the start of a row has nothing before it that predicts it."""
        is_due = labels != -100
        is_due[:, 0] = False
        row, column = is_due.nonzero().T
        number = is_due.long().cumsum(1)[row, column] - 1
        places = torch.stack([row * labels.shape[1] + column, row, number])
        return cls(places, int(number.max()) + 1 if len(row) else 0)

    def to(self, device: torch.device) -> "Due":
        """The same on a device."""
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
    """Log p(label | what stands before it, brain memory) for every label that is not −100.

    The head over the vocabulary, the costly part, runs on those positions alone. Rows are padded on the right, so the
    causal attention of a label never reaches padding, and there is no attention mask.

    Parameters
    ----------
    model
        A `BitLlmForCausalLM`, or one under PEFT.
    brain_memory
        What its adapters read; None for the LLM alone.
    due
        `Due.of` the labels, computed here if it is not given.
    temperature
        Of the softmax, as in sampling.
    """
    (place, row, number), n_columns = Due.of(labels) if due is None else due
    with computing(model):
        hidden = model.model(
            input_ids=input_ids, brain_memory=brain_memory, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[place - 1]).float()
    logits = logits if temperature == 1 else logits / temperature
    chosen = labels.flatten()[place]
    values = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    label_mask = torch.zeros(len(labels), n_columns, dtype=torch.bool, device=labels.device)
    label_mask = label_mask.index_put((row, number), torch.ones_like(row, dtype=torch.bool))
    log_probs = values.new_zeros(label_mask.shape).index_put((row, number), values)
    return TokenLogProbs(log_probs, label_mask)
