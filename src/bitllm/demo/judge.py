"""Judge trained systems on the held-out subject: captions, scores and evidence as files, one folder a system."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.data.targets import Targets
from bitllm.evaluation.grounding.controls import BETAS_CONTROLS, control_betas
from bitllm.evaluation.grounding.diagnostics import cosine_real_zero, image_retrieval, nearest_rows
from bitllm.evaluation.grounding.ground import HeldOut, control_tokens, ground, interval_rows, score_row
from bitllm.evaluation.grounding.system import System
from bitllm.evaluation.scoring.captions_file import write_captions
from bitllm.evaluation.scoring.floors import best_constant_caption, human_ceiling, permuted_captions
from bitllm.evaluation.scoring.score import compare_captions
from bitllm.files import folder_written_whole, write_json
from bitllm.model.aligner import BrainAligner
from bitllm.stages.align import brain_embeddings
from bitllm.training.decode import greedy_captions
from bitllm.training.embed import brain_tokens_of, brain_tokens_of_betas

_DRAWS = 20
"""Shuffles and permutations that retrieval under a control is averaged over."""


def judge_encoder(  # noqa: PLR0913 - what is judged, and on what
    store: Store,
    split: Split,
    targets: Targets,
    aligner: BrainAligner,
    atlases: tuple[str, ...],
    folder: Path,
    *,
    averaged: HeldOut,
    single: HeldOut,
    seed: int,
) -> None:
    """Retrieval and cosine of the encoder, and the captions that need no LLM, as ``encoder.json``."""
    anatomies = Anatomies.of(store, [averaged.subject], atlases)
    gallery_id = np.unique(averaged.nsd_id)
    gallery = targets.image[targets.rows(gallery_id)]

    def embed(held_out: HeldOut, control: str, draw: int = 0) -> np.ndarray:
        betas = held_out.betas
        if control != "real":
            betas = control_betas(control, betas, held_out.nsd_id, seed=seed + draw)
        return brain_embeddings(
            aligner, brain_tokens_of_betas(aligner.encoder, list(betas), averaged.subject, anatomies)
        )

    def retrieve(embeddings: np.ndarray, nsd_id: np.ndarray) -> dict[str, float]:
        return image_retrieval(embeddings, nsd_id, gallery, gallery_id, seed=seed)

    embedded = {control: embed(averaged, control) for control in ("real", "zero")}
    retrieval = {control: retrieve(rows, averaged.nsd_id) for control, rows in embedded.items()}
    for control in ("shuffle", "permuted"):
        # one draw says little: queries that carry nothing crowd around the same few pictures
        draws = np.concatenate([embed(averaged, control, draw) for draw in range(_DRAWS)])
        retrieval[control] = retrieve(draws, np.tile(averaged.nsd_id, _DRAWS))
    retrieval["single_trial"] = retrieve(embed(single, "real"), single.nsd_id)
    training_references = [store.captions[nsd_id] for nsd_id in sorted(split.train_images)]
    with folder_written_whole(folder, replace=True) as unfinished:
        write_json(
            unfinished / "encoder.json",
            {
                "retrieval": retrieval,
                "cosine_real_zero": cosine_real_zero(embedded["real"], embedded["zero"]),
                "constant": best_constant_caption(training_references, seed=seed),
                "nearest": _nearest_captions(store, split, aligner, atlases, embedded["real"]),
                "human": human_ceiling(averaged.scorer),
            },
        )


def _nearest_captions(
    store: Store, split: Split, aligner: BrainAligner, atlases: tuple[str, ...], embeddings: np.ndarray
) -> list[str]:
    """For each test image the first caption of the training image whose brain embedding is nearest."""
    training = select_trials(store, split, "train", averaged=True)
    anatomies = Anatomies.of(store, training.subjects, atlases)
    candidates = brain_embeddings(aligner, brain_tokens_of(aligner.encoder, training, anatomies))
    return [store.captions[int(training.nsd_id[row])][0] for row in nearest_rows(embeddings, candidates)]


def judge_system(
    system: System,
    folder: Path,
    *,
    averaged: HeldOut,
    single: HeldOut,
    baselines: dict[str, list[str]],
    max_new_tokens: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Captions under every control and ``scores.json`` of one system."""
    n_inputs = len(BETAS_CONTROLS) + 2
    done: list[str] = []

    def on_decoded(control: str) -> None:
        done.append(control)
        progress(f"judge {system.name}: {control}", len(done), n_inputs)

    grounding = ground(
        system, averaged, baselines=baselines, seed=seed, max_new_tokens=max_new_tokens, on_decoded=on_decoded
    )
    single_captions = greedy_captions(
        system.model,
        system.prompter,
        control_tokens(system, single, "real", seed=seed),
        max_new_tokens=max_new_tokens,
    )
    on_decoded("single trials")
    with folder_written_whole(folder, replace=True) as unfinished:
        for control, captions in grounding.captions.items():
            write_captions(unfinished / f"{control}.jsonl", averaged.records(captions, control=control))
        write_captions(unfinished / "single_trial.jsonl", single.records(single_captions, control="real"))
        write_json(
            unfinished / "scores.json",
            {
                "scores": {control: score_row(scores) for control, scores in grounding.scores.items()},
                "intervals": {control: interval_rows(scores) for control, scores in grounding.scores.items()},
                "differences": grounding.differences,
                "bits": grounding.bits,
                "bits_per_image": [round(float(bits), 3) for bits in grounding.bits_per_image],
                "cider_per_image": {
                    control: [round(float(value), 2) for value in grounding.scores[control].per_image.cider]
                    for control in grounding.scores
                },
                "single_trial": _single_trials(single, single_captions, seed=seed),
                "references_sha256": averaged.scorer.references_sha256,
                "tokenizer": averaged.scorer.tokenizer,
                "versions": grounding.scores["real"].versions,
            },
        )


def _single_trials(single: HeldOut, captions: list[str], *, seed: int) -> dict[str, Any]:
    """Scores of single trials with their own control: the same captions dealt to other images."""
    real = single.scorer.score(captions, seed=seed)
    dealt = permuted_captions(captions, single.nsd_id.tolist(), n_permutations=1, seed=seed)[0]
    permuted = single.scorer.score(dealt, seed=seed)
    return {
        **score_row(real),
        "n_trials": len(captions),
        "n_images": real.n_images,
        "permuted": score_row(permuted),
        "intervals": interval_rows(real),
        "real - permuted": {
            name: difference._asdict()
            for name, difference in compare_captions(real, permuted, seed=seed).items()
        },
    }
