"""Leaks of a run: results of another split, and choices made on what should have been tested once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitllm.data.splits import WITHIN_SUBJECT, Split
from bitllm.data.store import Store

RECORD = "run.json"
"""How a stage was trained: ``split`` (checksum; or under ``learnt_from``) and ``selection`` (``part``, ``metric``,
``subjects`` and perhaps ``nsd_ids``: by what its checkpoint or its settings were chosen)."""


def run_leaks(store: Store, run: Path, split: Split) -> Iterator[str]:
    """What the files of a run give away: JSON results, records of choices, logs of training."""
    for path in sorted(run.rglob("*.json")):
        content = _read(path)
        written = content.get("split_sha256")
        if written not in (None, split.sha256):
            yield _of_another_split(path, written, split)
        if path.name == RECORD:
            yield from _record_leaks(store, path, content, split)
    for path in sorted(run.rglob("log.jsonl")):
        yield from _log_leaks(path)


def run_notes(store: Store, run: Path) -> list[str]:
    """What cannot be checked, since a run does not say it or learnt from another store."""
    records = sorted(run.rglob(RECORD))
    if not records:
        return [f"{run}: no record of how this run was chosen ({RECORD})"]
    notes = []
    for path in records:
        record = _read(path)
        if not isinstance(record.get("selection"), dict):
            notes.append(f"{path}: no record of how this run was chosen (`selection`)")
        learnt_from = _learnt_from(record).get("store")
        if learnt_from not in (None, store.sha256):
            notes.append(
                f"{path}: learnt from the store {str(learnt_from)[:12]}, this audit is of {store.sha256[:12]}"
            )
    return notes


def _record_leaks(store: Store, path: Path, record: dict[str, Any], split: Split) -> Iterator[str]:
    written = record.get("split", _learnt_from(record).get("split"))
    if written not in (None, split.sha256):
        yield _of_another_split(path, written, split)
    selection = record.get("selection")
    if not isinstance(selection, dict):
        return
    by = f"{path} chose by `{selection.get('metric', 'an unnamed metric')}`"
    if selection.get("part") == "test":
        yield f"choice made on test: {by} on the test part"
    in_test = split.test_images | set(store.stimuli.index[store.stimuli["part"] == "test"].tolist())
    images = sorted(in_test & {n for n in _listed(selection, "nsd_ids") if isinstance(n, int)})
    if images:
        yield f"choice made on test: {by} on test images, nsd_id {images[0]} ({len(images)} in all)"
    subjects = sorted(set(split.test_subjects) & set(map(str, _listed(selection, "subjects"))))
    if subjects and not split.name.startswith(WITHIN_SUBJECT):
        yield f"choice made on test: {by} on test subjects, {', '.join(subjects)}"


def _log_leaks(path: Path) -> Iterator[str]:
    """A measure of the test part that was logged while training went on after it."""
    rows = [_parsed(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = max((number for number, row in enumerate(rows) if "loss" in row), default=-1)
    end = max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=None)
    for number, row in enumerate(rows):
        measures = sorted(key for key in row if key.startswith("test_"))
        step = row.get("step")
        goes_on = step < end if isinstance(step, int) and end is not None else number < last
        if measures and goes_on:
            yield f"test part looked at during training: {path} logs `{measures[0]}` at step {step}"
            return


def _of_another_split(path: Path, written: Any, split: Split) -> str:
    return (
        f"result of another split: {path} carries {str(written)[:12]}, the run's split is {split.sha256[:12]}"
    )


def _learnt_from(record: dict[str, Any]) -> dict[str, Any]:
    found = record.get("learnt_from")
    return found if isinstance(found, dict) else {}


def _listed(selection: dict[str, Any], key: str) -> list[Any]:
    found = selection.get(key)
    return found if isinstance(found, list) else []


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}
