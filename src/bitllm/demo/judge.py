"""Judge trained systems on the held-out subject: captions, scores and evidence as files, one folder a system."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.data.targets import Targets
from bitllm.evaluation.bits import evidence, evidence_per_image, word_evidence
from bitllm.evaluation.captions import interval_rows, score_inputs, score_row
from bitllm.evaluation.controls import control_betas
from bitllm.evaluation.diagnostics import (
    cosine_real_zero,
    embeddings,
    image_retrieval,
    nearest_training_captions,
)
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.outcomes import outcomes
from bitllm.evaluation.pairing import other_images
from bitllm.evaluation.scoring.captions_file import write_captions
from bitllm.evaluation.scoring.floors import best_constant_caption, human_ceiling, permuted_captions
from bitllm.evaluation.scoring.score import compare_captions
from bitllm.files import folder_written_whole, write_json
from bitllm.model.aligner import BrainAligner
from bitllm.model.captioner import Captioner

_CONTROLS = ("zero", "shuffle", "noise")
_DRAWS = 20
"""Shuffles and permutations that retrieval under a control is averaged over."""
_OTHERS = 4
"""Other images that a word's probability is compared with."""


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
    gallery_id = np.unique(averaged.nsd_id)
    gallery = targets.image[targets.rows(gallery_id)]

    def embed(held_out: HeldOut, control: str = "real", draw: int = 0) -> np.ndarray:
        betas = None if control == "real" else control_betas(control, held_out, seed=seed + draw).betas
        return embeddings(aligner, held_out.brain_tokens(aligner.encoder, atlases, betas))

    def retrieve(rows: np.ndarray, nsd_id: np.ndarray) -> dict[str, Any]:
        return image_retrieval(rows, nsd_id, gallery, gallery_id, seed=seed)

    real, zero = embed(averaged), embed(averaged, "zero")
    # one draw says little: queries that carry nothing crowd around the same few pictures
    shuffled = np.concatenate([embed(averaged, "shuffle", draw) for draw in range(_DRAWS)])
    orders = [other_images(averaged, seed=seed + draw).order for draw in range(_DRAWS)]
    repeated = np.tile(averaged.nsd_id, _DRAWS)
    retrieval = {
        "real": retrieve(real, averaged.nsd_id),
        "zero": retrieve(zero, averaged.nsd_id),
        "shuffle": retrieve(shuffled, repeated),
        "permuted": retrieve(np.concatenate([real[order] for order in orders]), repeated),
        "single_trial": retrieve(embed(single), single.nsd_id),
    }
    training_references = [store.captions[nsd_id] for nsd_id in sorted(split.train_images)]
    with folder_written_whole(folder, replace=True) as unfinished:
        write_json(
            unfinished / "encoder.json",
            {
                "retrieval": retrieval,
                "cosine_real_zero": cosine_real_zero(real, zero),
                "constant": best_constant_caption(training_references, seed=seed),
                "nearest": nearest_training_captions(
                    aligner.encoder, aligner, store, split, atlases, queries=real
                ),
                "human": human_ceiling(averaged.scorer, seed=seed),
            },
        )


def judge_system(
    system: Captioner,
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
    found = outcomes(
        system,
        averaged,
        seed=seed,
        max_new_tokens=max_new_tokens,
        controls=_CONTROLS,
        likelihood_of=("real", "permuted"),
        progress=progress,
    )
    single_captions = system.greedy(
        single.brain_tokens(system.encoder, system.atlases),
        n=len(single.trials),
        max_new_tokens=max_new_tokens,
        on_batch=lambda done: progress(f"{system.name}: single trials", done, len(single.trials)),
    )
    captions = found.captions | baselines
    scores, differences = score_inputs(averaged, captions, seed=seed)
    log2, images = found.log2_probs, averaged.nsd_id.tolist()
    bits = evidence(log2["real"], log2["permuted"], found.tokens, images, seed=seed)
    said = _words(system, averaged, {name: captions[name] for name in ("real", "permuted")}, seed=seed)
    with folder_written_whole(folder, replace=True) as unfinished:
        write_json(unfinished / "words.json", {"n_other_images": _OTHERS, "captions": said})
        for control, texts in captions.items():
            write_captions(unfinished / f"{control}.jsonl", averaged.records(texts, control=control))
        write_captions(unfinished / "single_trial.jsonl", single.records(single_captions, control="real"))
        write_json(
            unfinished / "scores.json",
            {
                "scores": {control: score_row(row) for control, row in scores.items()},
                "intervals": {control: interval_rows(row) for control, row in scores.items()},
                "differences": differences,
                "bits": bits,
                "bits_per_image": np.round(
                    evidence_per_image(log2["real"], log2["permuted"], found.tokens, len(images)), 3
                ).tolist(),
                "cider_per_image": {
                    control: np.round(row.per_image.cider, 2).tolist() for control, row in scores.items()
                },
                "single_trial": _single_trials(single, single_captions, seed=seed),
                "references_sha256": averaged.scorer.references_sha256,
                "tokenizer": averaged.scorer.tokenizer,
                "versions": scores["real"].versions,
            },
        )


def _words(
    system: Captioner, averaged: HeldOut, captions: dict[str, list[str]], *, seed: int
) -> dict[str, list[list[list[Any]]]]:
    """Word and bits of every caption, all weighed by the betas of the image itself against those of others."""
    real = averaged.brain_tokens(system.encoder, system.atlases)
    orders = [other_images(averaged, seed=seed + 1 + draw).order for draw in range(_OTHERS)]
    others = [real[order.tolist()] for order in orders]
    return {
        name: [
            [[word.word, round(word.bits, 2)] for word in row]
            for row in word_evidence(system, texts, real, others)
        ]
        for name, texts in captions.items()
    }


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
