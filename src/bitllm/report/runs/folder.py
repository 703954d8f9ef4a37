"""What a run's folder holds for the report: results, training logs, captions with their words' bits, brain maps.

A folder of `bitllm demo` has all of it; one that `bitllm ground` wrote into has its numbers. Whatever is missing is
left out of the page.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitllm.data.store import Store, open_store
from bitllm.errors import DataError
from bitllm.files import read_record, require_plain_name
from bitllm.report.brain import BrainMaps, read_brain_maps
from bitllm.report.gallery import GalleryItem, WordBits
from bitllm.report.headline import final_system
from bitllm.report.runs.grounding import results_of_grounding
from bitllm.report.values import section, text

_N_EACH = 4
_SHOWN_CONTROLS = {"permuted": "permuted betas", "shuffle": "shuffled betas", "zero": "zero betas"}


@dataclass(frozen=True)
class RunFiles:
    """Everything about one run that the page shows."""

    name: str
    results: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    gallery: list[GalleryItem]
    brain: BrainMaps | None


def read_run(folder: Path, *, pictures: bool | None = None, store: Path | None = None) -> RunFiles:
    """Read a run's folder.

    Parameters
    ----------
    folder
        Of a demo (``results.json``), or one with ``grounding.json`` in it or in its checkpoints.
    pictures
        Whether pictures are shown; by default only simulated ones, which have no licence of others.
    store
        The store that the run was trained on, where it does not lie in its folder.

    Raises
    ------
    DataError
        If the folder holds no results, or they do not parse.
    """
    folder = Path(folder)
    results, grounded = read_results(folder), _grounded(folder)
    place = folder / "store" if store is None else open_store(store).path
    final = final_system(results)
    regions = section(grounded.get(final) or next(iter(grounded.values()), {}), "rois")
    return RunFiles(
        folder.resolve().name,
        results,
        read_curves(folder),
        read_gallery(folder, results, pictures=pictures, store=place),
        read_brain_maps(folder, text(results, "subject"), regions, store=place),
    )


def read_results(folder: Path) -> dict[str, Any]:
    """The numbers of a run: a demo's own, else those of its ``grounding.json``.

    Raises
    ------
    DataError
        If the folder holds neither, or they do not parse.
    """
    grounded = _grounded(folder)
    if (folder / "results.json").is_file():
        results = read_record(folder / "results.json")
    elif grounded:
        results = results_of_grounding(grounded)
    else:
        raise DataError(
            f"{folder}: expected results.json of `bitllm demo` or grounding.json of `bitllm ground`, found neither; "
            "check the path, or ground the run first"
        )
    return results


def read_curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the training log of the run, or of every stage in its folder."""
    logs = {path.parent.name: path for path in sorted(folder.glob("*/log.jsonl"))}
    if (folder / "log.jsonl").is_file():
        logs[folder.resolve().name] = folder / "log.jsonl"
    return {name: _lines(path) for name, path in logs.items()}


def read_gallery(
    folder: Path, results: dict[str, Any], *, pictures: bool | None, store: Path
) -> list[GalleryItem]:
    """Best, median, worst and random images by the final system's CIDEr under real betas."""
    final = final_system(results)
    judged = folder / "judged"
    if final:
        require_plain_name(final, folder / "results.json", "a system")
    if not (judged / final / "scores.json").is_file():
        return []
    shown = {final: (final, "real")}
    shown |= {name: (name, "real") for name in ("sft",) if name != final and (judged / name).is_dir()}
    shown |= {f"{final}, {label}": (final, control) for control, label in _SHOWN_CONTROLS.items()}
    shown["nearest training caption"] = (final, "nearest")
    shown = {label: (name, control) for label, (name, control) in shown.items()
             if (judged / name / f"{control}.jsonl").is_file()}  # fmt: skip
    captions = {label: _lines(judged / name / f"{control}.jsonl") for label, (name, control) in shown.items()}
    cider = {
        label: read_record(judged / name / "scores.json", "cider_per_image")["cider_per_image"][control]
        for label, (name, control) in shown.items()
    }
    words = {label: _words(judged / name, control) for label, (name, control) in shown.items()}
    shown_store = _store_to_show(store, pictures)
    groups = chosen_rows(cider[final], seed=int(results.get("seed") or 0))
    return [
        GalleryItem(
            nsd_id=captions[final][row]["nsd_id"],
            picture=None
            if shown_store is None
            else shown_store.pictures([captions[final][row]["nsd_id"]])[0],
            references=tuple(captions[final][row]["references"]),
            label=label,
            captions={name: captions[name][row]["caption"] for name in shown},
            cider={name: cider[name][row] for name in shown},
            words={name: words[name][row] for name in shown if words[name]},
        )
        for label, rows in groups.items()
        for row in rows
    ]


def chosen_rows(cider: Sequence[float], *, seed: int, n_each: int = _N_EACH) -> dict[str, list[int]]:
    """Rows of the best, median, worst and some random captions."""
    order = np.argsort(cider, kind="stable")
    middle = max(0, len(order) // 2 - n_each // 2)
    random = np.random.default_rng(seed).choice(len(order), size=min(n_each, len(order)), replace=False)
    groups = {
        "best": order[::-1][:n_each],
        "median": order[middle : middle + n_each],
        "worst": order[:n_each],
        "random": np.sort(random),
    }
    return {label: [int(row) for row in rows] for label, rows in groups.items()}


def _store_to_show(place: Path, pictures: bool | None) -> Store | None:
    if pictures is False or not (place / "manifest.json").is_file():
        return None
    store = open_store(place)
    has_pictures = "pictures.npy" in store.manifest.sha256
    return store if has_pictures and (pictures or store.manifest.source == "simulated") else None


def _words(folder: Path, control: str) -> list[tuple[WordBits, ...]]:
    """Bits of the words of every caption, where they were computed."""
    if not (folder / "words.json").is_file():
        return []
    rows = read_record(folder / "words.json", "captions")["captions"].get(control, [])
    return [tuple(WordBits(str(word), float(bits)) for word, bits in row) for row in rows]


def _grounded(folder: Path) -> dict[str, dict[str, Any]]:
    """Content of every ``grounding.json`` by system: the folder's own, or those of its checkpoints."""
    own = folder / "grounding.json"
    paths = [own] if own.is_file() else sorted(folder.glob("*/grounding.json"))
    contents = [read_record(path) for path in paths]
    return {str(section(one, "about").get("run", path.parent.name)): one
            for path, one in zip(paths, contents, strict=True)}  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: expected JSON lines, found text that does not parse ({error})") from None
    return [row for row in rows if isinstance(row, dict)]
