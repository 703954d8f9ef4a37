"""The table of a run of folds: the answers of every fold together, scored against all references at once.

CIDEr's word weights come from the references of all folds, so a score here is not the mean of the folds' scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from bitllm.errors import DataError
from bitllm.evaluation.categories import category_task
from bitllm.evaluation.results import About, Results, from_json, to_json
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer
from bitllm.evaluation.scoring.floors import human_ceiling
from bitllm.evaluation.table import (
    ABOUT,
    CAPTION,
    ENCODER,
    Evaluation,
    read_evaluation,
    results_of,
    write_evaluation,
)
from bitllm.files import sha256_of_json, write_json
from bitllm.pipeline.run import Run

DESIGN = "same subject, unseen blocks"
_JOINED = ("references", "similarity", "categories")


def pool_folds(run: Run, folds: Sequence[Run], results_name: str, *, seconds: Mapping[str, float]) -> Results:
    """Write the table, ``evaluation.json`` and the results of all evaluated folds into the folder of their run.

    Parameters
    ----------
    run
        The run of folds.
    folds
        Its folds, all evaluated with the same inputs.
    results_name
        Name of the file of results.
    seconds
        Seconds of the steps that the folds share.

    Raises
    ------
    DataError
        If folds were evaluated with different inputs.
    """
    found = [read_evaluation(fold.folder) for fold in folds]
    pooled = pooled_evaluation(found)
    about = pooled.about["about"]
    about["seconds"] = {**seconds, **about["seconds"]}
    if pooled.about["categories"]:
        task = category_task(
            run.store,
            [fold.split for fold in folds],
            pooled.about["categories"],
            seed=int(about["seed"]),
        )
        pooled.about["category_task"] = to_json(task)
    results = results_of(pooled, str(run.folder / ABOUT))
    write_evaluation(run.folder, pooled)
    write_json(run.folder / results_name, to_json(results))
    return results


def pooled_evaluation(found: Sequence[Evaluation]) -> Evaluation:
    """The rows of all folds, scored again together, and the entries of ``evaluation.json`` that join."""
    _require_same_inputs(found)
    joined: dict[str, Any] = {
        key: {name: value for one in found for name, value in one.about.get(key, {}).items()}
        for key in _JOINED
    }
    rows, scorer = _scored(found, joined["references"])
    about = [from_json(About, one.about["about"], ABOUT) for one in found]
    nsd_ids = rows.loc[rows["input"] == "real", "nsd_id"].unique()
    human: dict[str, Any] = {}
    if min(len(texts) for texts in joined["references"].values()) > 1:
        human = human_ceiling(scorer)
    drawn = human.pop("drawn", None)
    first = found[0].about
    return Evaluation(
        rows,
        {
            "version": first["version"],
            "about": to_json(_joint_about(about, scorer, len(nsd_ids), drawn)),
            "n_trainable": first.get("n_trainable", {}),
            "comparisons": first.get("comparisons", []),
            "embedding": first["embedding"],
            "n_pictures": int(sum(one.about["n_pictures"] for one in found)),
            "human": human,
            "groups": _groups(joined["categories"]),
            "words": _joined_words(found),
            "tasks": first.get("tasks", {}),
            **joined,
        },
    )


def _groups(categories: Mapping[str, str]) -> list[dict[str, Any]]:
    """The images of each category as a group."""
    return [
        {
            "kind": "category",
            "name": name,
            "nsd_ids": [int(n) for n, own in categories.items() if own == name],
        }
        for name in sorted(set(categories.values()))
    ]


def _require_same_inputs(found: Sequence[Evaluation]) -> None:
    inputs = [
        set(map(tuple, one.rows[["system", "trials", "input"]].drop_duplicates().to_numpy())) for one in found
    ]
    for number, one in enumerate(inputs, start=1):
        if one != inputs[0]:
            system, trials, name = min(one ^ inputs[0])
            raise DataError(
                f"fold {number}: expected the systems and inputs of fold 1, found a difference in {system}, {trials} "
                f"{name}; evaluate all folds with the same options"
            )


def _scored(
    found: Sequence[Evaluation], references: dict[str, list[str]]
) -> tuple[pd.DataFrame, CaptionScorer]:
    """The rows with numbers from a scorer of all references, and that scorer (of averaged trials)."""
    parts, start = [], 0
    for one in found:
        parts.append(one.rows.assign(row=one.rows["row"] + start))
        start += int(one.rows["row"].max()) + 1
    rows = pd.concat(parts, ignore_index=True).sort_values(
        ["trials", "row"], kind="stable", ignore_index=True
    )
    scorers: dict[str, CaptionScorer] = {}
    captions = rows[(rows["system"] != ENCODER) & (rows["task"] == CAPTION)]
    for (_, trials, _), part in captions.groupby(["system", "trials", "input"], sort=False):
        ids = part["nsd_id"].tolist()
        if trials not in scorers:
            scorers[str(trials)] = CaptionScorer([references[str(image)] for image in ids], image_ids=ids)
        scorer = scorers[str(trials)]
        numbers = scorer.per_caption(part["answer"].tolist())
        rows.loc[part.index, "cider"] = numbers.cider
        rows.loc[part.index, "rouge_l"] = numbers.rouge_l
        rows.loc[part.index, "bleu_counts"] = pd.Series(numbers.bleu_counts.tolist(), index=part.index)
    return rows, scorers["averaged"]


def _joint_about(about: Sequence[About], scorer: CaptionScorer, n_images: int, drawn: str | None) -> About:
    first, n = about[0], len(about)
    seconds: dict[str, float] = {}
    for one in about:
        for name, value in one.seconds.items():
            seconds[name] = round(seconds.get(name, 0.0) + value, 1)
    return replace(
        first,
        split=f"{first.split.rpartition(' 1 of ')[0] or first.split}, {n} folds",
        split_sha256=sha256_of_json([one.split_sha256 for one in about]),
        n_images=n_images,
        n_trials=sum(one.n_trials for one in about),
        references_sha256=scorer.references_sha256,
        design=f"{DESIGN}: {n} models, each tested on the one run that it was not trained on",
        constant_caption="",
        controls={},
        seconds=seconds,
        peak_memory_gb=max((one.peak_memory_gb or 0.0 for one in about), default=None),
        notes=(
            *(() if drawn is None else (f"human: {drawn}",)),
            "intervals are over images; those of one fold have the same model, which the intervals do not reflect",
        ),
    )


def _joined_words(found: Sequence[Evaluation]) -> dict[str, dict[str, list[Any]]]:
    """Bits of each decoded word, in the order of the rows of all folds."""
    words: dict[str, dict[str, list[Any]]] = {}
    for one in found:
        for system, by_input in one.about.get("words", {}).items():
            for name, rows in by_input.items():
                words.setdefault(system, {}).setdefault(name, []).extend(rows)
    return words
