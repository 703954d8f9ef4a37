"""The subject-agnostic fMRI encoder: any set of voxels of any subject → brain tokens.

Each of ``n_queries`` learned queries pools the betas of a trial with softmax weights that depend on where a
voxel lies and how atlases name it, never on its beta:

    pooled[q] = Σ_v softmax_v(τ · query[q] · key[v]) · beta[v]

so the weights of one subject are one matrix for all its trials, and pooling a batch is *one* attention call with
the batch as the value dimension. Residual blocks and a head turn the pooled values into brain tokens.

References
----------
The idea of neuro-informed attention is MindLLM's (Qiu et al. 2025, arXiv 2502.15786, section 3.1); this is a
clean-room version of it. Ours differs: coordinates in a common space in mm instead of voxel indices, unit-length
keys and queries with a learned sharpness, queries that can start as keys of real voxels, an "unknown" label in
every atlas, weights computed once per subject and batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import initialization as init

from bitllm.model.positions import FourierPositions


class Anatomy(NamedTuple):
    """The voxels of the subjects of a batch, padded to the same number.

    Legend: S subjects, V voxels, A atlases.
    """

    coords_mm: Float[Tensor, "S V 3"]
    """Place of each voxel in the common space, in mm."""
    atlas_labels: Int[Tensor, "S V A"]
    """Label of each voxel in each atlas; 0 is "unknown"."""
    voxel_mask: Bool[Tensor, "S V"]
    """Which voxels are real, not padding."""


class VoxelKeys(nn.Module):
    """A unit vector for each voxel from its place and its labels."""

    def __init__(
        self, *, rank: int, n_frequencies: int, length_mm: float, n_labels: tuple[int, ...], label_width: int
    ) -> None:
        super().__init__()
        self.positions = FourierPositions(n_frequencies=n_frequencies, length_mm=length_mm)
        self.labels = nn.ModuleList(nn.Embedding(n + 1, label_width) for n in n_labels)
        self.project = nn.Linear(self.positions.width + label_width * len(n_labels), rank, bias=False)

    def forward(
        self, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> Float[Tensor, "V rank"]:
        """Keys of one subject's voxels."""
        features = [self.positions(coords_mm)]
        features += [embed(atlas_labels[:, atlas]) for atlas, embed in enumerate(self.labels)]
        return F.normalize(self.project(torch.cat(features, dim=-1)), dim=-1)


class ResidualBlock(nn.Module):
    """x + Dropout(GELU(Linear(LayerNorm(x))))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B width"]) -> Float[Tensor, "B width"]:
        return x + self.dropout(F.gelu(self.linear(self.norm(x))))


class BrainEncoder(nn.Module):
    """Betas of any voxels with their anatomy → brain tokens.

    Parameters
    ----------
    n_queries
        Number of pooled values (poster size: 1024); also the width of the residual blocks.
    rank
        Width of queries and keys (128).
    n_brain_tokens, token_width
        Shape of the output (128 × 1024).
    n_labels
        Largest label of each atlas; label 0 is "unknown".
    n_frequencies, length_mm
        See `FourierPositions`.
    sharpness
        τ at the start; it is learned.

    Notes
    -----
    Legend: B trials, S subjects, V voxels, A atlases, N brain tokens.
    """

    def __init__(  # noqa: PLR0913 - the sizes of one network
        self,
        *,
        n_queries: int,
        rank: int,
        n_brain_tokens: int,
        token_width: int,
        n_labels: tuple[int, ...],
        n_blocks: int = 4,
        dropout: float = 0.1,
        sharpness: float = 12.0,
        n_frequencies: int = 96,
        length_mm: float = 12.0,
        label_width: int = 16,
    ) -> None:
        super().__init__()
        self.n_brain_tokens, self.token_width = n_brain_tokens, token_width
        self.initial_sharpness = sharpness
        self.keys = VoxelKeys(
            rank=rank,
            n_frequencies=n_frequencies,
            length_mm=length_mm,
            n_labels=tuple(n_labels),
            label_width=label_width,
        )
        self.queries = nn.Parameter(torch.empty(n_queries, rank))
        self.log_sharpness = nn.Parameter(torch.empty(()))
        self.pooled_norm = nn.LayerNorm(n_queries)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ResidualBlock(n_queries, dropout) for _ in range(n_blocks))
        self.head = nn.Linear(n_queries, n_brain_tokens * token_width)
        self.token_norm = nn.LayerNorm(token_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values of the parameters that are not a layer's own."""
        init.normal_(self.queries)
        init.constant_(self.log_sharpness, float(torch.tensor(self.initial_sharpness).log()))

    @torch.no_grad()
    def anchor_queries(
        self, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"], generator: torch.Generator
    ) -> None:
        """Let the queries start as the keys of random training voxels, so that pooling starts local.

        Ours: a query drawn at random attends to nothing in particular, and learns its place slowly.
        """
        n_queries, n_voxels = self.queries.shape[0], coords_mm.shape[0]
        chosen = torch.randint(n_voxels, (n_queries,), generator=generator).to(coords_mm.device)
        self.queries.copy_(self.keys(coords_mm[chosen], atlas_labels[chosen]))

    def pool(
        self, betas: Float[Tensor, "B V"], coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> Float[Tensor, "B queries"]:
        """Pooled betas of trials of *one* subject; the softmax weights are computed once for all of them."""
        keys = self.keys(coords_mm, atlas_labels)
        queries = F.normalize(self.queries, dim=-1) * self.log_sharpness.exp()
        pooled = F.scaled_dot_product_attention(
            queries[None, None], keys[None, None], betas.T[None, None].to(keys.dtype), scale=1.0
        )
        return pooled[0, 0].T

    def forward(
        self, betas: Float[Tensor, "B V"], subject_index: Int[Tensor, " B"], anatomy: Anatomy
    ) -> Float[Tensor, "B N width"]:
        """Brain tokens of a batch that may mix subjects.

        Parameters
        ----------
        betas
            Z-scored betas of each trial; columns past a subject's voxels are padding.
        subject_index
            For each trial, the row of ``anatomy`` that holds its subject's voxels.
        """
        pooled = betas.new_zeros(betas.shape[0], self.queries.shape[0], dtype=self.queries.dtype)
        for subject in subject_index.unique().tolist():
            trials = (subject_index == subject).nonzero()[:, 0]
            real = anatomy.voxel_mask[subject]
            pooled = pooled.index_copy(
                0,
                trials,
                self.pool(
                    betas[trials][:, real],
                    anatomy.coords_mm[subject, real],
                    anatomy.atlas_labels[subject, real],
                ),
            )
        return self.tokens(pooled)

    def tokens(self, pooled: Float[Tensor, "B queries"]) -> Float[Tensor, "B N width"]:
        """Pooled betas → residual blocks → brain tokens."""
        hidden = self.dropout(F.gelu(self.pooled_norm(pooled)))
        for block in self.blocks:
            hidden = block(hidden)
        tokens = self.head(hidden).unflatten(-1, (self.n_brain_tokens, self.token_width))
        return self.token_norm(tokens)
