"""Encoder diagnostics: does the embedding depend on the betas, and does it hold the image?

References
----------
The poster, "Encoder diagnostics": cosine similarity of real and all-zero input; brain → image retrieval.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.pairing import other_images
from bitllm.metrics.intervals import bootstrap_of_sums, paired_difference_of_sums, sum_by_image
from bitllm.metrics.retrieval import Retrieval, identification_chances, retrieval, target_ranks
from bitllm.model.aligner import BrainAligner
from bitllm.model.embed import brain_tokens_of
from bitllm.model.encoder import BrainEncoder

WAYS = (2, 10, 50, 300)

_DRAWS = 20
_ITEMS_AT_ONCE = 1024


def cosine_real_zero(real: Float[np.ndarray, "n d"], zero: Float[np.ndarray, "m d"]) -> dict[str, float]:
    """Mean and standard deviation over trials of the cosine between unit embeddings of real and of zero betas."""
    cosines = (real * zero).sum(axis=1)
    return {"mean": float(cosines.mean()), "sd": float(cosines.std(ddof=1)), "N": len(cosines)}


@torch.no_grad()
def embeddings(aligner: BrainAligner | None, brain_tokens: Tensor) -> Float[np.ndarray, "n d"]:
    """Unit embeddings in the picture space; without an aligner, the mean brain token as a unit vector."""
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


def image_retrieval(
    embedded: Float[np.ndarray, "n d"],
    nsd_id: Int[np.ndarray, " n"],
    gallery: Float[np.ndarray, "m d"],
    gallery_nsd_id: Int[np.ndarray, " m"],
    *,
    seed: int,
) -> dict[str, Any]:
    """Brain → image retrieval among the pictures of the gallery, with its chance level.

    Parameters
    ----------
    embedded
        Unit brain embeddings in the picture space.
    nsd_id
        Image of each; all are in the gallery.
    seed
        Of the order of ties (a zero input gives every trial the same embedding, not the same similarity: ties are
        among equal pictures only).
    """
    target = _places(nsd_id, gallery_nsd_id)
    return retrieval_row(retrieval(embedded @ gallery.T, target, np.random.default_rng(seed)))


def retrieval_row(score: Retrieval) -> dict[str, Any]:
    """The numbers of a retrieval under their usual names."""
    return {
        "R@1": score.r_at_1,
        "R@5": score.r_at_5,
        "R@10": score.r_at_10,
        "MedR": score.median_rank,
        "N": score.n,
        "n_queries": score.n_queries,
        "low": score.r_at_10_interval.low,
        "high": score.r_at_10_interval.high,
        "chance_R@10": score.chance_r_at_10,
        "chance_MedR": score.chance_median_rank,
    }


def identification(
    ranks: Int[np.ndarray, " n"], nsd_id: Int[np.ndarray, " n"], n_gallery: int, *, seed: int
) -> list[dict[str, float]]:
    """The N-way identification curve: share of N-way choices that are right, with interval and chance."""
    curve = []
    for way in sorted({*(way for way in WAYS if way < n_gallery), n_gallery}):
        chances = identification_chances(ranks, n_gallery, way)
        sums = sum_by_image(np.column_stack([chances, np.ones(len(chances))]), nsd_id.tolist())
        low, high = bootstrap_of_sums(sums, _ratio, seed=seed)
        curve.append(
            {"ways": way, "correct": float(chances.mean()), "low": low, "high": high, "chance": 1 / way}
        )
    return curve


def judge_retrieval(
    held_out: HeldOut,
    embedded: dict[str, Float[np.ndarray, "_ d"]],
    gallery: Float[np.ndarray, "m d"],
    gallery_nsd_id: Int[np.ndarray, " m"],
    *,
    seed: int,
) -> dict[str, Any]:
    """Retrieval under every input, the identification curve, and real − permuted with interval and p.

    Permuted is the mean over 20 exchanges: one says little, as queries that carry nothing crowd around the same few
    pictures.
    """
    target, n_gallery = _places(held_out.nsd_id, gallery_nsd_id), len(gallery)
    rows = {
        name: image_retrieval(queries, held_out.nsd_id, gallery, gallery_nsd_id, seed=seed)
        for name, queries in embedded.items()
    }
    similarity = embedded["real"] @ gallery.T
    real = target_ranks(similarity, target, np.random.default_rng(seed))
    orders = [other_images(held_out, seed=seed + draw).order for draw in range(_DRAWS)]
    drawn = np.concatenate([similarity[order] for order in orders])
    permuted = target_ranks(drawn, np.tile(target, _DRAWS), np.random.default_rng(seed))
    rows["permuted"] = retrieval_row(retrieval(drawn, np.tile(target, _DRAWS), np.random.default_rng(seed)))
    return {
        "retrieval": rows,
        "identification": identification(real, held_out.nsd_id, n_gallery, seed=seed),
        "real - permuted": {
            name: _paired(score(real), score(permuted).reshape(_DRAWS, -1).mean(axis=0), held_out, seed=seed)
            for name, score in {
                "R@10": lambda ranks: (ranks <= 10).astype(float),
                "2-way": lambda ranks: identification_chances(ranks, n_gallery, 2),
            }.items()
        },
    }


def _paired(
    real: Float[np.ndarray, " n"], control: Float[np.ndarray, " n"], held_out: HeldOut, *, seed: int
) -> dict[str, float]:
    ids, ones = held_out.nsd_id.tolist(), np.ones(len(real))
    a, b = (sum_by_image(np.column_stack([values, ones]), ids) for values in (real, control))
    return paired_difference_of_sums(a, b, _ratio, seed=seed)._asdict()


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def _places(nsd_id: Int[np.ndarray, " n"], gallery_nsd_id: Int[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
    place = {int(image): row for row, image in enumerate(gallery_nsd_id)}
    return np.array([place[int(image)] for image in nsd_id])


def nearest_rows(
    queries: Float[np.ndarray, "n d"], candidates: Float[np.ndarray, "m d"]
) -> Int[np.ndarray, " n"]:
    """For each query the candidate with the largest inner product."""
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
    """For each query the first caption of the training image whose brain embedding is nearest."""
    training = select_trials(store, split, "train", averaged=True)
    anatomies = Anatomies.of(store, training.subjects, atlases)
    # a thousand items at a time: the brain tokens of a whole NSD would not fit in memory
    candidates = np.concatenate(
        [embeddings(aligner, brain_tokens_of(encoder, part, anatomies)) for part in _parts(training)]
    )
    return [store.captions[int(training.nsd_id[row])][0] for row in nearest_rows(queries, candidates)]


def _parts(trials: TrialSet) -> Iterator[TrialSet]:
    for start in range(0, len(trials), _ITEMS_AT_ONCE):
        chosen = slice(start, start + _ITEMS_AT_ONCE)
        yield replace(
            trials,
            subject_index=trials.subject_index[chosen],
            rows=trials.rows[chosen],
            nsd_id=trials.nsd_id[chosen],
        )
