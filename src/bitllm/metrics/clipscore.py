"""CLIPScore and RefCLIPScore from the embeddings of any CLIP."""

import numpy as np
from jaxtyping import Float

from bitllm.errors import DataError

_WEIGHT = 2.5  # w of Hessel et al. (2021), which stretches the usual range of cosines to about 0 to 1


def clip_score(
    image_embeddings: Float[np.ndarray, "n d"], caption_embeddings: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """CLIPScore of each caption for its image in points: 2.5 · max(cosine, 0) · 100.

    Parameters
    ----------
    image_embeddings, caption_embeddings
        Projected embeddings of the same CLIP, row by row; they need not have unit length.

    References
    ----------
    Hessel et al. (2021), "CLIPScore: a reference-free evaluation metric for image captioning", EMNLP, eq. 1.
    """
    cosines = (_unit(image_embeddings) * _unit(caption_embeddings)).sum(axis=1)
    return 100 * _WEIGHT * np.maximum(cosines, 0)


def ref_clip_score(
    image_embeddings: Float[np.ndarray, "n d"],
    caption_embeddings: Float[np.ndarray, "n d"],
    reference_embeddings: list[Float[np.ndarray, "_ d"]],
) -> Float[np.ndarray, " n"]:
    """RefCLIPScore in points: harmonic mean of CLIPScore and the best cosine (at least 0) with a reference.

    As in the paper, only the image's part has the factor 2.5.

    References
    ----------
    Hessel et al. (2021), section 3.
    """
    n = len(caption_embeddings)
    if len(reference_embeddings) != n or any(len(rows) == 0 for rows in reference_embeddings):
        raise DataError(
            f"reference embeddings: expected {n} sets of at least one, found {len(reference_embeddings)}, "
            f"{sum(len(rows) == 0 for rows in reference_embeddings)} of them empty; embed all references"
        )
    captions = _unit(caption_embeddings)
    best = [
        float((_unit(rows) @ row).max()) for row, rows in zip(captions, reference_embeddings, strict=True)
    ]
    with_references = 100 * np.maximum(np.array(best), 0)
    with_image = clip_score(image_embeddings, caption_embeddings)
    total = with_image + with_references
    return np.divide(2 * with_image * with_references, total, out=np.zeros(n), where=total > 0)


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
