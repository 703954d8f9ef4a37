"""Splits beyond the poster's: any subject held out, within subjects, named test sets, whole clusters held out."""

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from bitllm.config import nearest
from bitllm.data.splits import Split, images_seen, with_checksum
from bitllm.data.store import Store
from bitllm.errors import SplitError

TEST_SETS = ("1000", "982", "907", "766", "515")
"""NSD's shared images: all; those a subject sees in 37 of 40 sessions; seen by all subjects at least once, at
least twice, three times."""

_WITHHELD_SESSIONS = 3
_ALL_SUBJECTS = 8
_BLOCK = 4096


def leave_one_subject_out(store: Store, subject: str) -> Split:
    """Train on all other subjects, test on this one with the shared images."""
    if subject not in store.subjects:
        raise SplitError(
            f"{store.path}: expected a subject of the store to be held out, found `{subject}`; "
            f"{nearest(subject, list(store.subjects))}"
        )
    others = tuple(name for name in store.subjects if name != subject)
    if not others:
        raise SplitError(
            f"{store.path}: expected at least 2 subjects to hold one out, found 1; prepare more subjects"
        )
    return _split(store, "leave-one-subject-out", others, (subject,))


def within_subject(store: Store, subjects: tuple[str, ...] | None = None) -> Split:
    """Train and test on the same subjects; the shared images, which nobody trains on, are the test images."""
    chosen = subjects or store.subjects
    if unknown := sorted(set(chosen) - set(store.subjects)):
        raise SplitError(
            f"{store.path}: expected a subject of the store, found `{unknown[0]}`; "
            f"{nearest(unknown[0], list(store.subjects))}"
        )
    return _split(store, "within-subject", chosen, chosen)


def with_few_trials(store: Store, split: Split, n_trials: int, *, seed: int = 0) -> Split:
    """The same split with about ``n_trials`` training trials, on images drawn by ``seed`` with all their trials."""
    images = few_images(store, split.train_subjects, split.train_images, n_trials, seed=seed)
    return with_checksum(replace(split, name=f"{split.name} {n_trials} trials", train_images=images))


def few_images(
    store: Store, subjects: tuple[str, ...], images: frozenset[int], n_trials: int, *, seed: int
) -> frozenset[int]:
    """Some of ``images``, drawn by ``seed``, of which ``subjects`` have ``n_trials`` trials or barely more."""
    order = np.random.default_rng(seed).permutation(sorted(images))
    seen = pd.concat([store.subject(subject).trials["nsd_id"] for subject in subjects])
    total = np.cumsum(seen.value_counts().reindex(order, fill_value=0).to_numpy())
    n_there = total[-1] if len(total) else 0
    if not 0 < n_trials <= n_there:
        raise SplitError(
            f"{store.path}: expected at least one training trial and at most {n_there}, those of "
            f"{', '.join(subjects)}, found {n_trials}; ask for another number"
        )
    return frozenset(order[: int(np.searchsorted(total, n_trials)) + 1].tolist())


def named_test_images(store: Store, name: str) -> frozenset[int]:
    """The test images of a named set, worked out from the trials.

    ``982`` asks which shared images a subject with all 40 sessions sees in the first 37; ``907``, ``766`` and
    ``515`` which ones all eight subjects see one, two or three times.
    """
    if name not in TEST_SETS:
        raise SplitError(f"split: expected a test set, found `{name}`; {nearest(name, list(TEST_SETS))}")
    counts = {subject: _shared_counts(store, subject, early=name == "982") for subject in store.subjects}
    if name in ("1000", "982"):
        images = frozenset.union(*[frozenset(of_subject) for of_subject in counts.values()])
    else:
        if len(counts) < _ALL_SUBJECTS:
            raise SplitError(
                f"{store.path}: expected 8 subjects, of whom the test set {name} is what all have seen, found "
                f"{len(counts)}; prepare all subjects"
            )
        least = {"907": 1, "766": 2, "515": 3}[name]
        images = frozenset.intersection(
            *[frozenset(i for i, n in of_subject.items() if n >= least) for of_subject in counts.values()]
        )
    if len(images) != int(name):
        raise SplitError(
            f"{store.path}: expected {name} images of the test set {name}, found {len(images)}; the store "
            "has too few sessions or subjects, or is not of NSD"
        )
    return images


def with_test_images(split: Split, images: frozenset[int], *, name: str) -> Split:
    """The same split, tested on those of its test images that are among ``images``."""
    kept = split.test_images & images
    if not kept:
        raise SplitError(
            f"split `{split.name}`: expected test images of the set {name}, found none; take another set"
        )
    return with_checksum(replace(split, name=f"{split.name}-{name}", test_images=kept))


def without_neighbours(
    split: Split, nsd_ids: Int[np.ndarray, " n"], embeddings: Float[np.ndarray, "n d"], *, cosine: float
) -> Split:
    """The same split with similar images on one side only.

    The test images stay. A validation image that is like a test image is taken out, then a training image that is
    like a test image or like a validation image that stayed.

    Parameters
    ----------
    nsd_ids, embeddings
        An embedding of every image of the split.
    cosine
        Two images with a higher cosine than this are alike.
    """
    if not -1 <= cosine <= 1:
        raise SplitError(f"--max-cosine: expected -1 to 1, found {cosine}; change it")
    row = {int(nsd_id): n for n, nsd_id in enumerate(nsd_ids)}
    missing = (split.train_images | split.validation_images | split.test_images) - row.keys()
    if missing:
        raise SplitError(
            f"split `{split.name}`: expected an embedding of every image, found none of nsd_id "
            f"{min(missing)} ({len(missing)} without); embed all images of the store"
        )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def far(images: frozenset[int], others: frozenset[int]) -> frozenset[int]:
        ids = sorted(images)
        against = unit[[row[i] for i in sorted(others)]].T
        nearest_cosine = np.concatenate(
            [(unit[[row[i] for i in block]] @ against).max(axis=1) for block in _blocks(ids)]
        )
        return frozenset(i for i, found in zip(ids, nearest_cosine.tolist(), strict=True) if found <= cosine)

    validation = far(split.validation_images, split.test_images) if split.validation_images else frozenset()
    train = far(split.train_images, split.test_images | validation) if split.train_images else frozenset()
    if not train or not validation:
        raise SplitError(
            f"split `{split.name}`: expected images left to train and to choose on with a cosine of at most "
            f"{cosine}, found {len(train)} and {len(validation)}; raise the cosine"
        )
    name = f"{split.name}-cosine{cosine:g}"
    return with_checksum(replace(split, name=name, train_images=train, validation_images=validation))


def _blocks(ids: list[int]) -> list[list[int]]:
    return [ids[first : first + _BLOCK] for first in range(0, len(ids), _BLOCK)]


def _split(store: Store, name: str, train: tuple[str, ...], test: tuple[str, ...]) -> Split:
    return with_checksum(
        Split(
            name=name,
            train_subjects=train,
            test_subjects=test,
            train_images=images_seen(store, train, "train"),
            validation_images=images_seen(store, train, "validation"),
            test_images=images_seen(store, test, "test"),
            sha256="",
        )
    )


def _shared_counts(store: Store, subject: str, *, early: bool) -> dict[int, int]:
    trials = store.subject(subject).trials
    trials = trials[trials["shared"]]
    if early:
        n_sessions = store.manifest.subjects[subject].n_sessions
        last = n_sessions - _WITHHELD_SESSIONS if n_sessions in (40, 32, 30) else n_sessions
        trials = trials[trials["session"] <= last]
    return {int(i): int(n) for i, n in zip(*np.unique(trials["nsd_id"], return_counts=True), strict=True)}
