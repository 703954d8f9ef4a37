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

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization as init

from bitllm.model.voxels import Anatomy, VoxelKeys, check_anatomy, check_betas

MAP_LIMIT_BYTES = 256 * 2**20
"""Largest pooling map that evaluation keeps: 1024 queries × 65,000 voxels. Whole brains are pooled anew."""
_MAPS_KEPT = 8
_CHUNK = 256


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
        self.initial_sharpness, self.n_labels = sharpness, tuple(n_labels)
        self._maps: list[_KeptMap] = []
        self.keys = VoxelKeys(
            rank=rank,
            n_frequencies=n_frequencies,
            length_mm=length_mm,
            n_labels=tuple(n_labels),
            label_width=label_width,
        )
        self.queries = nn.Parameter(torch.empty(n_queries, rank))
        self.log_sharpness = nn.Parameter(torch.empty(1))  # FSDP2 shards no scalars
        self.pooled_norm = nn.LayerNorm(n_queries)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ResidualBlock(n_queries, dropout) for _ in range(n_blocks))
        self.head = nn.Linear(n_queries, n_brain_tokens * token_width)
        self.token_norm = nn.LayerNorm(token_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values of the parameters that are not a layer's own."""
        init.normal_(self.queries)
        init.constant_(self.log_sharpness, math.log(self.initial_sharpness))

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

    def pooling_map(
        self, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> Float[Tensor, "queries V"]:
        """Softmax weights of one subject: how much each query takes from each voxel, whatever the trial."""
        queries, keys = self._queries_and_keys(coords_mm, atlas_labels)
        return (queries @ keys.T).softmax(-1)

    def pool(
        self, betas: Float[Tensor, "B V"], coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> Float[Tensor, "B queries"]:
        """Pooled betas of trials of *one* subject; the softmax weights are computed once for all of them.

        While training, the weights are never held: the kernel of attention works through the voxels in blocks
        (it does so where queries, keys and values have one width, hence the zeros). In evaluation they are kept
        for the subject, and pooling is one matrix product.
        """
        if not self.training and not torch.is_grad_enabled():
            weights = self._kept_map(coords_mm, atlas_labels)
            if weights is not None:
                return betas.to(weights.dtype) @ weights.T
        queries, keys = self._queries_and_keys(coords_mm, atlas_labels)
        return torch.cat([_attend(queries, keys, part.to(keys.dtype)) for part in betas.split(_CHUNK)])

    def _queries_and_keys(
        self, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> tuple[Float[Tensor, "queries rank"], Float[Tensor, "V rank"]]:
        keys = self.keys(coords_mm, atlas_labels)
        return F.normalize(self.queries, dim=-1) * self.log_sharpness.exp(), keys

    def _kept_map(
        self, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> Float[Tensor, "queries V"] | None:
        """The map of this anatomy under these parameters, from those kept or made now; None if it is too large."""
        if self.queries.shape[0] * len(coords_mm) * self.queries.element_size() > MAP_LIMIT_BYTES:
            return None
        parameters = [self.queries, self.log_sharpness, *self.keys.parameters(), *self.keys.buffers()]
        for kept in self._maps:
            if _same([coords_mm, atlas_labels, *parameters], kept.made_of):
                return kept.weights
        made_of = [tensor.detach().clone() for tensor in (coords_mm, atlas_labels, *parameters)]
        self._maps = [_KeptMap(self.pooling_map(coords_mm, atlas_labels), made_of), *self._maps][:_MAPS_KEPT]
        return self._maps[0].weights

    def train(self, mode: bool = True) -> "BrainEncoder":
        """Switch to training (which lets go of the pooling maps kept in evaluation) or to evaluation."""
        if mode:
            self._maps = []
        return super().train(mode)

    def forward(
        self, betas: Float[Tensor, "B betas"], subject_index: Int[Tensor, " trials"], anatomy: Anatomy
    ) -> Float[Tensor, "B N width"]:
        """Brain tokens of a batch that may mix subjects.

        Parameters
        ----------
        betas
            Z-scored betas of each trial; columns past a subject's voxels are padding.
        subject_index
            For each trial, the row of ``anatomy`` that holds its subject's voxels.

        Raises
        ------
        DataError
            If betas, subjects and anatomy do not fit one another, or hold what is no number or no label.
        """
        check_anatomy(anatomy, self.n_labels)
        check_betas(betas, subject_index, anatomy.voxel_mask)
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


class _KeptMap(NamedTuple):
    """A pooling map with everything that it was computed from."""

    weights: Tensor
    made_of: list[Tensor]


def _same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return all(
        a.shape == b.shape and a.device == b.device and torch.equal(a, b)
        for a, b in zip(tensors, others, strict=True)
    )


def _attend(
    queries: Float[Tensor, "queries rank"], keys: Float[Tensor, "V rank"], betas: Float[Tensor, "B V"]
) -> Float[Tensor, "B queries"]:
    """softmax(queries · keysᵀ) · betasᵀ as one attention, the trials as the width of its values."""
    n_trials, width = len(betas), max(len(betas), queries.shape[1])
    q, k, v = (_widened(part, width)[None, None] for part in (queries, keys, betas.T))
    pooled = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return pooled[0, 0, :, :n_trials].T


def _widened(rows: Float[Tensor, "n narrow"], width: int) -> Float[Tensor, "n width"]:
    return rows if rows.shape[1] == width else F.pad(rows, (0, width - rows.shape[1]))
