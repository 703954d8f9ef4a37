"""Muon against its own singular values, and against torch's; which parameters it gets."""

import numpy as np
import pytest
import torch
from torch import nn

from bitllm.training.loop import OptimizerConfig, default_optimizers
from bitllm.training.optimizers import Muon, orthogonalized

SHAPES = [(5, 5), (3, 8), (9, 4)]


def matrix(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalization_keeps_singular_vectors_and_maps_singular_values_by_the_polynomial(shape):
    """The oracle works on the singular values, the code on products of matrices."""
    given = matrix(shape)
    left, values, right = np.linalg.svd(given.numpy(), full_matrices=False)
    values /= np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    np.testing.assert_allclose(orthogonalized(given).numpy(), left @ np.diag(values) @ right, atol=1e-10)


def test_orthogonalization_does_not_depend_on_the_size_of_the_gradient():
    given = matrix((4, 6))
    for size in (1e-5, 1e30):
        assert torch.allclose(orthogonalized(size * given), orthogonalized(given), atol=1e-9)
    assert orthogonalized(torch.zeros(3, 2)).abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torch_up_to_its_bfloat16(shape):
    ours, theirs = (nn.Parameter(matrix(shape).float()) for _ in range(2))
    group = {"weight_decay": 0.1}
    optimizers = (
        Muon([{"params": [ours], **group}], lr=0.02),
        torch.optim.Muon([{"params": [theirs], **group}], lr=0.02, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = matrix(shape, seed=step + 1).float()
            optimizer.step()
    moved = float((theirs.detach() - matrix(shape)).abs().max())
    assert torch.allclose(ours, theirs, atol=0.05 * moved)


class Model(nn.Module):
    """One of each: an embedding that is also the head, a linear layer with a norm, and a bare matrix."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.bare = nn.Parameter(torch.eye(4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


CONFIG = OptimizerConfig(
    steps=6, batch_size=4, learning_rate=0.02, warmup_steps=1, weight_decay=0.1, matrices="muon"
)


def test_muon_trains_the_weights_of_linear_layers_and_adamw_the_rest():
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    others, own = default_optimizers(model, CONFIG)
    assert (type(others), type(own)) == (torch.optim.AdamW, Muon)
    assert [names[p] for group in own.param_groups for p in group["params"]] == ["linear.weight"]
    rest = {names[p] for group in others.param_groups for p in group["params"]}
    assert rest == {"embed.weight", "norm.weight", "norm.bias", "linear.bias", "bare"}
    assert [group["weight_decay"] for group in own.param_groups] == [0.1]
    (alone,) = default_optimizers(model, CONFIG.model_copy(update={"matrices": "adamw"}))
    assert type(alone) is torch.optim.AdamW


def test_the_choice_is_recorded_only_if_it_is_made():
    plain = OptimizerConfig(steps=1, batch_size=1, learning_rate=1.0)
    assert "matrices" not in plain.model_dump(mode="json")
    assert CONFIG.model_dump(mode="json")["matrices"] == "muon"
