"""Move the pooled betas of a new subject onto the distribution of the training subjects, without labels.

Subjects differ in how strongly regions respond and covary, with all images alike. An encoder learns what its training
subjects have in common; a new subject's pooled betas then lie beside the values that its blocks were trained on. Mean
and covariance of both are known without a single caption or picture, and of all affine maps between two normal
distributions the optimal transport changes the values least.

References
----------
The closed form is Gelbrich's (1990; see Peyré & Cuturi 2019, Computational Optimal Transport, remark 2.31). Aligning
covariances for another domain is the idea of CORAL (Sun, Feng & Saenko 2016, arXiv 1511.05547), which whitens and
colors instead; in development runs the transport was better (docs/lab-log.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SHRINKAGE = 0.1
"""Share of an identity matrix in each covariance; chosen on development brains, where .03 to .3 were equally good."""


class Moments(NamedTuple):
    """Mean and covariance of pooled betas, in float64."""

    mean: Float[Tensor, " queries"]
    covariance: Float[Tensor, "queries queries"]

    @classmethod
    def of(cls, pooled: Float[Tensor, "n queries"]) -> "Moments":
        """Moments of trials of one subject."""
        values = pooled.double()
        centered = values - values.mean(0)
        return cls(values.mean(0), centered.mT @ centered / len(values))

    @classmethod
    def mean_of(cls, subjects: Sequence["Moments"]) -> "Moments":
        """Means over subjects; each has the same weight."""
        means, covariances = zip(*subjects, strict=True)
        return cls(torch.stack(means).mean(0), torch.stack(covariances).mean(0))


class Transport(NamedTuple):
    """An affine map of pooled betas: (x − start) · matrix + end."""

    start: Float[Tensor, " queries"]
    matrix: Float[Tensor, "queries queries"]
    end: Float[Tensor, " queries"]

    def __call__(self, pooled: Float[Tensor, "B queries"]) -> Float[Tensor, "B queries"]:
        """The moved values, of the same type and on the same device."""
        start, matrix, end = (part.to(pooled) for part in self)
        return (pooled - start) @ matrix + end


def optimal_transport(source: Moments, target: Moments, *, shrinkage: float = SHRINKAGE) -> Transport:
    """The map from one normal distribution to another that changes the values least.

    Parameters
    ----------
    source, target
        Moments of the new subject and of the training subjects.
    shrinkage
        Share of a multiple of the identity, of equal trace, in each covariance: few trials determine few directions.
    """
    start, end = (_shrunken(moments.covariance, shrinkage) for moments in (source, target))
    root, inverse_root = _powers(start)
    between, _ = _powers(root @ end @ root)
    return Transport(source.mean, inverse_root @ between @ inverse_root, target.mean)


def _shrunken(
    covariance: Float[Tensor, "queries queries"], shrinkage: float
) -> Float[Tensor, "queries queries"]:
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    return (1 - shrinkage) * covariance + shrinkage * covariance.trace() / len(covariance) * identity


def _powers(
    matrix: Float[Tensor, "queries queries"],
) -> tuple[Float[Tensor, "queries queries"], Float[Tensor, "queries queries"]]:
    """Square root of a positive definite matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    return (vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT
