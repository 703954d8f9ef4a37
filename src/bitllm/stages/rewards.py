"""The rewards of rft: R = α·R_CIDEr + β·R_BERT + γ·R_IP.

References
----------
The poster, "Stage 3". It defines neither R_IP nor the weights and models. Ours: CIDEr-D against the image's references
with document frequencies of the *training* references (with those of a batch, a single image would always score 0);
BERTScore F1, the best over the references; the inner product of the unit CLIP embeddings of caption and image. All are
in natural units (CIDEr 0 to 10, BERTScore and inner product at most 1).
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field

from bitllm.config import StrictConfig
from bitllm.data.prompt import plain_caption
from bitllm.data.store import Store
from bitllm.data.targets import ClipEmbedder, Targets
from bitllm.metrics.bertscore import BertScorer
from bitllm.metrics.cider import Cider, DocumentFrequencies
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.training.loop import StopAfterCheckpointError

_CACHED = 256  # images whose reference vectors are in memory: with all of them rft's memory grew by 25 %


class RewardWeights(StrictConfig):
    """Weights of the composite reward."""

    cider: float = Field(default=1.0, ge=0)
    """α, weight of CIDEr-D."""
    bertscore: float = Field(default=1.0, ge=0)
    """β, weight of BERTScore F1."""
    ip: float = Field(default=1.0, ge=0)
    """γ, weight of the inner product of caption and image."""


class Rewards(NamedTuple):
    """Reward of each caption and its parts."""

    total: Float[np.ndarray, " n"]
    cider: Float[np.ndarray, " n"]
    bertscore: Float[np.ndarray, " n"]
    ip: Float[np.ndarray, " n"]


Reward = Callable[[Sequence[int], Sequence[str], Sequence[bool]], Rewards]
"""``reward(nsd_ids, captions, has_ended)``; ``has_ended`` says whether a caption ended with an end token."""


class RewardError(StopAfterCheckpointError):
    """A reward that raised an error or is not finite."""


class CompositeReward:
    """Scores sampled captions of training images.

    Parameters
    ----------
    store
        The store with the captions of the images.
    nsd_ids
        Training images; the document frequencies are those of their references.
    targets
        CLIP embeddings of the images.
    bert_scorer
        None if BERTScore is not rewarded.
    """

    def __init__(
        self,
        store: Store,
        nsd_ids: Sequence[int],
        targets: Targets,
        *,
        clip: ClipEmbedder,
        bert_scorer: BertScorer | None,
        weights: RewardWeights,
    ) -> None:
        self.weights, self.targets, self.clip, self.bert_scorer = weights, targets, clip, bert_scorer
        self.references = {int(nsd_id): list(store.captions[int(nsd_id)]) for nsd_id in nsd_ids}
        tokenized: dict[Hashable, list[str]] = {
            nsd_id: ptb_tokenize(captions) for nsd_id, captions in self.references.items()
        }
        frequencies = DocumentFrequencies.fit(list(tokenized.values()))
        self.cider = Cider(tokenized, frequencies, max_cached=_CACHED)

    def __call__(self, nsd_ids: Sequence[int], captions: Sequence[str], has_ended: Sequence[bool]) -> Rewards:
        """Rewards of captions of these images; 0 for captions without an end token."""
        ended = np.asarray(has_ended, dtype=np.float64)
        # Metrics are in points (percent); rewards are in natural units.
        cider = self.cider.score([int(nsd_id) for nsd_id in nsd_ids], ptb_tokenize(captions)) / 100 * ended
        references = [[plain_caption(text) for text in self.references[int(nsd_id)]] for nsd_id in nsd_ids]
        bertscore = np.zeros(len(captions))
        if self.bert_scorer is not None:
            bertscore = self.bert_scorer.score(captions, references) / 100 * ended
        pictures = self.targets.image[self.targets.rows(np.asarray(nsd_ids))]
        ip = (self.clip.captions(captions) * pictures).sum(axis=1) * ended
        total = self.weights.cider * cider + self.weights.bertscore * bertscore + self.weights.ip * ip
        return Rewards(total, cider, bertscore, ip)


def permuted_reward(reward: Reward, nsd_ids: Sequence[int], *, seed: int) -> Reward:
    """A reward that compares each caption with another image of ``nsd_ids`` instead of its own."""
    order = np.random.default_rng(seed).permutation(sorted(set(nsd_ids))).tolist()
    other = dict(
        zip(order, [*order[1:], order[0]], strict=True)
    )  # a single cycle has no fixed point: no image keeps its own references

    def of_another(nsd_ids: Sequence[int], captions: Sequence[str], has_ended: Sequence[bool]) -> Rewards:
        return reward([other[int(nsd_id)] for nsd_id in nsd_ids], captions, has_ended)

    return of_another


def checked_reward(
    reward: Reward, nsd_ids: Sequence[int], captions: Sequence[str], has_ended: Sequence[bool]
) -> Rewards:
    """Call the reward and require finite values."""
    try:
        rewards = reward(nsd_ids, captions, has_ended)
    except Exception as error:
        # Repeat caption by caption to name the one at fault.
        at = next(
            (row for row in range(len(captions)) if _raises(reward, nsd_ids, captions, has_ended, row)), 0
        )
        raise RewardError(
            f"reward: expected a number for the caption {captions[at]!r} of image {nsd_ids[at]}, found "
            f"{type(error).__name__} ({error}); fix the reward and run the same command, which resumes"
        ) from error
    bad = np.flatnonzero(~np.isfinite(rewards.total))
    if len(bad):
        raise RewardError(
            f"reward: expected a finite number for the caption {captions[bad[0]]!r} of image {nsd_ids[bad[0]]}, "
            f"found {rewards.total[bad[0]]}; check the reward models and run the same command, which resumes"
        )
    return rewards


def _raises(
    reward: Reward, nsd_ids: Sequence[int], captions: Sequence[str], has_ended: Sequence[bool], row: int
) -> bool:
    one = slice(row, row + 1)
    try:
        reward(nsd_ids[one], captions[one], has_ended[one])
    except Exception:  # noqa: BLE001 - a reward may be anyone's code
        return True
    return False
