"""Input of the report from a run folder: results, table of answers, maps, training logs."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitllm.data.store import Store, open_store
from bitllm.errors import DataError
from bitllm.evaluation.pooling import read_maps
from bitllm.evaluation.results import Results, from_json
from bitllm.evaluation.table import TABLE, read_evaluation
from bitllm.files import read_record
from bitllm.report.brain import BrainMaps, brain_maps
from bitllm.report.gallery import GalleryItem, read_gallery
from bitllm.report.questions import Example, read_examples

RESULTS = "results.json"


@dataclass(frozen=True)
class RunFiles:
    """Everything that the page shows about one run."""

    name: str
    results: Results
    curves: dict[str, list[dict[str, Any]]]
    """Stage → rows of its log, each with ``step``."""
    gallery: list[GalleryItem]
    brain: BrainMaps | None
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """Questions of each task with answers of the final system."""


def read_run(folder: Path, *, pictures: bool | None = None, store: Path | None = None) -> RunFiles:
    """Read an evaluated run.

    Parameters
    ----------
    folder
        Folder with ``results.json``; the gallery also needs ``evaluation.parquet`` and ``evaluation.json``.
    pictures
        Whether to show images; by default only simulated ones, because others have licenses.
    store
        The store that was evaluated; by default ``store`` in the folder, if there is one.

    Raises
    ------
    DataError
        If the folder has no results, or a file is damaged or of another version.
    """
    folder = Path(folder)
    results = read_results(folder)
    data = _open_store(folder, store)
    gallery, examples = [], {}
    if (folder / TABLE).is_file():
        shown = data if _may_show(data, pictures) else None
        evaluation, final, seed = read_evaluation(folder), results.final, results.about.seed
        gallery = read_gallery(evaluation, final, seed=seed, store=shown)
        examples = read_examples(evaluation, results.asked, seed=seed)
    return RunFiles(
        folder.resolve().name,
        results,
        read_curves(folder),
        gallery,
        brain_maps(results, read_maps(folder), data),
        examples,
    )


def read_results(folder: Path) -> Results:
    """Read ``results.json``."""
    path = folder / RESULTS
    if not path.is_file():
        raise DataError(
            f"{folder}: expected results.json of `bitllm demo` or `bitllm evaluate`, found none; check the path, or "
            "run `bitllm evaluate` first"
        )
    return from_json(Results, read_record(path), str(path))


def read_curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the training log in the folder, or in the folder of every stage; of a run of folds those of the first."""
    if (folder / "fold-01").is_dir():
        return {f"{name}, fold 1": rows for name, rows in read_curves(folder / "fold-01").items()}
    logs = {path.parent.name: path for path in sorted(folder.glob("*/log.jsonl"))}
    if (folder / "log.jsonl").is_file():
        logs[folder.resolve().name] = folder / "log.jsonl"
    return {name: _lines(path) for name, path in logs.items()}


def _open_store(folder: Path, given: Path | None) -> Store | None:
    if given is None and not (folder / "store" / "manifest.json").is_file():
        return None
    return open_store(given or folder / "store")


def _may_show(store: Store | None, pictures: bool | None) -> bool:
    if store is None or pictures is False or "pictures.npy" not in store.manifest.sha256:
        return False
    return bool(pictures) or store.manifest.source == "simulated"


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: expected JSON lines, found text that does not parse ({error}); copy the file again"
        ) from None
    return [row for row in rows if isinstance(row, dict)]
