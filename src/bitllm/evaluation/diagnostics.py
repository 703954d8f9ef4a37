"""Encoder diagnostics: does the embedding depend on the betas, and does it identify the image?

References
----------
The poster, "Encoder diagnostics": cosine similarity of real and zero betas; brain → image retrieval.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.evaluation.controls import BETAS_CONTROLS, control_betas
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.pairing import other_images
from bitllm.evaluation.table import encoder_rows
from bitllm.metrics.retrieval import target_ranks
from bitllm.model.aligner import BrainAligner
from bitllm.model.embed import brain_tokens_of
from bitllm.model.encoder import BrainEncoder

_DRAWS = 20
_ITEMS_AT_ONCE = 1024


@torch.no_grad()
def embeddings(aligner: BrainAligner | None, brain_tokens: Tensor) -> Float[np.ndarray, "n d"]:
    """Unit embeddings in the image space; without an aligner, the mean brain token as a unit vector."""
    if aligner is not None:
        return aligner.embed(brain_tokens)[0].cpu().numpy()
    mean = brain_tokens.mean(dim=1)
    return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()


def same_encoder(one: BrainEncoder, other: BrainEncoder) -> bool:
    """Whether two encoders have the same weights."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and bool((a[name].cpu() == b[name].cpu()).all()) for name in a
    )


def encoder_table(
    aligner: BrainAligner | None,
    encoder: BrainEncoder,
    atlases: tuple[str, ...],
    held_out: HeldOut,
    images: Float[np.ndarray, "m d"] | None,
    *,
    inputs: Sequence[str],
    trials: str,
    seed: int,
) -> tuple[pd.DataFrame, Float[np.ndarray, "n d"], dict[str, str]]:
    """Rows of the encoder for the evaluation's table: rank of the correct image under each input.

    Parameters
    ----------
    aligner
        The encoder with its heads; without it there is no retrieval.
    encoder
        The encoder.
    atlases
        Atlases of the encoder.
    held_out
        The trials.
    images
        CLIP embeddings of the test images, sorted by nsd_id.
    inputs
        Controls, in addition to the real betas. Shuffle and permuted are drawn 20 times, because uninformative
        embeddings cluster around the same few images.
    trials
        ``averaged`` or ``single``.
    seed
        Seed of the controls and of the order of ties.

    Returns
    -------
    tuple
        The rows, the embeddings of the real betas, and the controls that were left out with their reasons.
    """

    def embed(betas: Float[np.ndarray, "n voxels"] | None = None) -> Float[np.ndarray, "n d"]:
        return embeddings(aligner, held_out.brain_tokens(encoder, atlases, betas))

    def ranks(queries: list[Float[np.ndarray, "n d"]]) -> Int[np.ndarray, "n draws"] | None:
        if images is None or aligner is None:
            return None
        similarity = np.concatenate(queries) @ images.T
        found = target_ranks(similarity, np.tile(target, len(queries)), np.random.default_rng(seed))
        return found.reshape(len(queries), -1).T

    _, target = np.unique(held_out.nsd_id, return_inverse=True)
    real = embed()
    zero = embed(np.zeros_like(held_out.betas))
    rows = [
        encoder_rows(
            held_out, "real", trials=trials, ranks=ranks([real]), cosine_zero=(real * zero).sum(axis=1)
        )
    ]
    not_run: dict[str, str] = {}
    for name in inputs if images is not None and aligner is not None else ():
        try:
            queries = _draws_of(name, held_out, real, embed, seed=seed)
        except DataError as error:
            not_run[name] = str(error)
            continue
        if queries:
            rows.append(encoder_rows(held_out, name, trials=trials, ranks=ranks(queries)))
    return pd.concat(rows, ignore_index=True), real, not_run


def _draws_of(
    name: str,
    held_out: HeldOut,
    real: Float[np.ndarray, "n d"],
    embed: Callable[[Float[np.ndarray, "n voxels"]], Float[np.ndarray, "n d"]],
    *,
    seed: int,
) -> list[Float[np.ndarray, "n d"]]:
    """Embeddings under a control, one array for each draw; none if the control has no betas."""
    if name == "permuted":
        return [real[other_images(held_out, seed=seed + draw).order] for draw in range(_DRAWS)]
    if name not in BETAS_CONTROLS:
        return []
    n_draws = _DRAWS if name == "shuffle" else 1
    return [embed(control_betas(name, held_out, seed=seed + draw).betas) for draw in range(n_draws)]


def nearest_rows(
    queries: Float[np.ndarray, "n d"], candidates: Float[np.ndarray, "m d"]
) -> Int[np.ndarray, " n"]:
    """For each query, the index of the candidate with the largest inner product."""
    return np.argmax(queries @ candidates.T, axis=1)


def nearest_training_captions(
    encoder: BrainEncoder,
    aligner: BrainAligner | None,
    store: Store,
    split: Split,
    atlases: tuple[str, ...],
    *,
    queries: Float[np.ndarray, "n d"],
) -> list[str]:
    """For each query, the first caption of the training image with the nearest brain embedding."""
    training = select_trials(store, split, "train", averaged=True)
    anatomies = Anatomies.of(store, training.subjects, atlases)
    # a thousand items at a time: the brain tokens of a whole NSD would not fit in memory
    parts = (training[start : start + _ITEMS_AT_ONCE] for start in range(0, len(training), _ITEMS_AT_ONCE))
    candidates = np.concatenate(
        [embeddings(aligner, brain_tokens_of(encoder, part, anatomies)) for part in parts]
    )
    return [store.captions[int(training.nsd_id[row])][0] for row in nearest_rows(queries, candidates)]
