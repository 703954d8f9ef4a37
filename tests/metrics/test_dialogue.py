"""VisDial's metrics against loops."""

import math

import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.metrics.dialogue import ndcg, ranking_scores
from bitllm.metrics.retrieval import target_ranks


def test_recall_and_ranks_are_those_of_a_loop(rng):
    scores, human = rng.normal(size=(40, 100)), rng.integers(0, 100, 40)
    ranks = []
    for row, answer in zip(scores.tolist(), human.tolist(), strict=True):
        ranks.append(1 + sum(1 for value in row if value > row[answer]))
    found = ranking_scores(target_ranks(scores, human, rng))
    assert found.recall == {k: sum(1 for rank in ranks if rank <= k) / 40 for k in (1, 5, 10)}
    assert found.reciprocal_rank == pytest.approx(sum(1 / rank for rank in ranks) / 40)
    assert found.mean_rank == pytest.approx(sum(ranks) / 40)


def dcg(relevance, order, k):
    return sum(relevance[option] / math.log2(place + 2) for place, option in enumerate(order[:k]))


def test_ndcg_is_that_of_a_loop(rng):
    for _ in range(20):
        scores, relevance = rng.normal(size=12), rng.choice([0, 0, 0.5, 1], 12)
        relevance[3] = 1
        order = sorted(range(12), key=lambda option: -scores[option])
        best = sorted(range(12), key=lambda option: -relevance[option])
        k = sum(1 for one in relevance if one > 0)
        assert ndcg(scores, relevance) == pytest.approx(dcg(relevance, order, k) / dcg(relevance, best, k))


def test_a_perfect_order_has_ndcg_one_and_an_order_of_irrelevant_ones_zero():
    relevance = np.array([1.0, 0.5, 0.0, 0.0])
    assert ndcg(np.array([4.0, 3.0, 2.0, 1.0]), relevance) == 1
    assert ndcg(np.array([1.0, 2.0, 3.0, 4.0]), relevance) == 0


def test_a_round_without_relevant_candidate_or_no_round_is_refused():
    with pytest.raises(DataError, match="NDCG"):
        ndcg(np.ones(3), np.zeros(3))
    with pytest.raises(DataError, match="rounds"):
        ranking_scores(np.array([], dtype=np.int64))
