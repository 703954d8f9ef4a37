"""InfoNCE against a loop written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.losses.contrastive import info_nce, mixed_images, same_image


def loop_info_nce(brain: torch.Tensor, target: torch.Tensor, scale: float, nsd_id: list[int]) -> float:
    """The definition, one exponential at a time."""
    n, total = len(nsd_id), 0.0
    for queries, keys in ((brain, target), (target, brain)):
        for i in range(n):
            scores = [scale * float(queries[i] @ keys[j]) for j in range(n)]
            log_sum = math.log(sum(math.exp(score) for score in scores))
            own = [scores[j] - log_sum for j in range(n) if nsd_id[j] == nsd_id[i]]
            total -= sum(own) / len(own)
    return total / (2 * n)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.floats(0.5, 20.0), st.integers(0, 99))
def test_info_nce_equals_a_loop_written_out(nsd_id: list[int], scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    brain, target = (
        F.normalize(torch.randn(len(nsd_id), 5, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    loss = info_nce(
        brain,
        target,
        scale=torch.tensor(scale, dtype=torch.float64),
        positives=same_image(torch.tensor(nsd_id)),
    )
    assert float(loss) == pytest.approx(loop_info_nce(brain, target, scale, nsd_id), abs=1e-10)


def test_repeats_of_an_image_are_not_pushed_apart() -> None:
    brain = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    apart = info_nce(brain, brain, scale=torch.tensor(50.0), positives=torch.eye(3, dtype=torch.bool))
    together = info_nce(brain, brain, scale=torch.tensor(50.0), positives=same_image(torch.tensor([4, 4, 9])))
    assert float(apart) > float(torch.tensor(2.0).log()) / 2
    assert float(together) == pytest.approx(
        2 / 3 * math.log(2), abs=1e-4
    )  # two positives share the probability


def test_mixtures_count_as_much_of_an_image_as_they_hold() -> None:
    """Against a loop: brain i is share_i of image first_i and the rest of second_i; targets are those of first."""
    generator = torch.Generator().manual_seed(0)
    brain, target = (
        F.normalize(torch.randn(5, 4, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    first, second = [3, 3, 7, 8, 9], [7, 9, 3, 8, 3]
    share = torch.tensor([0.9, 0.25, 0.5, 0.1, 1.0], dtype=torch.float64)
    weights = [
        [
            float(share[i]) * (first[i] == first[j]) + (1 - float(share[i])) * (second[i] == first[j])
            for j in range(5)
        ]
        for i in range(5)
    ]
    found = mixed_images(torch.tensor(first), torch.tensor(second), share)
    assert found.tolist() == weights
    total, scale = 0.0, 4.0
    for i in range(5):
        rows = [scale * float(brain[i] @ target[j]) for j in range(5)]
        columns = [scale * float(brain[j] @ target[i]) for j in range(5)]
        own = [weights[i][j] / sum(weights[i]) for j in range(5)]
        of_target = [weights[j][i] / sum(weights[j]) for j in range(5)]
        for scores, shares in ((rows, own), (columns, of_target)):
            log_sum = math.log(sum(math.exp(score) for score in scores))
            total -= sum(w * (score - log_sum) for w, score in zip(shares, scores, strict=True))
    loss = info_nce(brain, target, scale=torch.tensor(scale, dtype=torch.float64), positives=found)
    assert float(loss) == pytest.approx(total / 10, abs=1e-10)


def test_mixtures_of_different_images_give_the_loss_of_mindeye() -> None:
    """As published: cross-entropy to the shares in both directions, a target counting as much as mixtures hold."""
    generator = torch.Generator().manual_seed(3)
    brain, target = (F.normalize(torch.randn(6, 4, generator=generator), dim=-1) for _ in range(2))
    order, share = torch.tensor([2, 0, 1, 5, 3, 4]), torch.tensor([0.99, 0.02, 0.4, 0.7, 1.0, 0.01])
    shares = torch.diag(share)
    shares[torch.arange(6), order] = 1 - share
    logits = 8.0 * brain @ target.T
    expected = (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares.T)) / 2
    images = torch.arange(6)
    found = info_nce(
        brain, target, scale=torch.tensor(8.0), positives=mixed_images(images, images[order], share)
    )
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_mixtures_that_hold_one_image_alone_are_trials() -> None:
    generator = torch.Generator().manual_seed(4)
    brain, target = (F.normalize(torch.randn(5, 4, generator=generator), dim=-1) for _ in range(2))
    first, share = torch.tensor([1, 1, 2, 1, 5]), torch.ones(5)
    mixtures, trials = (
        info_nce(brain, target, scale=torch.tensor(6.0), positives=positives)
        for positives in (mixed_images(first, first.flip(0), share), same_image(first))
    )
    assert float(mixtures) == pytest.approx(float(trials), abs=1e-6)
