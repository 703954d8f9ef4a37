"""The encoder: against a loop, and what must not change its output."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.errors import DataError
from bitllm.model.encoder import MAP_LIMIT_BYTES, BrainEncoder
from bitllm.model.voxels import Anatomy


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


def test_gradients_equal_those_of_a_loop_over_trials_queries_and_voxels(
    encoder: BrainEncoder, brain: dict[str, Any]
) -> None:
    """Two subjects, everything from betas to brain tokens written out; float64, so 1e-10 is rounding."""
    anatomy, betas = anatomy_of(brain), brain["betas"].double()
    found = gradients(encoder, lambda: encoder(betas, brain["subject_index"], anatomy))

    def written_out() -> torch.Tensor:
        pooled = []
        for trial, subject in enumerate(brain["subject_index"].tolist()):
            real = anatomy.voxel_mask[subject].nonzero()[:, 0].tolist()
            keys = [naive_key(encoder, anatomy, subject, voxel) for voxel in real]
            for query in encoder.queries:
                unit = query / query.norm()
                weights = torch.stack([(encoder.log_sharpness.exp()[0] * unit @ key).exp() for key in keys])
                terms = [w / weights.sum() * betas[trial, v] for w, v in zip(weights, real, strict=True)]
                pooled.append(torch.stack(terms).sum())
        return encoder.tokens(torch.stack(pooled).view(3, -1))

    expected = gradients(encoder, written_out)
    assert set(found) == set(expected) == {name for name, _ in encoder.named_parameters()} | {"output"}
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-10), name


def naive_key(encoder: BrainEncoder, anatomy: Anatomy, subject: int, voxel: int) -> torch.Tensor:
    phase = [
        sum(anatomy.coords_mm[subject, voxel, axis] * f[axis] for axis in range(3))
        for f in encoder.keys.positions.frequencies.T
    ]
    place = [torch.cos(p) for p in phase] + [torch.sin(p) for p in phase]
    named = [
        embed.weight[label]
        for embed, label in zip(
            encoder.keys.labels, anatomy.atlas_labels[subject, voxel].tolist(), strict=True
        )
    ]
    features = torch.cat([torch.stack(place) / len(phase) ** 0.5, *named])
    key = torch.stack([row @ features for row in encoder.keys.project.weight])
    return key / key.norm()


def gradients(encoder: BrainEncoder, run: Any) -> dict[str, torch.Tensor]:
    encoder.zero_grad()
    out = run()
    (out * torch.linspace(0.5, 1.5, out.numel()).double().view_as(out)).square().sum().backward()
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return {**found, "output": out.detach()}


@pytest.mark.parametrize("n_trials", [1, 7, 300])
def test_pooling_in_training_and_with_the_kept_map_are_the_same(
    encoder: BrainEncoder, brain: dict[str, Any], n_trials: int
) -> None:
    coords, labels = brain["coords_mm"][0].double(), brain["atlas_labels"][0]
    betas = torch.randn(n_trials, 30, generator=torch.Generator().manual_seed(1)).double()
    with_gradient = encoder.pool(betas, coords, labels)
    with torch.no_grad():
        assert torch.allclose(encoder.pool(betas, coords, labels), with_gradient, atol=1e-12)
        assert torch.allclose(encoder.pooling_map(coords, labels) @ betas.T, with_gradient.T, atol=1e-12)


def test_kept_weights_are_made_once_and_never_outlive_what_they_were_made_of(
    encoder: BrainEncoder, brain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    inner = encoder._weights
    monkeypatch.setattr(
        encoder, "_weights", lambda anatomy: (made.append(len(anatomy[0])), inner(anatomy))[1]
    )
    anatomy, betas = anatomy_of(brain), brain["betas"].double()
    with torch.no_grad():
        for _ in range(3):
            first = encoder(betas, brain["subject_index"], anatomy)
        assert made == [2]
        encoder.queries.data[0] += 1.0  # behind autograd's back
        second = encoder(betas, brain["subject_index"], anatomy)
        assert made == [2, 2] and not torch.allclose(first, second)
        anatomy.coords_mm[0, 3] += 5.0
        encoder(betas, brain["subject_index"], anatomy)
        assert len(made) == 3
        encoder.train()
        assert encoder._maps == []


def test_a_map_that_is_too_large_is_neither_made_nor_kept(
    encoder: BrainEncoder, brain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel that works through the voxels in blocks gives the values and gradients of the explicit product."""
    anatomy, betas = anatomy_of(brain), brain["betas"].double()

    def run() -> torch.Tensor:
        return encoder(betas, brain["subject_index"], anatomy)

    expected = gradients(encoder, run)
    monkeypatch.setattr("bitllm.model.encoder.MAP_LIMIT_BYTES", 10 * 29 * 8)
    for explicit in ("_weights", "pooling_map"):
        monkeypatch.setattr(encoder, explicit, None)
    found = gradients(encoder, run)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-10), name
    with torch.no_grad():
        run()
    assert encoder._maps == []


@pytest.mark.parametrize("limit", [MAP_LIMIT_BYTES, 0], ids=["product", "kernel"])
def test_a_trusted_batch_equals_each_trial_alone(
    encoder: BrainEncoder, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Values and gradients of a batch of subjects with different numbers of trials and voxels."""
    monkeypatch.setattr("bitllm.model.encoder.MAP_LIMIT_BYTES", limit)
    generator = torch.Generator().manual_seed(5)
    mask = torch.arange(40)[None] < torch.tensor([[40], [31], [36]])
    anatomy = Anatomy(
        30 * torch.randn(3, 40, 3, generator=generator).double(),
        torch.randint(0, 4, (3, 40, 2), generator=generator),
        mask,
    )
    subject_index = torch.tensor([2, 0, 0, 1, 2, 0, 0])
    betas = torch.randn(7, 40, generator=generator).double().masked_fill(~mask[subject_index], 0.0)

    def alone() -> torch.Tensor:
        rows = []
        for trial, subject in enumerate(subject_index.tolist()):
            real = mask[subject]
            places = anatomy.coords_mm[subject, real], anatomy.atlas_labels[subject, real]
            rows.append(encoder.pool(betas[trial : trial + 1, real], *places))
        return encoder.tokens(torch.cat(rows))

    found = gradients(encoder, lambda: encoder(betas, subject_index, anatomy, per_subject=4))
    for name, gradient in gradients(encoder, alone).items():
        assert torch.allclose(found[name], gradient, atol=1e-10), name


def test_a_whole_brain_is_encoded_in_memory_that_grows_with_its_voxels(run_program: Any) -> None:
    """250,000 voxels and 1024 queries: one matrix of them would be 1 GB, its softmax and gradients several."""
    said = run_program("whole_brain.py")
    peak_mb = {int(n): float(peak) for n, peak in (line.split() for line in said.splitlines())}
    assert set(peak_mb) == {125_000, 250_000}
    assert peak_mb[250_000] < 1000
    assert peak_mb[250_000] < 2.3 * peak_mb[125_000]


def broken(brain: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**{name: tensor.clone() for name, tensor in brain.items()}, **changes}


def with_value(tensor: torch.Tensor, place: tuple[int, ...], value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


BROKEN: dict[str, tuple[Any, str]] = {
    "no voxel of a subject": (
        lambda b: broken(b, voxel_mask=b["voxel_mask"] & torch.tensor([[True], [False]])),
        "expected at least one voxel for each subject, found none for row 1",
    ),
    "no voxel at all": (
        lambda b: broken(
            b,
            betas=b["betas"][:, :0],
            coords_mm=b["coords_mm"][:, :0],
            atlas_labels=b["atlas_labels"][:, :0],
            voxel_mask=b["voxel_mask"][:, :0],
        ),
        "expected at least one voxel for each subject, found none for row 0",
    ),
    "fewer betas than coordinates": (
        lambda b: broken(b, betas=b["betas"][:, :29]),
        "expected one beta for each of 30 voxels with coordinates, found 29",
    ),
    "fewer labels than coordinates": (
        lambda b: broken(b, atlas_labels=b["atlas_labels"][:, :28]),
        "expected as many labels as coordinates, found 30 coordinates, 28 rows of labels",
    ),
    "another number of atlases": (
        lambda b: broken(b, atlas_labels=b["atlas_labels"][..., :1]),
        "expected labels in the encoder's 2 atlases, found 1",
    ),
    "a NaN beta": (
        lambda b: broken(b, betas=with_value(b["betas"], (2, 17), float("nan"))),
        r"expected finite z-scores, found nan at voxel 17 of trial 2 of the batch \(1 such values\)",
    ),
    "an infinite beta": (
        lambda b: broken(b, betas=with_value(b["betas"], (1, 4), float("-inf"))),
        "expected finite z-scores, found -inf at voxel 4 of trial 1",
    ),
    "a place that is not a number": (
        lambda b: broken(b, coords_mm=with_value(b["coords_mm"], (1, 5, 2), float("nan"))),
        r"expected finite coordinates in mm, found \[.*nan\] at voxel 5 of subject row 1",
    ),
    "a label outside the atlas": (
        lambda b: broken(b, atlas_labels=with_value(b["atlas_labels"], (0, 6, 1), 5)),
        r"labels of atlas number 1 from 0 \(unknown\) to 4, found 5 at voxel 6 of subject row 0",
    ),
    "a negative label": (
        lambda b: broken(b, atlas_labels=with_value(b["atlas_labels"], (1, 7, 0), -1)),
        r"labels of atlas number 0 from 0 \(unknown\) to 3, found -1 at voxel 7 of subject row 1",
    ),
    "a subject without anatomy": (
        lambda b: broken(b, subject_index=torch.tensor([0, 2, 0])),
        "expected subject rows from 0 to 1, found 2 for trial 1",
    ),
    "fewer subjects than trials": (
        lambda b: broken(b, subject_index=torch.tensor([0, 1])),
        "expected a subject for each of 3 trials, found 2 subjects",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_brain_input_is_one_named_line(
    encoder: BrainEncoder, brain: dict[str, Any], case: str
) -> None:
    make, message = BROKEN[case]
    wrong = make({**brain, "atlas_labels": brain["atlas_labels"].clamp(max=3)})
    with pytest.raises(DataError, match=message) as refused:
        encoder(wrong["betas"].double(), wrong["subject_index"], anatomy_of(wrong))
    assert "\n" not in str(refused.value)


def test_labels_and_betas_of_padding_may_be_anything(encoder: BrainEncoder, brain: dict[str, Any]) -> None:
    before = encoder(brain["betas"].double(), brain["subject_index"], anatomy_of(brain))
    brain["betas"][1, 25], brain["atlas_labels"][1, 25] = float("nan"), 99
    assert torch.equal(before, encoder(brain["betas"].double(), brain["subject_index"], anatomy_of(brain)))
