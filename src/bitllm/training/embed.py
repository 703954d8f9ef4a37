"""Brain tokens of many trials at once, by a frozen encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies, BrainInput, brain_input
from bitllm.data.dataset import TrialSet
from bitllm.files import file_written_whole, sha256_of_json
from bitllm.model.checkpoint.base import weights_hash
from bitllm.model.encoder import BrainEncoder
from bitllm.model.voxels import Anatomy
from bitllm.training.ranks import is_main, wait_for_all

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


def kept_brain_tokens(
    encoder: BrainEncoder, trials: TrialSet, anatomies: Anatomies, *, folder: Path | None
) -> Float[Tensor, "n N width"]:
    """Brain tokens of every trial, computed once and kept on disk until encoder or trials change.

    Parameters
    ----------
    folder
        Where they are kept, memory-mapped: n × N × width float32 values (126 GB for the 240,000 training trials of
        the poster's size). None keeps them in memory.
    """
    if folder is None:
        return brain_tokens_of(encoder, trials, anatomies)
    rows = [[int(row) for row in of_item] for of_item in trials.rows]
    of = [
        weights_hash(encoder),
        trials.store.sha256,
        list(trials.subjects),
        trials.subject_index.tolist(),
        rows,
    ]
    place = Path(folder) / f"{sha256_of_json(of)}.npy"
    if is_main() and not place.is_file():
        shape = (len(trials), encoder.n_brain_tokens, encoder.token_width)
        with file_written_whole(place) as unfinished:
            kept = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(trials), _BATCH):
                indices = range(start, min(start + _BATCH, len(trials)))
                kept[start : start + _BATCH] = encode(encoder, brain_input(trials, anatomies, indices)).cpu()
            kept.flush()
    wait_for_all()
    return torch.from_numpy(np.load(place, mmap_mode="c"))


def brain_tokens_of_betas(
    encoder: BrainEncoder, betas: Sequence[Float[np.ndarray, " voxels"]], subject: str, anatomies: Anatomies
) -> Float[Tensor, "n N width"]:
    """Brain tokens of betas of one subject, e.g. those of a control."""
    row = anatomies.subjects.index(subject)
    return _in_batches(
        encoder,
        len(betas),
        lambda indices: anatomies.brain_input([betas[index] for index in indices], [row] * len(indices)),
    )


def _in_batches(
    encoder: BrainEncoder, n: int, batch_of: Callable[[Sequence[int]], BrainInput]
) -> Float[Tensor, "n N width"]:
    starts = range(0, n, _BATCH)
    return torch.cat(
        [encode(encoder, batch_of(range(start, min(start + _BATCH, n)))).cpu() for start in starts]
    )
