"""The subject-agnostic fMRI encoder: any set of voxels of any subject → brain tokens.

Each of ``n_queries`` learned queries pools the betas of a trial. The softmax weights depend on the coordinates and
atlas labels of the voxels, not on the betas:

    pooled[q] = Σ_v softmax_v(τ · query[q] · key[v]) · beta[v]

So one weight matrix serves all trials of a subject, and pooling a batch of several subjects is one batched matrix
product. Residual blocks and a linear head turn the pooled values into brain tokens.

References
----------
The idea of neuro-informed attention is MindLLM's (Qiu et al. 2025, arXiv 2502.15786, section 3.1); this is a
clean-room version of it. Differences: coordinates in mm in a common space instead of voxel indices, unit-length keys
and queries with a learned inverse temperature, queries optionally initialized with the keys of real voxels, an
"unknown" label in every atlas, weights computed once per subject and batch.
"""

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import initialization as init

from bitllm.model.transport import Transport
from bitllm.model.voxels import Anatomy, VoxelKeys, check_anatomy, check_betas

MAP_LIMIT_BYTES = 256 * 2**20
"""Largest pooling map of one subject that is computed as a whole: 1024 queries × 65,000 voxels."""
_ONE_AT_A_TIME = ("cpu",)  # devices on which training computes the map of one subject after another
_SUBJECTS_KEPT = 8  # NSD's number of subjects
_CHUNK = (
    256  # trials per attention call: they are the width of its values, and a wider call needs more memory
)


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
        Initial value of the inverse temperature τ, which is learned.

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
        self.transport: Transport | None = None
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
        """Initialize the parameters that do not belong to a submodule."""
        init.normal_(self.queries)
        # The logarithm is learned, so that τ stays positive.
        init.constant_(self.log_sharpness, math.log(self.initial_sharpness))

    @torch.no_grad()
    def anchor_queries(
        self, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"], generator: torch.Generator
    ) -> None:
        """Initialize the queries with the keys of random training voxels, so that pooling is local at the start.

        This is ours: a query drawn at random matches no voxel well and takes long to become local.
        """
        n_queries, n_voxels = self.queries.shape[0], coords_mm.shape[0]
        chosen = torch.randint(n_voxels, (n_queries,), generator=generator).to(coords_mm.device)
        self.queries.copy_(self.keys(coords_mm[chosen], atlas_labels[chosen]))

    def pooling_map(
        self, coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> Float[Tensor, "queries V"]:
        """Softmax weights of one subject: the weight of each voxel in each query, the same for all trials."""
        return (self._scaled_queries() @ self.keys(coords_mm, atlas_labels).mT).softmax(-1)

    def pool(
        self, betas: Float[Tensor, "B V"], coords_mm: Float[Tensor, "V 3"], atlas_labels: Int[Tensor, "V A"]
    ) -> Float[Tensor, "B queries"]:
        """Pooled betas of trials of one subject."""
        return self._pooled(betas[None], Anatomy.of_subject(coords_mm, atlas_labels))[0]

    def pooled(
        self,
        betas: Float[Tensor, "B betas"],
        subject_index: Int[Tensor, " trials"],
        anatomy: Anatomy,
        *,
        per_subject: int | None = None,
    ) -> Float[Tensor, "B queries"]:
        """Pooled betas of a batch of one or more subjects, in one batched product; arguments as of `forward`."""
        if per_subject is None:
            check_anatomy(anatomy, self.n_labels)
            check_betas(betas, subject_index, anatomy.voxel_mask)
            padding = ~anatomy.voxel_mask
            betas = betas.masked_fill(padding[subject_index], 0.0)
            # Drop subjects without a trial, and relabel their padding as 0: label tables may be padded with
            # other values.
            present, subject_index, counts = subject_index.unique(return_inverse=True, return_counts=True)
            labels = anatomy.atlas_labels.masked_fill(padding[..., None], 0)
            anatomy = Anatomy(*(part[present] for part in (anatomy.coords_mm, labels, anatomy.voxel_mask)))
            per_subject = int(counts.max())
        n_subjects = len(anatomy.voxel_mask)
        betas = betas.to(self.queries.dtype)
        if n_subjects == 1:
            return self._pooled(betas[None], anatomy)[0]
        # Sort the trials into a table of n_subjects × per_subject rows. Boolean indexing would be simpler, but its
        # result has a size that only the GPU knows, so the host would wait for it in every step.
        is_own = (subject_index[:, None] == torch.arange(n_subjects, device=betas.device)).long()
        earlier = (is_own.cumsum(0) * is_own).sum(1) - 1
        row = subject_index * per_subject + earlier
        table = betas.new_zeros(n_subjects * per_subject, betas.shape[1]).index_copy(0, row, betas)
        return self._pooled(table.unflatten(0, (n_subjects, per_subject)), anatomy).flatten(0, 1)[row]

    def _pooled(
        self, betas: Float[Tensor, "S trials V"], anatomy: Anatomy
    ) -> Float[Tensor, "S trials queries"]:
        """Pooled betas of the same number of trials of each subject.

        Weights that fit in memory are computed explicitly, in training on a CPU for one subject after another, so
        that they stay in the processor's cache; in evaluation they are kept. For whole brains the attention kernel
        processes the voxels in blocks and never stores the weights.
        """
        n_bytes = self.queries.shape[0] * anatomy.voxel_mask.shape[1] * self.queries.element_size()
        if n_bytes <= MAP_LIMIT_BYTES:
            if not self.training and not torch.is_grad_enabled():
                weights = self._kept_weights(anatomy)
            elif betas.device.type in _ONE_AT_A_TIME:
                return torch.stack([self._pooled_alone(*one) for one in zip(betas, *anatomy, strict=True)])
            else:
                weights = self._weights(anatomy)
            return betas.to(weights.dtype) @ weights.mT
        queries, keys, bias = self._queries_keys_bias(anatomy)
        parts = [_attend(queries, keys, bias, part.to(keys.dtype)) for part in betas.split(_CHUNK, dim=1)]
        return torch.cat(parts, dim=1)

    def _pooled_alone(
        self,
        betas: Float[Tensor, "trials V"],
        coords_mm: Float[Tensor, "V 3"],
        atlas_labels: Int[Tensor, "V A"],
        is_voxel: Bool[Tensor, " V"],
    ) -> Float[Tensor, "trials queries"]:
        """Pooled betas of one subject, whose padding is left out."""
        weights = self.pooling_map(coords_mm[is_voxel], atlas_labels[is_voxel])
        return (weights @ betas[:, is_voxel].mT.to(weights.dtype)).mT

    def _weights(self, anatomy: Anatomy) -> Float[Tensor, "S queries V"]:
        """Softmax weights of each subject; 0 on padding."""
        queries, keys, bias = self._queries_keys_bias(anatomy)
        return torch.baddbmm(bias, queries.expand(len(keys), -1, -1), keys.mT).softmax(-1)

    def _queries_keys_bias(
        self, anatomy: Anatomy
    ) -> tuple[Float[Tensor, "queries rank"], Float[Tensor, "S V rank"], Float[Tensor, "S 1 V"]]:
        keys = self.keys(anatomy.coords_mm, anatomy.atlas_labels)
        bias = torch.zeros_like(keys[:, None, :, 0]).masked_fill(~anatomy.voxel_mask[:, None], -math.inf)
        return self._scaled_queries(), keys, bias

    def _scaled_queries(self) -> Float[Tensor, "queries rank"]:
        return F.normalize(self.queries, dim=-1) * self.log_sharpness.exp()

    def _kept_weights(self, anatomy: Anatomy) -> Float[Tensor, "S queries V"]:
        """Cached weights of this anatomy under the current parameters, computed if they are not in the cache."""
        parameters = [self.queries, self.log_sharpness, *self.keys.parameters(), *self.keys.buffers()]
        for kept in self._maps:
            if _same([*anatomy, *parameters], kept.made_of):
                return kept.weights
        # The cache is compared by value: parameters change in place in training, and an equal anatomy may be
        # another tensor.
        made_of = [tensor.detach().clone() for tensor in (*anatomy, *parameters)]
        self._maps = [_KeptMap(self._weights(anatomy), made_of), *self._maps]
        while len(self._maps) > 1 and sum(len(kept.weights) for kept in self._maps) > _SUBJECTS_KEPT:
            self._maps.pop()
        return self._maps[0].weights

    def train(self, mode: bool = True) -> "BrainEncoder":
        """Switch to training, which drops the cached weights, or to evaluation."""
        if mode:
            self._maps = []
        return super().train(mode)

    def forward(
        self,
        betas: Float[Tensor, "B betas"],
        subject_index: Int[Tensor, " trials"],
        anatomy: Anatomy,
        *,
        per_subject: int | None = None,
    ) -> Float[Tensor, "B N width"]:
        """Brain tokens of a batch that may mix subjects.

        Parameters
        ----------
        betas
            Z-scored betas of each trial; columns beyond a subject's voxels are padding.
        subject_index
            For each trial, the row of ``anatomy`` with its subject's voxels.
        per_subject
            The largest number of trials of one subject, from `bitllm.data.batch.brain_input`. If it is given, the
            batch is not checked (its padding must be 0) and the host does not wait for the device.

        Raises
        ------
        DataError
            Without ``per_subject``: if the shapes do not match, a beta or coordinate is not finite, or a label is
            not in its atlas.
        """
        pooled = self.pooled(betas, subject_index, anatomy, per_subject=per_subject)
        return self.tokens(pooled if self.transport is None else self.transport(pooled))

    def with_transport(self, transport: Transport) -> "BrainEncoder":
        """The same encoder, with shared weights, that moves pooled betas before its blocks: for one new subject."""
        moved = copy.copy(self)
        moved.transport = transport
        return moved

    def tokens(self, pooled: Float[Tensor, "B queries"]) -> Float[Tensor, "B N width"]:
        """Pooled betas → residual blocks → brain tokens."""
        hidden = self.dropout(F.gelu(self.pooled_norm(pooled)))
        for block in self.blocks:
            hidden = block(hidden)
        tokens = self.head(hidden).unflatten(-1, (self.n_brain_tokens, self.token_width))
        return self.token_norm(tokens)


class _KeptMap(NamedTuple):
    """A cached pooling map with copies of the tensors that it was computed from."""

    weights: Tensor
    made_of: list[Tensor]


def _same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all tensors are equal, with a single host-device synchronization."""
    pairs = list(zip(tensors, others, strict=True))
    if any(a.shape != b.shape or a.device != b.device for a, b in pairs):
        return False
    return not bool(torch.stack([(a != b).any() for a, b in pairs]).any())


def _attend(
    queries: Float[Tensor, "queries rank"],
    keys: Float[Tensor, "S V rank"],
    bias: Float[Tensor, "S 1 V"],
    betas: Float[Tensor, "S trials V"],
) -> Float[Tensor, "S trials queries"]:
    """softmax(queries · keysᵀ + bias) · betasᵀ as attention, with the trials as the width of the values.

    The memory-efficient kernel requires queries, keys and values of equal width; the narrower ones are padded with
    zeros.
    """
    n_trials, width = betas.shape[1], max(betas.shape[1], queries.shape[1])
    q, k, v = (_widened(part, width)[:, None] for part in (queries.expand(len(keys), -1, -1), keys, betas.mT))
    # scale=1.0: the queries are already multiplied by the learned τ.
    pooled = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None], scale=1.0)
    return pooled[:, 0, :, :n_trials].mT


def _widened(rows: Float[Tensor, "S n narrow"], width: int) -> Float[Tensor, "S n width"]:
    return rows if rows.shape[-1] == width else F.pad(rows, (0, width - rows.shape[-1]))
