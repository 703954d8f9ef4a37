"""Ranking of candidate answers in a dialogue, as in VisDial.

References
----------
Das et al. 2017 (arXiv 1611.08669), "Visual Dialog": each of 100 candidates is scored, and the rank of the human answer
gives recall at k, mean reciprocal rank and mean rank. NDCG is that of the VisDial challenge 2018 to 2020: its length k
is the number of candidates that some annotator found relevant.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bitllm.errors import DataError

RECALLS = (1, 5, 10)


class RankingScores(NamedTuple):
    """Mean over rounds of the scores of the human answer's rank."""

    recall: dict[int, float]
    """k → share of rounds with the human answer among the first k."""
    reciprocal_rank: float
    """Mean reciprocal rank."""
    mean_rank: float

    def as_dict(self) -> dict[str, float]:
        """The scores by name."""
        recall = {f"R@{k}": value for k, value in self.recall.items()}
        return recall | {"MRR": self.reciprocal_rank, "mean rank": self.mean_rank}


def ranking_scores(ranks: Int[np.ndarray, " rounds"]) -> RankingScores:
    """Recall, mean reciprocal rank and mean rank from the rank of each round's human answer.

    Parameters
    ----------
    ranks
        1 for the best (`bitllm.metrics.retrieval.target_ranks`, where ties are broken at random).
    """
    if len(ranks) == 0:
        raise DataError("dialogue: expected the ranks of one or more rounds, found none; give some")
    return RankingScores(
        {k: float((ranks <= k).mean()) for k in RECALLS}, float((1 / ranks).mean()), float(ranks.mean())
    )


def ndcg(scores: Float[np.ndarray, " options"], relevance: Float[np.ndarray, " options"]) -> float:
    """Normalized discounted cumulative gain of the candidates of one round, 0 to 1.

    Parameters
    ----------
    scores
        Score of each candidate, such as its log-probability; the highest is ranked first.
    relevance
        Share of annotators who found the candidate correct; at least one above 0.
    """
    k = int((relevance > 0).sum())
    if k == 0:
        raise DataError(
            "NDCG: expected a candidate with a relevance above 0, found none; leave the round out"
        )
    discounts = 1 / np.log2(np.arange(k) + 2)
    found = relevance[np.argsort(-scores, kind="stable")[:k]] @ discounts
    return float(found / (np.sort(relevance)[::-1][:k] @ discounts))
