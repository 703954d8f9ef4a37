"""The encoder: against a loop, and what must not change its output."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.model.encoder import Anatomy, BrainEncoder


@pytest.fixture
def encoder() -> BrainEncoder:
    torch.manual_seed(0)
    return (
        BrainEncoder(
            n_queries=10,
            rank=6,
            n_brain_tokens=3,
            token_width=4,
            n_labels=(3, 4),
            n_blocks=1,
            n_frequencies=8,
        )
        .double()
        .eval()
    )


def anatomy_of(brain: dict[str, Any]) -> Anatomy:
    return Anatomy(brain["coords_mm"].double(), brain["atlas_labels"], brain["voxel_mask"])


def test_pooling_equals_a_loop_over_trials_queries_and_voxels(
    encoder: BrainEncoder, brain: dict[str, Any]
) -> None:
    coords, labels = brain["coords_mm"][0].double(), brain["atlas_labels"][0]
    betas = brain["betas"].double()
    keys = encoder.keys(coords, labels)
    queries = F.normalize(encoder.queries, dim=-1) * encoder.log_sharpness.exp()
    expected = torch.zeros(3, 10, dtype=torch.float64)
    for trial in range(3):
        for query in range(10):
            weights = torch.stack([(queries[query] @ keys[v]).exp() for v in range(len(coords))])
            expected[trial, query] = sum(
                weights[v] / weights.sum() * betas[trial, v] for v in range(len(coords))
            )
    assert torch.allclose(encoder.pool(betas, coords, labels), expected, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_voxels_does_not_matter(seed: int) -> None:
    torch.manual_seed(0)
    encoder = BrainEncoder(
        n_queries=10, rank=6, n_brain_tokens=3, token_width=4, n_labels=(3,), n_blocks=1
    ).double()
    generator = torch.Generator().manual_seed(seed)
    coords, betas = (
        torch.randn(20, 3, generator=generator).double(),
        torch.randn(2, 20, generator=generator).double(),
    )
    labels = torch.randint(0, 4, (20, 1), generator=generator)
    order = torch.randperm(20, generator=generator)
    assert torch.allclose(
        encoder.pool(betas, coords, labels),
        encoder.pool(betas[:, order], coords[order], labels[order]),
        atol=1e-10,
    )


def test_padding_changes_nothing_whatever_it_holds(encoder: BrainEncoder, brain: dict[str, Any]) -> None:
    betas, anatomy = brain["betas"].double(), anatomy_of(brain)
    before = encoder(betas, brain["subject_index"], anatomy)
    betas[1, 22:] = 1e6
    anatomy.coords_mm[1, 22:] = 99.0
    assert torch.equal(before, encoder(betas, brain["subject_index"], anatomy))


def test_a_batch_of_two_subjects_equals_two_batches(encoder: BrainEncoder, brain: dict[str, Any]) -> None:
    betas, anatomy, subjects = brain["betas"].double(), anatomy_of(brain), brain["subject_index"]
    together = encoder(betas, subjects, anatomy)
    for subject in (0, 1):
        rows = subjects == subject
        assert torch.allclose(together[rows], encoder(betas[rows], subjects[rows], anatomy), atol=1e-12)


def test_anchored_queries_are_keys_of_voxels(encoder: BrainEncoder, brain: dict[str, Any]) -> None:
    coords, labels = brain["coords_mm"][0].double(), brain["atlas_labels"][0]
    encoder.anchor_queries(coords, labels, torch.Generator().manual_seed(0))
    similarity = encoder.queries @ encoder.keys(coords, labels).T
    assert torch.allclose(similarity.max(dim=1).values, torch.ones(10, dtype=torch.float64), atol=1e-9)


def test_near_voxels_have_similar_features_and_far_ones_not() -> None:
    from bitllm.model.voxels import FourierPositions

    torch.manual_seed(0)
    positions = FourierPositions(n_frequencies=4000, length_mm=10.0).double()
    features = positions(torch.tensor([[0.0, 0, 0], [10.0, 0, 0], [60.0, 0, 0]]).double())
    similarity = features @ features[0]
    expected = torch.tensor(
        [1.0, 0.6065, 0.0]
    ).double()  # exp(-d² / 2 length²); ±4 standard errors of 4000 directions
    assert torch.allclose(similarity, expected, atol=0.05)
