"""Ground a run: the held-out subject under real betas and every control, all of it scored, as one record.

    captions × controls   bits × controls   encoder   by repetitions, category, likeness to training images   → verdict

Each control answers "how much of the score comes from the brain?": a score is never given without them.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np

from bitllm.evaluation.bits import evidence
from bitllm.evaluation.captions import caption_rows, score_inputs, verdict
from bitllm.evaluation.diagnostics import (
    cosine_real_zero,
    embeddings,
    judge_retrieval,
    nearest_training_captions,
)
from bitllm.evaluation.groups import Strata
from bitllm.evaluation.held_out import HeldOut, read_held_out
from bitllm.evaluation.outcomes import Outcomes, outcomes
from bitllm.evaluation.runs import GroundedRun
from bitllm.evaluation.scoring.caption_scorer import CaptionScores
from bitllm.evaluation.scoring.floors import best_constant_caption, human_ceiling
from bitllm.evaluation.words import WordCategories
from bitllm.model.precision import name_of

GROUNDING_VERSION = 1

Progress = Callable[[str, int, int], None]


def ground(
    run: GroundedRun,
    held_out: HeldOut,
    *,
    seed: int,
    max_new_tokens: int,
    categories: WordCategories | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Outcomes]:
    """Everything but ROIs: the content of ``grounding.json``, and what it was computed from.

    Parameters
    ----------
    run
        What is judged.
    held_out
        On whom: trials averaged over repetitions (`read_held_out`); single trials are read here.
    seed
        Of shuffles, exchanges, noise and the bootstrap.
    max_new_tokens
        Longest caption, in tokens.
    categories
        Words by category, for the groups of images.
    progress
        Called as ``progress(what, done, total)``.
    """
    system, store = run.system, held_out.store

    def embed(brain_tokens: Any) -> np.ndarray:
        return embeddings(run.aligner, brain_tokens)

    found = outcomes(
        system, held_out, seed=seed, max_new_tokens=max_new_tokens, embed=embed, progress=progress
    )
    single = read_held_out(store, run.split, averaged=False, part=held_out.part, subject=held_out.subject)
    single_found = outcomes(
        system, single, seed=seed, max_new_tokens=max_new_tokens, controls=(), embed=embed, progress=progress
    )
    constant = best_constant_caption([store.captions[nsd_id] for nsd_id in sorted(run.split.train_images)])
    baselines = {
        "constant": [constant] * len(held_out.trials),
        "nearest": nearest_training_captions(
            system.encoder, run.aligner, store, run.split, system.atlases, queries=found.embeddings["real"]
        ),
    }
    scores, captions = _captions(found, baselines, seed=seed)
    _, single_captions = _captions(single_found, {}, seed=seed)
    bits, single_bits = _bits(found, seed=seed), _bits(single_found, seed=seed)
    decision = verdict(
        found.captions["real"],
        captions["permuted"]["real - control"]["CIDEr"],
        bits["permuted"]["per_word"],
    )
    not_run = run.not_run | found.not_run
    content = {
        "version": GROUNDING_VERSION,
        "about": _about(run, held_out, scores["real"], n_trials=len(single.trials), seed=seed)
        | {"max_new_tokens": max_new_tokens, "constant_caption": constant},
        "verdict": decision._asdict(),
        "captions": {
            "averaged": captions,
            "single": single_captions,
            "human": human_ceiling(held_out.scorer, seed=seed) if _has_two_references(held_out) else None,
        },
        "bits": {"averaged": bits, "single": single_bits},
        "encoder": _encoder(run, found, single_found, seed=seed),
        "groups": _groups(run, found, scores, categories, not_run, seed=seed),
        "controls": found.about,
        "not_run": not_run,
    }
    return content, found


def _captions(
    found: Outcomes, baselines: dict[str, list[str]], *, seed: int
) -> tuple[dict[str, CaptionScores], dict[str, dict[str, Any]]]:
    captions = found.captions | baselines
    scores, differences = score_inputs(found.held_out, captions, seed=seed)
    return scores, caption_rows(captions, scores, differences)


def _bits(found: Outcomes, *, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    images = found.held_out.nsd_id.tolist()
    return {
        name: evidence(found.log2_probs["real"], log2, found.tokens, images, seed=seed)
        for name, log2 in found.log2_probs.items()
        if name != "real"
    }


def _encoder(run: GroundedRun, found: Outcomes, single: Outcomes, *, seed: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "embedding": "mean brain token" if run.aligner is None else "picture space of the align stage",
        "cosine_real_zero": cosine_real_zero(found.embeddings["real"], found.embeddings["zero"]),
    }
    if run.aligner is None or run.targets is None:
        return content
    gallery_id = np.unique(found.held_out.nsd_id)
    gallery = run.targets.image[run.targets.rows(gallery_id)]
    for name, judged in (("averaged", found), ("single", single)):
        content[name] = judge_retrieval(judged.held_out, judged.embeddings, gallery, gallery_id, seed=seed)
    return content


def _groups(
    run: GroundedRun,
    found: Outcomes,
    scores: dict[str, CaptionScores],
    categories: WordCategories | None,
    not_run: dict[str, str],
    *,
    seed: int,
) -> dict[str, Any]:
    strata = Strata(found, scores, seed=seed)
    groups: dict[str, Any] = {"repetitions": strata.by_repetitions()}
    if categories is None:
        not_run["category"] = "no words by category for this store; give a list with --words"
    else:
        groups["category"] = strata.by_category(categories)
    if not run.is_own_store:
        not_run["similarity_to_training"] = "judged on another store than it was trained on"
    elif run.targets is not None:
        test = run.targets.image[run.targets.rows(found.held_out.nsd_id)]
        training = run.targets.image[run.targets.rows(np.array(sorted(run.split.train_images)))]
        groups["similarity_to_training"] = strata.by_similarity((test @ training.T).max(axis=1))
    return groups


def _about(
    run: GroundedRun, held_out: HeldOut, scores: CaptionScores, *, n_trials: int, seed: int
) -> dict[str, Any]:
    return {
        "run": run.folder.name,
        "llm": run.llm,
        "precision": name_of(run.system.model.lm_head.weight.dtype),
        "data": held_out.store.manifest.source,
        "store_sha256": held_out.store.sha256,
        "normalisation": held_out.store.manifest.normalization,
        "is_store_of_training": run.is_own_store,
        "subject": held_out.subject,
        "subject_is_trained_on": run.was_trained_on(held_out.subject),
        "part": held_out.part,
        "split": run.split.name,
        "split_sha256": run.split.sha256,
        "n_images": len(np.unique(held_out.nsd_id)),
        "n_trials": n_trials,
        "atlases": list(run.system.atlases),
        "seed": seed,
        "references_sha256": scores.references_sha256,
        "tokenizer": scores.tokenizer,
        "versions": scores.versions | {"torch": importlib.metadata.version("torch")},
    }


def _has_two_references(held_out: HeldOut) -> bool:
    return min(len(group) for group in held_out.references) > 1
