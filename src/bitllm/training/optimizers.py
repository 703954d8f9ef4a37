"""Optimizers of the stages: AdamW, or Muon for the matrices of linear layers and AdamW for the rest."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bitllm.training.distributed import shard_like

Matrices = Literal["adamw", "muon"]

_MOMENTUM = 0.95
_STEPS = 5
_SLOPE, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix is orthogonalized: all its singular values become about 1.

    The update is scaled by 0.2 · √(longer side), so that its entries are as large as those of AdamW's and one learning
    rate serves both.

    Notes
    -----
    ``torch.optim.Muon`` computes in bfloat16. Processors without such instructions emulate them: with AVX2 alone the
    update of a 2,048 × 256 matrix took 1.8 s instead of 15 ms. This one computes in float32, and iterates on the
    shorter side alone.

    References
    ----------
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025 (arXiv 2502.16982)
    for the scale.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None, "the loop computes the gradients"
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - _MOMENTUM)
                update = matrix.grad.lerp(momentum, _MOMENTUM)  # Nesterov's momentum
                whole = update.full_tensor() if isinstance(update, DTensor) else update
                scale = 0.2 * math.sqrt(max(whole.shape))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(shard_like(orthogonalized(whole), matrix), alpha=-group["lr"] * scale)


def orthogonalized(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """``matrix`` with its singular vectors and with singular values near 1 (.68 to 1.2), by five Newton–Schulz steps.

    A step is X ← (a + b·XXᵀ + c·(XXᵀ)²) X. All factors are polynomials of the first XXᵀ, so they are multiplied before
    X is: a wide matrix takes two products with X instead of ten.
    """
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    gram = wide @ wide.mT
    polynomial = factor = _polynomial(gram)
    for _ in range(_STEPS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        factor = polynomial @ factor
    result = factor @ wide
    return result.mT if matrix.shape[0] > matrix.shape[1] else result


def _polynomial(gram: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    found = torch.addmm(gram, gram, gram, beta=_CUBIC, alpha=_QUINTIC)
    found.diagonal().add_(_SLOPE)
    return found


def make_optimizers(
    module: nn.Module, groups: list[dict[str, Any]], *, lr: float, matrices: Matrices
) -> list[torch.optim.Optimizer]:
    """AdamW for parameter groups of ``module``, and Muon for the weights of linear layers among them if configured.

    A group may have its own ``lr`` and ``weight_decay``. A language head that shares its weight with the embedding of
    tokens is no matrix here.
    """
    embedded = {layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding)}
    linear = {layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)} - embedded
    of_muon = linear if matrices == "muon" else set()
    parts = [
        [
            part
            for group in groups
            if (part := group | {"params": [p for p in group["params"] if (p in of_muon) == is_matrix]})[
                "params"
            ]
        ]
        for is_matrix in (False, True)
    ]
    others, own = parts
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=lr, fused=True)] if others else []
    return [*found, Muon(own, lr)] if own else found
