"""Audit of a store, a split and a run: leaks, changed files, and what cannot be checked."""

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from bitllm.data.splits import WITHIN_SUBJECT, Split, images_in_statistics, load_split
from bitllm.data.store import Store, SubjectData
from bitllm.data.store.read import sessions_of_zeros
from bitllm.data.tasks.leaks import question_leaks
from bitllm.errors import DataError
from bitllm.files import sha256_of_file

RECORD = "run.json"
"""Record of a stage: ``split`` (checksum, possibly under ``learnt_from``), and ``selection`` (``part``, ``metric``,
``subjects``, optionally ``nsd_ids``), the data with which its checkpoint or settings were chosen."""

_SIDE = 16  # pixels of a thumbnail
_SAME_PICTURE = 0.998  # correlation of thumbnails
_SAME_WORDS = 0.9  # share of common words
_FEWEST_WORDS = 8  # short captions often have the same words by chance
_BLOCK = 1024  # images compared at a time
_FEWEST_VOXELS, _FEWEST_TRIALS = 5, 10
"""With fewer voxels or trials, different trials have similar distributions."""
_N_POWERS = 6
_SAME_SHAPE = 0.01
"""Largest distance between copies, in sampling errors. Rounding to float16 moves a trial by up to 0.002; different
trials are at least 0.02 apart (measured for 5 to 15,000 voxels)."""


def audit(store: Store, *, split: Split | None = None, run: Path | None = None) -> dict[str, Any]:
    """Look for leaks; nothing is changed.

    Parameters
    ----------
    store
        An open store.
    split
        A split to audit together with the store; by default the run's ``split.json``.
    run
        A folder with results, usually with ``split.json``. Every ``split_sha256`` in its JSON files and every
        ``split`` in a ``run.json`` must be the checksum of that split. No selection in a ``run.json`` may use test
        images or test subjects, and no ``log.jsonl`` may contain a test measure during training.

    Returns
    -------
    dict
        ``store``, ``split`` (checksum, or ``None``), ``leaks`` and ``notes`` (one sentence each) and
        ``is_clean``.
    """
    copies = list(_copies(store))
    leaks = [*_store_leaks(store), *(f"one brain under two names: {line}" for _, _, line in copies)]
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
        leaks += _copied_test_subjects(copies, split)
    return {
        "store": str(store.path),
        "split": split.sha256 if split else None,
        "leaks": leaks,
        "notes": notes,
        "is_clean": not leaks,
    }


def verify_store(store: Store) -> int:
    """Compare the checksum of every file with the manifest; returns the number of files."""
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
    """Subjects and images on two sides, and test images in the statistics."""
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
    """Leaks of the store itself, independent of the split."""
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
    yield from question_leaks(store)
    yield from _picture_leaks(store)


def _store_notes(store: Store) -> list[str]:
    """What cannot be checked because the store does not record it."""
    notes = []
    for subject in store.subjects:
        sessions = sessions_of_zeros(store.subject(subject))
        if sessions:
            notes.append(
                f"{store.path}: all betas of {subject} are 0 in session {sessions[0]} ({len(sessions)} such sessions); "
                "earlier versions stored sessions with one training trial so, prepare it again with the normalization "
                "`across-sessions`"
            )
    if store.manifest.statistics != "as-delivered":
        return notes
    return [
        *notes,
        f"{store.path}: z-scored by whoever made the betas ({store.manifest.source}); whether test trials are in the "
        "statistics is not known",
    ]


def _trial_leaks(store: Store, subject: str) -> Iterator[str]:
    trials = store.subject(subject).trials
    shared = store.stimuli["shared"].reindex(trials["nsd_id"]).to_numpy()
    wrong = np.flatnonzero(trials["shared"].to_numpy() != shared)
    if wrong.size:
        yield f"repeats on two sides: {subject} has {wrong.size} trials with another `shared` than their image"
    counted = trials.groupby("nsd_id").cumcount().to_numpy()
    if (counted != trials["repetition"].to_numpy()).any():
        yield f"repeats miscounted: {subject} has trials listed twice or out of order"
    is_test = (store.stimuli["part"].reindex(trials["nsd_id"]) == "test").to_numpy()
    betas = store.subject(subject).betas
    sides: dict[bool, set[bytes]] = {True: set(), False: set()}
    for row, of_test in enumerate(is_test.tolist()):
        values = betas[row] + np.float16(0)  # -0 becomes 0, so that equal betas have equal bytes
        if values.min() < values.max():
            sides[of_test].add(hashlib.blake2b(values.tobytes(), digest_size=16).digest())
    same = sides[True] & sides[False]
    if same:
        yield f"test trial in training: {subject} has {len(same)} test trials with the betas of a training trial"


def _copied_test_subjects(copies: list[tuple[str, str, str]], split: Split) -> Iterator[str]:
    train, test = set(split.train_subjects), set(split.test_subjects)
    for one, other, line in copies:
        if (one in train and other in test - train) or (other in train and one in test - train):
            yield f"test subject in training: {line}"


def _copies(store: Store) -> Iterator[tuple[str, str, str]]:
    """Pairs of subjects with the same betas, and a line about each.

    They are found in any order of trials or voxels, and if each voxel of a session was scaled and shifted.
    """
    by_width: dict[int, list[str]] = {}
    for name in store.subjects:
        by_width.setdefault(store.subject(name).betas.shape[1], []).append(name)
    for width, names in by_width.items():
        if len(names) < 2 or width < _FEWEST_VOXELS:
            continue
        shapes = {name: _trial_shapes(store.subject(name)) for name in names}
        for one, other in combinations(names, 2):
            is_copy = _has_neighbour(shapes[other], shapes[one])
            if _is_most_of_a_session(is_copy, store.subject(other).trials["session"]):
                yield one, other, f"{other} has the betas of {one} ({is_copy.sum()} of {len(is_copy)} trials)"


def _trial_shapes(data: SubjectData) -> Float[np.ndarray, "2 trials 6"]:
    """A description of each trial's distribution of betas over voxels: as stored, and z-scored by voxel and session."""
    shapes = np.full((2, len(data.trials), _N_POWERS), np.nan)
    for of_session in data.trials.groupby("session").indices.values():
        # Sessions are contiguous. Blocks of rows keep a float64 copy of a whole session out of memory.
        rows = of_session[-1] + 1 - of_session[0]
        blocks = [slice(n, min(n + 64, rows)) for n in range(0, rows, 64)]
        betas, found = data.betas[of_session[0] :][:rows], shapes[:, of_session[0] :][:, :rows]
        sums = sum(betas[block].sum(axis=0, dtype=np.float64) for block in blocks)
        mean = sums / rows
        squares = sum(((betas[block] - mean) ** 2).sum(axis=0) for block in blocks)
        deviation = np.sqrt(np.asarray(squares) / rows)
        deviation[deviation < 1e-6] = np.inf
        for block in blocks:
            values = betas[block].astype(np.float32)
            found[0, block] = _shape_of_rows(values)
            if rows >= _FEWEST_TRIALS:
                found[1, block] = _shape_of_rows(((values - mean) / deviation).astype(np.float32))
    return shapes


def _shape_of_rows(values: Float[np.ndarray, "trials voxels"]) -> Float[np.ndarray, "trials 6"]:
    """Moments of the z-scored values of each row; they do not depend on the order or the scale of the voxels.

    Values are mapped into −1 to 1 first, so that outliers do not dominate. In units of the sampling error; NaN for a
    constant row.
    """
    values = values - values.mean(axis=1, keepdims=True)
    deviation = values.std(axis=1, keepdims=True)
    standard = values / np.where(deviation > 0, deviation, np.nan)
    drawn_in = 2 * standard / (1 + standard**2)  # bounded, smooth and odd: the sign of a value counts
    powers, power = [], np.ones_like(drawn_in)
    for _ in range(_N_POWERS):
        power = power * drawn_in
        powers.append(power.mean(axis=1, dtype=np.float64))
    return np.stack(powers, axis=1) * np.sqrt(values.shape[1])


def _has_neighbour(
    shapes: Float[np.ndarray, "2 n 6"], others: Float[np.ndarray, "2 m 6"]
) -> Bool[np.ndarray, " n"]:
    """Which trials have nearly the same description as one of the others, as stored or z-scored."""
    found = np.zeros(shapes.shape[1], bool)
    for of_one, of_others in zip(shapes, others, strict=True):
        rows = np.flatnonzero(np.isfinite(of_one).all(axis=1))
        known = of_others[np.isfinite(of_others).all(axis=1)]
        if rows.size and len(known):
            found[rows] |= cKDTree(known).query(of_one[rows])[0] < _SAME_SHAPE
    return found


def _is_most_of_a_session(is_copy: Bool[np.ndarray, " trials"], sessions: pd.Series) -> bool:
    # One session may be copied alone; a few trials that look like others are no evidence.
    by_session = pd.Series(is_copy).groupby(sessions.to_numpy()).agg(["mean", "sum"])
    return bool(((by_session["mean"] > 0.5) & (by_session["sum"] >= 5)).any() or is_copy.mean() > 0.5)


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
    """Long captions with nearly the same words, found through an index of rare words."""
    part = store.stimuli["part"]
    by_start: dict[frozenset[str], int] = {}
    tests: list[tuple[int, frozenset[str]]] = []
    postings: dict[str, list[frozenset[str]]] = {}
    for nsd_id, captions in store.captions.items():
        # Words are tagged with the rank of their caption, so that all captions must agree, not their union.
        words = frozenset(f"{n}:{word}" for n, c in enumerate(sorted(captions)) for word in _plain(c).split())
        if part[nsd_id] == "test":
            tests.append((nsd_id, words))
        elif len(words) >= _FEWEST_WORDS:
            by_start[words] = nsd_id
            for word in words:
                postings.setdefault(word, []).append(words)
    for nsd_id, words in tests:
        # Sets that share 90 % of their words share at least one of the rarest quarter: only those are compared.
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
    """Thumbnails as unit vectors after subtracting their mean, and which of them have a single color."""
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
    """Leaks in the files of a run: JSON results, records of choices, training logs."""
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
    """What cannot be checked because the run does not record it, or was trained on another store."""
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
    """Measures of the test part that were logged before the end of training."""
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
