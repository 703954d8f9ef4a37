"""Brain tokens of many trials, from a frozen encoder and without dropout, on its device."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies, BrainInput, brain_input
from bitllm.data.dataset import TrialSet
from bitllm.model.encoder import BrainEncoder
from bitllm.model.transport import Moments
from bitllm.model.voxels import Anatomy

_BATCH = 512


def encode(encoder: BrainEncoder, batch: BrainInput) -> Float[Tensor, "B N width"]:
    """Brain tokens of one batch, without dropout."""
    betas, subject_index, *places = (tensor.to(encoder.queries.device) for tensor in batch)
    return encode_betas(encoder, betas, subject_index, Anatomy(*places))


@torch.no_grad()
def encode_betas(
    encoder: BrainEncoder, betas: Float[Tensor, "B V"], subject_index: Int[Tensor, " B"], anatomy: Anatomy
) -> Float[Tensor, "B N width"]:
    """Brain tokens of betas with their anatomy, without dropout."""
    was_training = encoder.training
    encoder.eval()
    brain_tokens = encoder(betas, subject_index, anatomy)
    encoder.train(was_training)
    return brain_tokens


def brain_tokens_of(
    encoder: BrainEncoder, trials: TrialSet, anatomies: Anatomies
) -> Float[Tensor, "n N width"]:
    """Brain tokens of every trial; trials of one subject are encoded together."""
    return _in_batches(encoder, len(trials), lambda indices: brain_input(trials, anatomies, indices))


def brain_tokens_of_betas(
    encoder: BrainEncoder, betas: Sequence[Float[np.ndarray, " voxels"]], subject: str, anatomies: Anatomies
) -> Float[Tensor, "n N width"]:
    """Brain tokens of betas of one subject, e.g. of a control."""
    row = anatomies.subjects.index(subject)
    return _in_batches(
        encoder,
        len(betas),
        lambda indices: anatomies.brain_input([betas[index] for index in indices], [row] * len(indices)),
    )


def moments_of_subject(
    encoder: BrainEncoder, betas: Sequence[Float[np.ndarray, " voxels"]], subject: str, anatomies: Anatomies
) -> Moments:
    """Mean and covariance of the pooled betas of one subject."""
    row = anatomies.subjects.index(subject)
    pooled = [
        pool(encoder, anatomies.brain_input([betas[index] for index in part], [row] * len(part)))
        for part in _parts(range(len(betas)))
    ]
    return Moments.of(torch.cat(pooled).cpu())


@torch.no_grad()
def pool(encoder: BrainEncoder, batch: BrainInput) -> Float[Tensor, "B queries"]:
    """Pooled betas of one batch."""
    betas, subject_index, *places = (tensor.to(encoder.queries.device) for tensor in batch)
    was_training = encoder.training
    encoder.eval()
    pooled = encoder.pooled(betas, subject_index, Anatomy(*places))
    encoder.train(was_training)
    return pooled


def _in_batches(
    encoder: BrainEncoder, n: int, batch_of: Callable[[Sequence[int]], BrainInput]
) -> Float[Tensor, "n N width"]:
    return torch.cat([encode(encoder, batch_of(part)) for part in _parts(range(n))])


def _parts(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    return (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
