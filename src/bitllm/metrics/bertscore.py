"""BERTScore F1 of captions with any encoder; embeddings of references are cached."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bitllm.data.io.models import model_loading
from bitllm.errors import ModelError
from bitllm.metrics.bleu import require_references

_PAIRS_AT_ONCE = 512
_LONGEST_BY_DEFAULT = 512  # tokens, where neither the tokenizer nor the model's configuration has a limit


class _Tokens(NamedTuple):
    embeddings: Float[Tensor, "tokens width"]
    """Unit vectors of all tokens, special ones included."""
    weights: Float[Tensor, " tokens"]
    """1 / (number of word tokens) for word tokens, 0 for special tokens."""


class BertScorer:
    """BERTScore F1 as bert-score computes it, without idf weights and without baseline rescaling.

    As in bert-score, special tokens may be matched by tokens of the other text, but do not count in the means.

    Parameters
    ----------
    model
        An encoder with ``last_hidden_state``, or a CLIP, of which the text model is used. It is set to evaluation mode.
    tokenizer
        The model's tokenizer, with a padding token.
    layer
        Index of the hidden states (0 for the embeddings, 1 for the first layer, …); by default the last one.
    batch_size
        Texts encoded at a time.
    max_cached
        Number of images with cached reference embeddings (five captions of 12 tokens at width 384 take 90 kB).

    References
    ----------
    Zhang et al. (2020), "BERTScore: evaluating text generation with BERT", ICLR.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layer: int | None = None,
        batch_size: int = 64,
        max_cached: int = 256,
    ) -> None:
        encoder: Any = getattr(model, "text_model", model)
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "expected a tokenizer with a padding token, found none; set pad_token in its "
                "tokenizer_config.json or choose another encoder"
            )
        n_layers = getattr(encoder.config, "num_hidden_layers", None)
        if layer is not None and n_layers is not None and not -n_layers - 1 <= layer <= n_layers:
            raise ModelError(
                f"expected a layer from 0 (the embeddings) to {n_layers} (the last, also -1), found {layer}; "
                "choose one of them"
            )
        self._encoder = encoder.eval()
        self._tokenizer = tokenizer
        self._layer = layer
        self._batch_size = batch_size
        self._max_cached = max_cached
        self._max_length = _longest(tokenizer, encoder)
        self._cache: dict[tuple[str, ...], list[_Tokens]] = {}
        self._kept: dict[str, _Tokens] = {}

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
        """Best F1 over the references of each caption, in points; an empty caption scores 0.

        Parameters
        ----------
        captions, references
            Raw text, not tokenized; at least one reference for each caption.
        """
        require_references(captions, references)
        if len(captions) == 0:
            return np.zeros(0)
        theirs = [self._of_references(tuple(texts)) for texts in references]
        ours = self._encode(set(captions))
        pairs = [
            (ours[text], token) for text, tokens in zip(captions, theirs, strict=True) for token in tokens
        ]
        owners = [place for place, tokens in enumerate(theirs) for _ in tokens]
        best = np.full(len(captions), -np.inf)
        np.maximum.at(best, owners, self._f1_of_pairs(pairs))
        return 100 * best

    def remember(self, texts: Iterable[str]) -> None:
        """Embed texts and cache the embeddings, for evaluations that score the same texts in many pairs.

        Not for rewards (see ``max_cached``): this cache grows with every new text.
        """
        self._kept.update(self._encode(set(texts)))

    def _of_references(self, texts: tuple[str, ...]) -> list[_Tokens]:
        # Each image's references are a batch of their own. The last bits of an embedding depend on its batch, so
        # otherwise rewards would depend on earlier images, and a resumed run would differ from an uninterrupted one.
        if texts not in self._cache:
            while len(self._cache) >= max(1, self._max_cached):
                del self._cache[next(iter(self._cache))]
            found = self._encode(set(texts))
            self._cache[texts] = [found[text] for text in texts]
        return self._cache[texts]

    @torch.no_grad()
    def _encode(self, texts: set[str]) -> dict[str, _Tokens]:
        # By length against padding, and by text so that batches do not depend on the order of a set.
        in_order = sorted(texts - self._kept.keys(), key=lambda text: (len(text), text))
        found: dict[str, _Tokens] = {text: self._kept[text] for text in texts if text in self._kept}
        for start in range(0, len(in_order), self._batch_size):
            batch = in_order[start : start + self._batch_size]
            inputs = self._tokenizer(
                [text.strip() for text in batch],
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            special = inputs.pop("special_tokens_mask").bool()
            states = self._hidden_states(inputs["input_ids"], inputs["attention_mask"])
            units = torch.nn.functional.normalize(states.float(), dim=-1)
            for row, text in enumerate(batch):
                real = inputs["attention_mask"][row].bool().nonzero()[:, 0]
                # Special tokens have weight 0 in the means, but another text's words may still match them, as
                # in bert-score.
                words = (~special[row][real]).float()
                weights = (words / words.sum().clamp(min=1)).to(units.device)
                found[text] = _Tokens(units[row][real.to(units.device)], weights)
        return found

    def _hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor
    ) -> Float[Tensor, "texts tokens width"]:
        device = next(self._encoder.parameters()).device
        output = self._encoder(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            output_hidden_states=self._layer is not None,
        )
        return output.last_hidden_state if self._layer is None else output.hidden_states[self._layer]

    @staticmethod
    @torch.no_grad()
    def _f1_of_pairs(pairs: list[tuple[_Tokens, _Tokens]]) -> Float[np.ndarray, " pairs"]:
        # pairs of similar length share a batch, which reduces padding
        order = sorted(range(len(pairs)), key=lambda place: [len(side.weights) for side in pairs[place]])
        scores = np.zeros(len(pairs))
        for start in range(0, len(order), _PAIRS_AT_ONCE):
            places = order[start : start + _PAIRS_AT_ONCE]
            scores[places] = _greedy_f1([pairs[place] for place in places])
        return scores


def load_bert_scorer(
    path_or_hub_id: str | Path, *, layer: int | None = None, device: torch.device | str = "cpu"
) -> BertScorer:
    """Load an encoder and its tokenizer from a folder or the hub."""
    with model_loading(path_or_hub_id, "a folder or hub id of an encoder with its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id)
        model = AutoModel.from_pretrained(path_or_hub_id).to(device)
    try:
        return BertScorer(model, tokenizer, layer=layer)
    except ModelError as error:
        raise ModelError(f"{path_or_hub_id}: {error}") from None


def _greedy_f1(pairs: list[tuple[_Tokens, _Tokens]]) -> Float[np.ndarray, " pairs"]:
    ours, our_weights, our_tokens = _padded([pair[0] for pair in pairs])
    theirs, their_weights, their_tokens = _padded([pair[1] for pair in pairs])
    cosines = torch.einsum("pid,pjd->pij", ours, theirs)
    is_pair = our_tokens[:, :, None] & their_tokens[:, None, :]
    cosines = cosines.masked_fill(~is_pair, -torch.inf)
    precision = (cosines.amax(dim=2).masked_fill(~our_tokens, 0) * our_weights).sum(dim=1)
    recall = (cosines.amax(dim=1).masked_fill(~their_tokens, 0) * their_weights).sum(dim=1)
    total = precision + recall
    f1 = torch.where(total != 0, 2 * precision * recall / total, torch.zeros_like(total))
    is_empty = (our_weights.sum(dim=1) == 0) | (their_weights.sum(dim=1) == 0)
    return f1.masked_fill(is_empty, 0).double().cpu().numpy()


def _padded(texts: list[_Tokens]) -> tuple[Tensor, Tensor, Tensor]:
    embeddings = pad_sequence([text.embeddings for text in texts], batch_first=True)
    weights = pad_sequence([text.weights.to(embeddings.device) for text in texts], batch_first=True)
    lengths = torch.tensor([len(text.weights) for text in texts], device=embeddings.device)
    is_token = torch.arange(embeddings.shape[1], device=embeddings.device)[None, :] < lengths[:, None]
    return embeddings, weights, is_token


def _longest(tokenizer: PreTrainedTokenizerBase, encoder: Any) -> int:
    of_model = getattr(encoder.config, "max_position_embeddings", _LONGEST_BY_DEFAULT)
    # RoBERTa's positions start after its padding index, so two of its 514 places are never used
    offset = 2 if "roberta" in str(getattr(encoder.config, "model_type", "")) else 0
    return min(tokenizer.model_max_length, of_model - offset)
