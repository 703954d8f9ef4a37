"""Leaks within a store: what a split that looks right can still give away."""

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from bitllm.data.splits import WITHIN_SUBJECT, Split, images_in_statistics
from bitllm.data.store import Store

_SIDE = 16
_SAME_PICTURE = 0.998
_SAME_WORDS = 0.9
_FEWEST_WORDS = 8
_BLOCK = 1024


def split_leaks(store: Store, split: Split) -> Iterator[str]:
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
            f"test image in the statistics of the z-scores: {_some(in_statistics)}, by the normalisation "
            f"`{store.manifest.statistics}`"
        )
    shared = set(store.stimuli.index[store.stimuli["shared"]].tolist())
    if shared & (train | validation):
        yield (
            "another subject's shared image in training: images that every subject sees, "
            f"{_some(shared & (train | validation))}"
        )


def store_leaks(store: Store) -> Iterator[str]:
    """What the store itself gives away, whatever the split."""
    if store.manifest.statistics == "session":
        yield "test trials in the statistics of the z-scores: normalisation `session` sees all trials"
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


def store_notes(store: Store) -> list[str]:
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
