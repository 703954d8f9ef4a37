"""Audit of a store, a split and a run: leaks, files that changed, and what cannot be checked."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from bitllm.data.splits import WITHIN_SUBJECT, Split, images_in_statistics, load_split
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.files import sha256_of_file

RECORD = "run.json"
"""How a stage was trained: ``split`` (checksum; or under ``learnt_from``) and ``selection`` (``part``, ``metric``,
``subjects`` and perhaps ``nsd_ids``: by what its checkpoint or its settings were chosen)."""

_SIDE = 16
_SAME_PICTURE = 0.998
_SAME_WORDS = 0.9
_FEWEST_WORDS = 8
_BLOCK = 1024


def audit(store: Store, *, split: Split | None = None, run: Path | None = None) -> dict[str, Any]:
    """Look for leaks; nothing is changed.

    Parameters
    ----------
    store
        An open store.
    split
        A split to look at beside the store; by default the run's own ``split.json``.
    run
        A folder with results, and perhaps ``split.json``: every ``split_sha256`` in its JSON files and every
        ``split`` of a ``run.json`` must be that split's; nothing may have been chosen on test images or test
        subjects (``run.json``), nor the test part been looked at while training went on (``log.jsonl``).

    Returns
    -------
    dict
        ``store``, ``split`` (checksum, or ``None``), ``leaks`` and ``notes`` (one sentence each) and
        ``is_clean``.

    Raises
    ------
    DataError
        If ``run`` holds no split and none is given.
    """
    leaks = list(_store_leaks(store))
    notes = _store_notes(store)
    if run is not None:
        path = Path(run) / "split.json"
        if not path.is_file() and split is None:
            raise DataError(
                f"{path}: expected the split of the run, found none; name the run's folder, or the split with --split"
            )
        of_run = load_split(path) if path.is_file() else split
        assert of_run is not None, "the run's or the given one"
        if split is not None and of_run.sha256 != split.sha256:
            leaks.append(
                f"run of another split: {path} is {of_run.sha256[:12]}, the audited split is {split.sha256[:12]}"
            )
        split = split or of_run
        leaks += _run_leaks(store, Path(run), split)
        notes += _run_notes(store, Path(run))
    if split is not None:
        leaks += _split_leaks(store, split)
    return {
        "store": str(store.path),
        "split": split.sha256 if split else None,
        "leaks": leaks,
        "notes": notes,
        "is_clean": not leaks,
    }


def verify_store(store: Store) -> int:
    """Compare the checksum of every file with the manifest; returns how many files were compared.

    Raises
    ------
    DataError
        If a file was changed or damaged after it was written.
    """
    expected = {store.path / file: checksum for file, checksum in store.manifest.sha256.items()}
    for subject, record in store.manifest.subjects.items():
        folder = store.path / "subjects" / subject
        expected |= {folder / file: checksum for file, checksum in record.sha256.items()}
    for path, checksum in expected.items():
        found = sha256_of_file(path)
        if found != checksum:
            raise DataError(
                f"{path}: expected the checksum {checksum[:12]} (manifest.json), found {found[:12]}; the "
                "file was changed or damaged, make the store again"
            )
    return len(expected)


def _split_leaks(store: Store, split: Split) -> Iterator[str]:
    """Subjects and images that are on two sides, and statistics that saw them."""
    train, validation, test = split.train_images, split.validation_images, split.test_images
    seen = {s: set(store.subject(s).trials["nsd_id"]) for s in store.subjects}
    both = sorted(set(split.train_subjects) & set(split.test_subjects))
    if both and not split.name.startswith(WITHIN_SUBJECT):
        yield f"test subject in training: {', '.join(both)}"
    if train & test:
        by = sorted(s for s in split.train_subjects if seen.get(s, set()) & train & test)
        yield f"test image in training: {_some(train & test)}, seen by {', '.join(by) or 'nobody'}"
    if train & validation:
        yield f"validation image in training: {_some(train & validation)}"
    if validation & test and split.name != "develop":
        yield f"choice made on test: the validation images hold test images, {_some(validation & test)}"
    in_statistics = images_in_statistics(store, split)
    if in_statistics:
        yield (
            f"test image in the statistics of the z-scores: {_some(in_statistics)}, by the normalization "
            f"`{store.manifest.statistics}`"
        )
    shared = set(store.stimuli.index[store.stimuli["shared"]].tolist())
    if shared & (train | validation):
        yield (
            "another subject's shared image in training: images that every subject sees, "
            f"{_some(shared & (train | validation))}"
        )


def _store_leaks(store: Store) -> Iterator[str]:
    """What the store itself gives away, whatever the split."""
    if store.manifest.statistics == "session":
        yield "test trials in the statistics of the z-scores: normalization `session` sees all trials"
    stimuli = store.stimuli
    wrong = stimuli.index[stimuli["shared"] & (stimuli["part"] != "test")]
    if len(wrong):
        yield f"shared image outside the test part: {_some(set(wrong.tolist()))}"
    for subject in store.subjects:
        yield from _trial_leaks(store, subject)
    known = stimuli[stimuli["coco_id"] >= 0]
    photograph = known.groupby("coco_id")["part"].nunique()
    twice = photograph.index[photograph > 1]
    if len(twice):
        yield f"one photograph on two sides: COCO image {twice[0]} ({len(twice)} in all) is in two parts"
    yield from _caption_leaks(store)
    yield from _picture_leaks(store)


def _store_notes(store: Store) -> list[str]:
    """What cannot be checked since the store does not say it."""
    if store.manifest.statistics != "as-delivered":
        return []
    return [
        f"{store.path}: z-scored by whoever made the betas ({store.manifest.source}); whether test trials are in the "
        "statistics is not known"
    ]


def _trial_leaks(store: Store, subject: str) -> Iterator[str]:
    trials = store.subject(subject).trials
    shared = store.stimuli["shared"].reindex(trials["nsd_id"]).to_numpy()
    wrong = np.flatnonzero(trials["shared"].to_numpy() != shared)
    if wrong.size:
        yield f"repeats on two sides: {subject} has {wrong.size} trials whose `shared` is not their image's"
    counted = trials.groupby("nsd_id").cumcount().to_numpy()
    if (counted != trials["repetition"].to_numpy()).any():
        yield f"repeats miscounted: {subject} has trials listed twice or out of order"
    is_test = (store.stimuli["part"].reindex(trials["nsd_id"]) == "test").to_numpy()
    first = np.asarray(store.subject(subject).betas[:, :64], dtype=np.float32)
    varies = first.std(axis=1) > 0
    rows = pd.util.hash_pandas_object(pd.DataFrame(first), index=False).to_numpy()
    same = set(rows[is_test & varies].tolist()) & set(rows[~is_test & varies].tolist())
    if same:
        yield f"test trial in training: {subject} has {len(same)} test trials whose betas are a training trial's"


def _caption_leaks(store: Store) -> Iterator[str]:
    part = store.stimuli["part"]
    sides: dict[tuple[str, ...], dict[str, int]] = {}
    for nsd_id, captions in store.captions.items():
        words = tuple(sorted(_plain(caption) for caption in captions))
        sides.setdefault(words, {})[part[nsd_id]] = nsd_id
    for by_part in sides.values():
        if "test" in by_part and len(by_part) > 1:
            other = next(nsd_id for side, nsd_id in by_part.items() if side != "test")
            yield (
                f"duplicated captions: the test image {by_part['test']} has those of the image "
                f"{other}, which is no test image"
            )
            return
    yield from _near_captions(store)


def _near_captions(store: Store) -> Iterator[str]:
    """Long captions whose words are nearly all the same, through an index of rare words."""
    part = store.stimuli["part"]
    by_start: dict[frozenset[str], int] = {}
    tests: list[tuple[int, frozenset[str]]] = []
    postings: dict[str, list[frozenset[str]]] = {}
    for nsd_id, captions in store.captions.items():
        words = frozenset(f"{n}:{word}" for n, c in enumerate(sorted(captions)) for word in _plain(c).split())
        if part[nsd_id] == "test":
            tests.append((nsd_id, words))
        elif len(words) >= _FEWEST_WORDS:
            by_start[words] = nsd_id
            for word in words:
                postings.setdefault(word, []).append(words)
    for nsd_id, words in tests:
        rare = sorted(words, key=lambda word: len(postings.get(word, ())))[: max(1, len(words) // 4)]
        for other in {one for word in rare for one in postings.get(word, ())[:200]}:
            if len(words & other) / len(words | other) >= _SAME_WORDS:
                yield f"near-duplicate captions: the test image {nsd_id} and the image {by_start[other]}"
                return


def _picture_leaks(store: Store) -> Iterator[str]:
    if "pictures.npy" not in store.manifest.sha256:
        return
    ids = store.stimuli.index.to_numpy()
    is_test = (store.stimuli["part"] == "test").to_numpy()
    for first in range(0, int(is_test.sum()), _BLOCK):
        pair = _first_pair(store, ids[is_test][first : first + _BLOCK], ids[~is_test])
        if pair:
            yield f"near-duplicate pictures: the test image {pair[0]} and the image {pair[1]}"
            return


def _first_pair(store: Store, tests: np.ndarray, others: np.ndarray) -> tuple[int, int] | None:
    thumbnails, plain = _thumbnails(store, tests)
    for first in range(0, len(others), _BLOCK):
        block, also_plain = _thumbnails(store, others[first : first + _BLOCK])
        same = (thumbnails @ block.T > _SAME_PICTURE) & ~plain[:, None] & ~also_plain[None]
        if same.any():
            row, column = np.argwhere(same)[0]
            return int(tests[row]), int(others[first + column])
    return None


def _thumbnails(store: Store, nsd_ids: np.ndarray) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """Small pictures as unit vectors without their mean, and which of them are one plain colour."""
    pictures = store.pictures(nsd_ids)
    rows = np.linspace(0, pictures.shape[1] - 1, min(_SIDE, pictures.shape[1])).astype(int)
    columns = np.linspace(0, pictures.shape[2] - 1, min(_SIDE, pictures.shape[2])).astype(int)
    small = pictures[:, rows][:, :, columns].reshape(len(pictures), -1).astype(np.float64)
    small -= small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    return small / np.maximum(length, 1e-9), length[:, 0] < 1


def _plain(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.lower()))


def _some(images: set[int] | frozenset[int]) -> str:
    return f"nsd_id {min(images)} ({len(images)} in all)"


def _run_leaks(store: Store, run: Path, split: Split) -> Iterator[str]:
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


def _run_notes(store: Store, run: Path) -> list[str]:
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
