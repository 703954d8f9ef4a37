"""Encoder diagnostics: does the embedding depend on the betas, and does it hold the image?

References
----------
The poster, "Encoder diagnostics": cosine similarity of real and all-zero input; brain → image retrieval.
"""

import numpy as np
from jaxtyping import Float, Int

from bitllm.metrics.retrieval import Retrieval, retrieval


def cosine_real_zero(real: Float[np.ndarray, "n d"], zero: Float[np.ndarray, "n d"]) -> dict[str, float]:
    """Mean and standard deviation over trials of the cosine between unit embeddings of real and of zero betas."""
    cosines = (real * zero).sum(axis=1)
    return {"mean": float(cosines.mean()), "sd": float(cosines.std(ddof=1)), "N": len(cosines)}


def image_retrieval(
    embeddings: Float[np.ndarray, "n d"],
    nsd_id: Int[np.ndarray, " n"],
    gallery: Float[np.ndarray, "m d"],
    gallery_nsd_id: Int[np.ndarray, " m"],
    *,
    seed: int,
) -> dict[str, float]:
    """Brain → image retrieval among the pictures of the gallery, with its chance level.

    Parameters
    ----------
    embeddings
        Unit brain embeddings in the picture space.
    nsd_id
        Image of each; all are in the gallery.
    seed
        Of the order of ties (a zero input gives every trial the same embedding, not the same similarity: ties are
        among equal pictures only).
    """
    place = {int(image): row for row, image in enumerate(gallery_nsd_id)}
    target = np.array([place[int(image)] for image in nsd_id])
    return retrieval_row(retrieval(embeddings @ gallery.T, target, np.random.default_rng(seed)))


def retrieval_row(score: Retrieval) -> dict[str, float]:
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


def nearest_rows(
    queries: Float[np.ndarray, "n d"], candidates: Float[np.ndarray, "m d"]
) -> Int[np.ndarray, " n"]:
    """For each query the candidate with the largest inner product."""
    return np.argmax(queries @ candidates.T, axis=1)
