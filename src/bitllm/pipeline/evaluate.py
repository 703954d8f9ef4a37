"""Evaluate a run: `bitllm evaluate`, and the last step of `bitllm demo`.

PLACE/  evaluation.parquet  evaluation.json  results.json   see `bitllm.evaluation.table` and `.results`
        captions/SYSTEM.jsonl                               captions from the real betas, for `bitllm score`
        evaluation_maps.npz                                 pooling weights of each voxel, for the report
        evaluation/                                         the finished parts, reused by the next evaluation
"""

import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bitllm.config import LARGEST_SEED, LONGEST_CAPTION, require_number
from bitllm.data.store import Store, open_store
from bitllm.errors import ConfigError, DataError
from bitllm.evaluation.evaluate import ENCODER_PART, REGIONS_PART, Evaluator, Progress, questions_part
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.options import EvaluateOptions
from bitllm.evaluation.pooling import pooling_maps, write_maps
from bitllm.evaluation.results import About, Results, to_json
from bitllm.evaluation.rois import find_rois
from bitllm.evaluation.runs import Checkpoints, card_of, checkpoint_folder, open_checkpoints, system_names
from bitllm.evaluation.scoring.captions_file import write_captions
from bitllm.evaluation.table import ABOUT, CAPTION, ENCODER, Evaluation, results_of, write_evaluation
from bitllm.evaluation.words import word_categories
from bitllm.files import parse_json, read_json, require_empty, write_json
from bitllm.pipeline.folds import DESIGN, pool_folds
from bitllm.pipeline.recipe import MOST_QUESTIONS, PACKAGED, EvaluationConfig, read_recipe
from bitllm.pipeline.run import RECIPE, Run
from bitllm.pipeline.steps import Steps, Unit
from bitllm.stages.workspace import git_revision

RESULTS = "results.json"

_PACKAGES = ("bitllm", "torch", "transformers", "peft", "accelerate", "numpy")
_CHOICES = (
    "Sizes, learning rates and reward weights were chosen on subj07 with validation images (trained on "
    "subj01–06), on other simulator seeds; subj08 and the test images were sealed while fitting."
)
_CHOICES_OF_HAXBY = (
    "Sizes, steps and rates were chosen on runs 1 to 4 of the one-slice copy of Haxby et al. (each held out in turn): "
    "numbers of these runs are optimistic. No result of runs 5 to 12 was used for a choice."
)
_OF_ONE_RUN = ("out", "maps", "rois", "subject", "split", "judge_on", "align", "targets")
_NOT_SHAPING = ("systems", "out", "maps", "llm", "split", "align", "targets", "tasks", "questions_per_task")
"""Options with paths, of which the step's settings contain the checksums of their contents instead; and those of the
questions, which shape only their own step."""


def evaluate(
    run: Run | Path | str,
    store: Path | str | None = None,
    options: EvaluateOptions = EvaluateOptions(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Results:
    """Evaluate the systems of a run on held-out trials, under the real betas and every control.

    Writes ``evaluation.parquet``, ``evaluation.json``, ``results.json`` and the captions. Finished parts of an
    earlier evaluation with the same settings are reused.

    Parameters
    ----------
    run
        A run, its folder, or the folder of one checkpoint of sft or rft.
    store
        The store to evaluate on; by default that of the run.
    options
        What to evaluate, and with which settings.
    progress
        Called as ``progress(what, done, total)``.
    log
        Called with one line for each finished step.

    Raises
    ------
    BitLlmError
        If run, store, split, subject, region or word list are missing or do not fit each other.
    """
    opened = _open_run(run)
    if opened is not None and opened.recipe.is_of_folds:
        return _evaluate_folds(opened, store, options, progress, log)
    folder = opened.folder if opened is not None else Path(run)  # type: ignore[arg-type]
    evaluator, place = _evaluator(opened, folder, store, options, progress)
    steps, parts = _make_parts(evaluator, place, log)
    found = evaluator.assemble(parts)
    found = Evaluation(found.rows, found.about | _rest_of(evaluator, opened, steps, found.about))
    results = results_of(found, str(place / ABOUT))
    write_evaluation(place, found)
    _write_captions(place, evaluator.averaged, found)
    checkpoints = evaluator.checkpoints
    write_maps(place, pooling_maps(checkpoints.encoder, checkpoints.store, checkpoints.atlases))
    write_json(place / RESULTS, to_json(results))
    return results


def evaluate_parts(
    run: Run, options: EvaluateOptions, *, progress: Progress | None, log: Callable[[str], None]
) -> None:
    """Make the parts that `evaluate` then finds, all that no other process makes; returns when all are made."""
    evaluator, place = _evaluator(run, run.folder, None, options, progress)
    _make_parts(evaluator, place, log)


def _evaluator(
    opened: Run | None,
    folder: Path,
    store: Path | str | None,
    options: EvaluateOptions,
    progress: Progress | None,
) -> tuple[Evaluator, Path]:
    """The evaluator, and the folder of the results."""
    options = _complete(options, opened)
    data = _store_of(opened, store, folder)
    if options.maps is not None:
        require_empty(options.maps)
    categories = word_categories(data, options.words)
    checkpoints = open_checkpoints(_folders(opened, folder, options), data, options)
    if options.transport and not checkpoints.is_own_store:
        if opened is None:
            raise DataError(
                f"{folder}: expected a run with the store of its training for --transport, found a checkpoint alone; "
                "name the run, or evaluate with --transport False"
            )
        checkpoints = replace(checkpoints, training=(opened.store, opened.split))
    evaluator = Evaluator.of(checkpoints, options, categories, [], progress)
    wanted = [] if options.rois is None else options.rois.split(",")
    evaluator = replace(evaluator, rois=find_rois(data, evaluator.averaged.subject, wanted))
    for name in checkpoints.folders:
        evaluator.questions_to(name)  # refuses tasks without questions before any work
    _ = evaluator.own_trials  # refuses too few trials
    place = options.out or folder / place_name(evaluator.averaged, is_own_store=checkpoints.is_own_store)
    return evaluator, place


def _evaluate_folds(
    run: Run,
    store: Path | str | None,
    options: EvaluateOptions,
    progress: Progress | None,
    log: Callable[[str], None],
) -> Results:
    """Evaluate every fold in its own folder, then all together."""
    given = {key: getattr(options, key) for key in _OF_ONE_RUN if getattr(options, key) is not None}
    if given or store is not None or options.part != "test":
        raise ConfigError(
            f"{run.folder}: expected the test part and the store of a run of folds, found "
            f"{', '.join(given) or 'another store or part'}; evaluate one of its folds"
        )
    folds = run.folds()
    for fold in folds:
        evaluate(fold, None, options, progress=progress, log=log)
    return pool_folds(run, folds, RESULTS, seconds=_seconds(run))


def place_name(held_out: HeldOut, *, is_own_store: bool) -> str:
    """Folder within the run: the run itself for the test part of its own store, a separate folder otherwise."""
    if held_out.part == "test" and is_own_store:
        return "."
    where = "" if is_own_store else f".store-{held_out.store.sha256[:8]}"
    return f"evaluated{where}.{held_out.part}.{held_out.subject}"


def _open_run(run: Run | Path | str) -> Run | None:
    """The run; None if ``run`` is the folder of a checkpoint."""
    if isinstance(run, Run):
        return run
    return Run.open(run) if (Path(run) / RECIPE).is_file() else None


def _complete(options: EvaluateOptions, run: Run | None) -> EvaluateOptions:
    """The options, with the recipe's values as defaults."""
    if options.seed is not None:
        require_number("--seed", options.seed, least=0, most=LARGEST_SEED)
    if options.max_new_tokens is not None:
        require_number("--max-new-tokens", options.max_new_tokens, least=1, most=LONGEST_CAPTION)
    if options.out is not None and not (options.out / "evaluation").is_dir():
        require_empty(options.out)
    if options.questions_per_task is not None:
        require_number("--questions-per-task", options.questions_per_task, least=0, most=MOST_QUESTIONS)
    settings = EvaluationConfig() if run is None else run.recipe.evaluation
    defaults: dict[str, Any] = {"seed": 0 if run is None else run.recipe.seed} | {
        name: getattr(settings, name) for name in ("max_new_tokens", "questions_per_task", "transport")
    }
    is_there = run is not None and Path(run.llm_source).exists()
    defaults["llm"] = run.llm_source if run is not None and is_there else None
    return replace(
        options, **{name: value for name, value in defaults.items() if getattr(options, name) is None}
    )


def _store_of(run: Run | None, store: Path | str | None, folder: Path) -> Store:
    if store is not None:
        return open_store(Path(store))
    if run is None:
        raise DataError(
            f"{folder}: expected a store after the folder of a checkpoint, found none; name it: bitllm evaluate "
            f"{folder} STORE"
        )
    return run.store


def _folders(run: Run | None, folder: Path, options: EvaluateOptions) -> dict[str, Path]:
    """Folder of each system's checkpoint, in the order of the recipe."""
    if options.systems:
        return {name: checkpoint_folder(folder, name) for name in options.systems}
    trained = system_names(folder) if folder.is_dir() else []
    known = [] if run is None else [name for name in run.recipe.system_names if name in trained]
    names = known or trained
    if names:
        return {name: folder / name for name in names}
    return {folder.resolve().name: checkpoint_folder(folder, None)}


def _make_parts(
    evaluator: Evaluator, place: Path, log: Callable[[str], None]
) -> tuple[Steps, dict[str, Path]]:
    """Make all unfinished parts that no other process makes; returns the folder of each part."""
    steps = Steps(place / "evaluation", log, maker="evaluation")
    run, options = evaluator.checkpoints, evaluator.options
    shaping: Any = {key: value for key, value in asdict(options).items() if key not in _NOT_SHAPING}
    shaping |= {"words": None if evaluator.categories is None else evaluator.categories.source, "rois": None}
    shared = [shaping, run.store.sha256, run.split.sha256, run.not_run]
    parts = {ENCODER_PART: steps.folder / ENCODER_PART}
    encoder = f"evaluate {ENCODER_PART}"
    steps.run(
        encoder,
        partial(evaluator.evaluate_encoder, parts[ENCODER_PART]),
        settings=[*shared, run.encoder_sha256],
    )
    makers: dict[str, Callable[[], None]] = {}
    for name in run.folders:
        parts[name] = steps.folder / name
        makers[name] = partial(
            steps.run,
            f"evaluate {name}",
            partial(evaluator.evaluate_system, name, parts[name], parts[ENCODER_PART]),
            settings=[*shared, run.weights_sha256(name)],
            after=(encoder,),
        )
        if questions := evaluator.questions_to(name):
            part = questions_part(name)
            parts[part] = steps.folder / part
            asked = [run.store.tasks_sha256, list(questions), options.questions_per_task]
            makers[part] = partial(
                steps.run,
                f"evaluate {part}",
                partial(evaluator.evaluate_questions, name, parts[part]),
                settings=[*shared, asked, run.weights_sha256(name)],
            )
    if evaluator.rois or options.maps is not None:
        parts[REGIONS_PART] = steps.folder / REGIONS_PART
        maps = None if options.maps is None else [str(options.maps), options.maps.is_dir()]
        makers[REGIONS_PART] = partial(
            steps.run,
            f"evaluate {REGIONS_PART}",
            partial(evaluator.evaluate_final, parts[REGIONS_PART]),
            settings=[*shared, [roi.name for roi in evaluator.rois], maps, run.weights_sha256(run.final)],
        )
    steps.divide({name: Unit(name, make) for name, make in makers.items()})
    return steps, parts


def _rest_of(evaluator: Evaluator, run: Run | None, steps: Steps, found: dict[str, Any]) -> dict[str, Any]:
    """Entries of `evaluation.json` about data, run and software."""
    checkpoints = evaluator.checkpoints
    known, about = found["about"], _about(evaluator, checkpoints)
    about = replace(
        about,
        controls=known["controls"],
        not_run=known["not_run"],
        notes=tuple(known["notes"]),
        constant_caption=known["constant_caption"],
        llm=about.llm if run is None else run.recipe.llm.source,
        how_chosen="" if run is None else _how_chosen(run),
        seconds=({} if run is None else _seconds(run)) | steps.seconds,
    )
    rest = {"about": to_json(about), "n_trainable": {}, "reward": {}}
    for name, folder in checkpoints.folders.items():
        if "n_trainable" in (card := card_of(folder)):
            rest["n_trainable"][name] = int(card["n_trainable"])  # type: ignore[index]
    if run is not None:
        rest["comparisons"] = run.recipe.comparisons(checkpoints.folders)
    if "rft" in checkpoints.folders:
        rest["reward"] = _reward_rise(checkpoints.folders["rft"] / "log.jsonl")
    return rest


def _about(evaluator: Evaluator, run: Checkpoints) -> About:
    held_out = evaluator.averaged
    manifest = run.store.manifest
    simulation: Any = manifest.simulation
    data = f"{manifest.source}, betas {manifest.beta_version}, {manifest.roi}"
    if simulation is not None:
        data = (
            f"simulated brain ({simulation['parameters']['preset']} preset, seed {simulation['seed']}, simulation "
            f"version {simulation['simulation_version']})"
        )
    return About(
        data=data,
        is_simulated=manifest.source == "simulated",
        subject=held_out.subject,
        is_subject_trained_on=run.was_trained_on(held_out.subject),
        part=held_out.part,
        is_store_of_training=run.is_own_store,
        split=run.split.name,
        split_sha256=run.split.sha256,
        store_sha256=run.store.sha256,
        n_images=len(np.unique(held_out.nsd_id)),
        n_trials=len(evaluator.single.trials),
        n_adapting_trials=0 if evaluator.own_trials is None else len(evaluator.own_trials),
        seed=evaluator.seed,
        llm=Path(run.llm).name if Path(run.llm).exists() else run.llm,
        max_new_tokens=evaluator.max_new_tokens,
        references_sha256=held_out.scorer.references_sha256,
        tokenizer=held_out.scorer.tokenizer,
        signal=None if simulation is None else float(simulation["parameters"]["signal"]),
        command=" ".join(["bitllm", *sys.argv[1:]]),
        git_revision=git_revision(),
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        peak_memory_gb=_peak_memory_gb(),
        design=DESIGN if run.split.is_fold else "",
        license=manifest.license,
        citation=manifest.citation,
    )


def _write_captions(place: Path, held_out: HeldOut, found: Evaluation) -> None:
    rows = found.rows[found.rows["task"] == CAPTION]
    rows = rows[(rows["trials"] == "averaged") & (rows["input"] == "real") & (rows["system"] != ENCODER)]
    for name, part in rows.groupby("system", sort=False):
        answers = part.sort_values("row")["answer"].tolist()
        write_captions(place / "captions" / f"{name}.jsonl", held_out.records(answers, control="real"))


def _how_chosen(run: Run) -> str:
    """How the settings were chosen; known for packaged recipes only."""
    ignored: Any = {
        "seed": True,
        "trainer": True,
        "evaluation": True,
        "data": {
            "signal",
            "noise",
            "split",
            "validation_fraction",
            "haxby",
            "subject",
            "fold",
            "permute_labels",
        },
    }
    mine = run.recipe.model_dump(exclude=ignored)
    known = [name for name in PACKAGED if mine == read_recipe(name).model_dump(exclude=ignored)]
    if not known:
        return "The settings are the user's own; how they were chosen is not known here."
    return _CHOICES_OF_HAXBY if known[0].startswith("haxby") else _CHOICES


def _seconds(run: Run) -> dict[str, float]:
    """Seconds of every finished step of the run, in the order of the pipeline."""
    names = ("simulate", "prepare", "split", "clip", "llm", "targets", "align", *run.recipe.system_names)
    marks = {name: run.folder / "steps" / f"{name}.json" for name in names}
    return {name: float(read_json(mark)["seconds"]) for name, mark in marks.items() if mark.is_file()}


def _reward_rise(log: Path) -> dict[str, tuple[float, float]]:
    """Mean sampled reward and its parts, in the first and the last fifth of the rft steps."""
    rows = [row for row in _log_rows(log) if "reward" in row]
    fifth = max(1, len(rows) // 5)
    names = [key for key in (rows[0] if rows else ()) if key.startswith("reward")]
    keys = (*names, "length", "distinct")

    def mean(key: str, part: list[dict[str, Any]]) -> float:
        return round(float(np.mean([row[key] for row in part])), 4)

    return {
        key: (mean(key, rows[:fifth]), mean(key, rows[-fifth:]))
        for key in keys
        if rows and all(key in row for row in rows)
    }


def _log_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [parse_json(line, path) for line in lines if line.strip()]


def _peak_memory_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if sys.platform == "darwin" else 1e6), 2)
