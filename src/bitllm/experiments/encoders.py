"""Diagnostics of an encoder without an LLM: retrieval of the image and similarity to zero betas, for each image.

An encoder without the align stage has no embedding in CLIP's space, so its retrieval would be at chance by
construction. Therefore every encoder also gets a linear head: a ridge regression from the mean brain token to the
CLIP embedding of the image, fitted on averaged trials of the training subjects, with the penalty that gives the best
retrieval of validation images.

References
----------
The poster, "Encoder diagnostics".
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.store import Store
from bitllm.data.targets import ClipEmbedder
from bitllm.evaluation.controls import control_betas
from bitllm.evaluation.diagnostics import embeddings, nearest_training_captions
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.pairing import other_images
from bitllm.experiments.verdict import RETRIEVED
from bitllm.metrics.objects import categories_by_image, object_scores, object_vocabulary
from bitllm.metrics.retrieval import target_ranks
from bitllm.model.embed import brain_tokens_of
from bitllm.model.encoder import BrainEncoder
from bitllm.pipeline.run import Run

_PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
_DRAWS = 20
"""Number of random draws of a control, which are averaged."""


class LinearHead(NamedTuple):
    """A ridge regression from centered mean brain tokens to centered embeddings."""

    mean: Float[np.ndarray, " width"]
    weight: Float[np.ndarray, "width d"]
    offset: Float[np.ndarray, " d"]

    def __call__(self, pooled: Float[np.ndarray, "n width"]) -> Float[np.ndarray, "n d"]:
        """Embeddings as unit vectors."""
        found = (pooled - self.mean) @ self.weight + self.offset
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def fit_head(
    pooled: Float[np.ndarray, "n width"], embedded: Float[np.ndarray, "n d"], penalty: float
) -> LinearHead:
    """The ridge regression for a penalty, in units of the mean variance of the inputs."""
    mean, offset = pooled.mean(axis=0), embedded.mean(axis=0)
    x, y = pooled - mean, embedded - offset
    gram = x.T @ x
    scale = np.trace(gram) / len(gram) / len(x) or 1.0
    weight = np.linalg.solve(gram + penalty * scale * np.eye(len(gram)), x.T @ y)
    return LinearHead(mean, weight, offset)


def recall_at_10(
    queries: Float[np.ndarray, "n d"], gallery: Float[np.ndarray, "m d"], target: np.ndarray, *, seed: int
) -> Float[np.ndarray, " n"]:
    """1 if a query's own image is among the first ten of the gallery, else 0; ties are broken at random."""
    ranks = target_ranks(queries @ gallery.T, target, np.random.default_rng(seed))
    return (ranks <= 10).astype(np.float64)


def pooled_tokens(encoder: BrainEncoder, trials: TrialSet, atlases: tuple[str, ...]) -> np.ndarray:
    """The mean brain token of every trial, ``[n, width]``."""
    anatomies = Anatomies.of(trials.store, trials.subjects, atlases)
    return np.asarray(brain_tokens_of(encoder, trials, anatomies).mean(dim=1).cpu().numpy(), dtype=np.float64)


def best_head(run: Run, encoder: BrainEncoder, *, seed: int) -> LinearHead:
    """The linear head fitted on training trials, with the penalty that best retrieves validation images."""
    targets, atlases = run.targets, run.recipe.encoder.atlases
    fit, choose = (
        select_trials(run.store, run.split, part, averaged=True) for part in ("train", "validation")
    )
    x, y = pooled_tokens(encoder, fit, atlases), targets.image[targets.rows(fit.nsd_id)].astype(np.float64)
    queries = pooled_tokens(encoder, choose, atlases)
    images, target = np.unique(choose.nsd_id, return_inverse=True)
    gallery = targets.image[targets.rows(images)]
    heads = [fit_head(x, y, penalty) for penalty in _PENALTIES]
    scores = [recall_at_10(head(queries), gallery, target, seed=seed).mean() for head in heads]
    return heads[int(np.argmax(scores))]


def encoder_rows(
    run: Run, encoder: BrainEncoder, held_out: HeldOut, *, is_aligned: bool, seed: int
) -> pd.DataFrame:
    """Measures of an encoder for each image, with real, permuted, zero and shuffled betas.

    ``recall_at_10`` uses the head of the align stage if there is one, else the linear head; ``recall_at_10_linear``
    always uses the linear head (both 0 to 1, averaged over draws of a control). ``cosine_zero`` is the cosine of the
    mean brain tokens of real and of zero betas, ``cosine_zero_embedding`` that of the embeddings of the align stage.
    """
    atlases, targets = run.recipe.encoder.atlases, run.targets
    images, target = np.unique(held_out.nsd_id, return_inverse=True)
    gallery = targets.image[targets.rows(images)]
    linear = best_head(run, encoder, seed=seed)
    aligner = run.aligner if is_aligned else None
    parts, zero = [], held_out.brain_tokens(encoder, atlases, np.zeros_like(held_out.betas[:1]))
    for control in RETRIEVED:
        own, by_linear = [], []
        for draw in range(1 if control in ("real", "zero") else _DRAWS):
            tokens = _tokens(held_out, encoder, atlases, control, seed=seed + draw)
            pooled = tokens.mean(dim=1).cpu().numpy().astype(np.float64)
            by_linear.append(recall_at_10(linear(pooled), gallery, target, seed=draw))
            if aligner is not None:
                own.append(recall_at_10(embeddings(aligner, tokens), gallery, target, seed=draw))
        part = pd.DataFrame({"control": control, "nsd_id": held_out.nsd_id})
        part["recall_at_10"] = np.mean(own or by_linear, axis=0)
        part["recall_at_10_linear"] = np.mean(by_linear, axis=0)
        if control == "real":
            real = held_out.brain_tokens(encoder, atlases)
            part["cosine_zero"] = (embeddings(None, real) * embeddings(None, zero)).sum(axis=1)
            if aligner is not None:
                cosine = (embeddings(aligner, real) * embeddings(aligner, zero)).sum(axis=1)
                part["cosine_zero_embedding"] = cosine
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _tokens(
    held_out: HeldOut, encoder: BrainEncoder, atlases: tuple[str, ...], control: str, *, seed: int
) -> Float[Tensor, "n N width"]:
    if control == "permuted":
        order = other_images(held_out, seed=seed).order
        return held_out.brain_tokens(encoder, atlases, held_out.betas[order])
    betas = None if control == "real" else control_betas(control, held_out, seed=seed).betas
    return held_out.brain_tokens(encoder, atlases, betas)


def nearest_captions(run: Run, held_out: HeldOut) -> list[str]:
    """For each image, the caption of the training image with the nearest brain embedding."""
    encoder, atlases = run.aligner.encoder, run.recipe.encoder.atlases
    queries = embeddings(run.aligner, held_out.brain_tokens(encoder, atlases))
    return nearest_training_captions(encoder, run.aligner, run.store, run.split, atlases, queries=queries)


def with_caption_measures(rows: pd.DataFrame, store: Store, clip: ClipEmbedder, *, seed: int) -> pd.DataFrame:
    """Add ``object_f1`` and ``caption_recall_at_10`` of each caption: does it fit its image, by other models?

    The latter is 1 if the image is among the first ten of all images of ``rows`` by the CLIP's cosine to the caption.
    """
    captions, nsd_id = rows["caption"].tolist(), rows["nsd_id"].to_numpy()
    shown = categories_by_image(store)
    found = object_scores(captions, [shown[image] for image in nsd_id.tolist()], object_vocabulary(store))
    images, target = np.unique(nsd_id, return_inverse=True)
    recall = recall_at_10(clip.captions(captions), clip.pictures(store.pictures(images)), target, seed=seed)
    return rows.assign(object_f1=found.f1, caption_recall_at_10=recall)
