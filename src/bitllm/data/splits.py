"""Splits: subjects and images for training, validation and test; presets, named test sets, subsets."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from bitllm.config import nearest
from bitllm.data.store import Store
from bitllm.data.store.spaces import is_subjects_own
from bitllm.errors import SplitError
from bitllm.files import read_json, sha256_of_json, write_json

PRESETS = ("poster", "develop")

WITHIN_SUBJECT = "within-subject"
"""Start of the name of splits that test the training subjects, with images that are not used for training."""

LEAVE_ONE_RUN_OUT = "leave-one-run-out"
"""A split for each run of one subject: that run is for test, the next one for validation, all others for training."""

_FOLDS = f"{WITHIN_SUBJECT} {LEAVE_ONE_RUN_OUT}"
_SUBJECTS = ("train_subjects", "test_subjects")
_IMAGES = ("train_images", "validation_images", "test_images")
_PARTS_ALLOWED = {
    "train_images": ("train",),
    "validation_images": ("validation",),
    "test_images": ("test", "validation"),  # `develop` is tested on validation images
}
_PARTS_UNSEEN = {
    "training": ("validation", "test"),
    "across-sessions": ("validation", "test"),
    "not-shared": ("test",),
    "session": (),
}
"""Parts of which no trial is in the statistics of the z-scores, by the store's ``statistics``."""


@dataclass(frozen=True)
class Split:
    """Subjects and images (``nsd_id``) for training, validation and test, with a checksum."""

    name: str
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]
    train_images: frozenset[int]
    validation_images: frozenset[int]
    test_images: frozenset[int]
    sha256: str
    permute_labels: int | None = None
    """Seed with which the images of the training and validation trials are permuted within each run; by default they
    are not. A decoder trained so must be at chance."""

    @property
    def is_fold(self) -> bool:
        """Whether this is a fold of leave-one-run-out."""
        return self.name.startswith(_FOLDS)


def make_split(store: Store, preset: str) -> Split:
    """A split of a store by subjects and by images.

    Parameters
    ----------
    store
        An open store.
    preset
        ``poster``: trains on all subjects but the last, tests the last subject on NSD's shared images. ``develop``:
        trains on all but the last two, tests the second to last on its validation images; the last subject and the
        shared images are not used.

    References
    ----------
    The poster's section on data: subjects 1 to 7 for training, subject 8 for testing.
    """
    if preset not in PRESETS:
        raise SplitError(f"split: expected a preset, found `{preset}`; {nearest(preset, list(PRESETS))}")
    n_held_out = PRESETS.index(preset) + 1
    if len(store.subjects) <= n_held_out:
        raise SplitError(
            f"{store.path}: expected at least {n_held_out + 1} subjects for the split `{preset}`, found "
            f"{len(store.subjects)}; prepare more subjects"
        )
    test_part = "test" if preset == "poster" else "validation"
    return _split(
        store, preset, store.subjects[:-n_held_out], (store.subjects[-n_held_out],), test_part=test_part
    )


def save_split(split: Split, path: Path) -> None:
    """Write a split as JSON, with its checksum."""
    write_json(path, {**_content(split), "sha256": split.sha256})


def load_split(path: Path) -> Split:
    """Read a split that `save_split` wrote."""
    content = read_json(path)
    keys = ("name", *_SUBJECTS, *_IMAGES, "sha256")
    if not isinstance(content, dict) or set(content) - {"permute_labels"} != set(keys):
        raise SplitError(
            f"{path}: expected a split with the keys {', '.join(keys)}, found others; make it again"
        )
    written = content.pop("sha256")
    if written != sha256_of_json(content):
        raise SplitError(
            f"{path}: expected content with the checksum {str(written)[:12]}, found "
            f"{sha256_of_json(content)[:12]}; the file was changed by hand or damaged, make the split again"
        )
    subjects = {key: tuple(content[key]) for key in _SUBJECTS}
    images = {key: frozenset(content[key]) for key in _IMAGES}
    return _new_split(
        name=content["name"], **subjects, **images, permute_labels=content.get("permute_labels")
    )


def check_split(store: Store, split: Split) -> None:
    """Refuse a split that leaks, or that does not belong to this store."""
    _check_subjects(store, split)
    for one, other in (("train_images", "test_images"), ("train_images", "validation_images")):
        both = getattr(split, one) & getattr(split, other)
        if both:
            raise SplitError(
                f"split `{split.name}`: expected {one} and {other} to be disjoint, found nsd_id {min(both)} "
                f"in both ({len(both)} images); make the split again with `make_split`"
            )
    for use in _IMAGES:
        _check_parts(store, split, use)
    if split.is_fold:
        _check_runs(store, split)
    if split.sha256 != sha256_of_json(_content(split)):
        raise SplitError(
            f"split `{split.name}`: expected the checksum {sha256_of_json(_content(split))[:12]} of its "
            f"content, found {split.sha256[:12]}; make the split again with `make_split`"
        )


def _check_subjects(store: Store, split: Split) -> None:
    unknown = {*split.train_subjects, *split.test_subjects} - set(store.subjects)
    if unknown:
        raise SplitError(
            f"split `{split.name}`: expected subjects of {store.path}, found {min(unknown)}; make the split "
            "again for this store"
        )
    everyone = {*split.train_subjects, *split.test_subjects}
    if len(everyone) > 1 and is_subjects_own(store.manifest.space):
        raise SplitError(
            f"{store.path}: expected coordinates in a space common to {', '.join(sorted(everyone))}, found each "
            f"subject's own (`{store.manifest.space}`), which one encoder cannot compare; prepare the store with "
            "coordinates in MNI, or train and test on one subject (`--preset within-subject`)"
        )
    both = set(split.train_subjects) & set(split.test_subjects)
    if both and not split.name.startswith(WITHIN_SUBJECT):
        raise SplitError(
            f"split `{split.name}`: expected train and test subjects to be disjoint, found {min(both)} in "
            "both; make the split again with `make_split`"
        )


def _check_runs(store: Store, split: Split) -> None:
    """Refuse a fold with trials of one run in two parts: neighboring trials share signal and noise."""
    both = split.validation_images & split.test_images
    use_of = {image: use for use in _IMAGES for image in getattr(split, use)}
    for subject in dict.fromkeys((*split.train_subjects, *split.test_subjects)):
        trials = store.subject(subject).trials
        n_uses = trials["nsd_id"].map(use_of).groupby([trials["session"], trials["run"]]).nunique()
        mixed = n_uses.index[n_uses > 1].tolist()
        if mixed or both:
            where = f"session {mixed[0][0]}, run {mixed[0][1]}" if mixed else f"nsd_id {min(both)}"
            raise SplitError(
                f"split `{split.name}`: expected each run of {subject} in one part, found {where} in several; make "
                "the split again with `leave_one_run_out`"
            )


def _check_parts(store: Store, split: Split, use: str) -> None:
    images = np.array(sorted(getattr(split, use)), dtype=np.int64)
    part = store.stimuli["part"].reindex(images).to_numpy(dtype=object, na_value="unknown")
    for nsd_id, found in zip(images.tolist(), part.tolist(), strict=True):
        if found == "unknown":
            raise SplitError(
                f"split `{split.name}`: expected images of {store.path}, found nsd_id {nsd_id} in {use}; "
                "make the split again for this store"
            )
        if found not in _PARTS_ALLOWED[use] and not split.is_fold:
            raise SplitError(
                f"split `{split.name}`: expected {use} of the part {' or '.join(_PARTS_ALLOWED[use])}, found "
                f"nsd_id {nsd_id} of the part {found} of {store.path}; make the split again with `make_split`"
            )


def images_seen(store: Store, subjects: tuple[str, ...], part: str) -> frozenset[int]:
    """Images of a part of the store that at least one of these subjects saw."""
    of_part = store.stimuli.index[store.stimuli["part"] == part]
    seen = np.concatenate([store.subject(subject).trials["nsd_id"].to_numpy() for subject in subjects])
    return frozenset(np.intersect1d(of_part, seen).tolist())


def images_in_statistics(store: Store, split: Split) -> frozenset[int]:
    """Test images of a split with trials in the statistics of the store's z-scores.

    None if the betas were not z-scored, or were delivered as z-scores (then this is unknown).
    """
    unseen = _PARTS_UNSEEN.get(store.manifest.statistics)
    if unseen is None:
        return frozenset()
    part = store.stimuli["part"].to_dict()
    return frozenset(image for image in split.test_images if image in part and part[image] not in unseen)


def with_checksum(split: Split) -> Split:
    """The same split with the checksum of its content."""
    return replace(split, sha256=sha256_of_json(_content(split)))


def _new_split(**fields: Any) -> Split:
    return with_checksum(Split(**fields, sha256=""))


def _content(split: Split) -> dict[str, Any]:
    content = {key: value for key, value in asdict(split).items() if key != "sha256" and value is not None}
    return {key: value if isinstance(value, str | int) else sorted(value) for key, value in content.items()}


TEST_SETS = ("1000", "982", "907", "766", "515")
"""NSD's shared images: all; those seen in the first 37 of 40 sessions; those that all subjects saw at least once, at
least twice, three times."""

_WITHHELD_SESSIONS = 3  # of every subject, until August 2023
_ALL_SUBJECTS = 8
_BLOCK = 4096


def leave_one_subject_out(store: Store, subject: str) -> Split:
    """Train on all other subjects; test this one on the shared images."""
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
    """Train and test on the same subjects; the test images are the shared images, which are not used for training."""
    chosen = subjects or store.subjects
    if unknown := sorted(set(chosen) - set(store.subjects)):
        raise SplitError(
            f"{store.path}: expected a subject of the store, found `{unknown[0]}`; "
            f"{nearest(unknown[0], list(store.subjects))}"
        )
    return _split(store, "within-subject", chosen, chosen)


def runs_of(store: Store, subject: str) -> list[tuple[int, int]]:
    """The runs of a subject as (session, run), in order."""
    trials = store.subject(subject).trials
    return sorted(set(zip(trials["session"].tolist(), trials["run"].tolist(), strict=True)))


def leave_one_run_out(store: Store, fold: int, *, subject: str | None = None) -> Split:
    """Train and test on one subject: test on the images of one run, validate on those of the next, train on the rest.

    Parameters
    ----------
    store
        A store with one subject, or with ``subject``. Its division into parts does not matter; every image must be
        shown in one run only.
    fold
        Number of the run for test, counted from 1 over all sessions. The run after it (after the last one the first)
        is for validation.
    subject
        By default the only subject of the store.
    """
    if subject is None and len(store.subjects) > 1:
        raise SplitError(
            f"{store.path}: expected one subject for {LEAVE_ONE_RUN_OUT}, found {len(store.subjects)}; name one "
            f"({', '.join(store.subjects)})"
        )
    subject = subject or store.subjects[0]
    runs = runs_of(store, subject)
    if len(runs) < 3 or not 1 <= fold <= len(runs):
        raise SplitError(
            f"{store.path}: expected at least 3 runs of {subject} and a fold from 1 to their number, found "
            f"{len(runs)} runs and the fold {fold}; name another fold, or prepare more runs"
        )
    trials = store.subject(subject).trials
    by_run = trials.groupby(["session", "run"])["nsd_id"].agg(frozenset)
    if len(twice := trials.drop_duplicates(["session", "run", "nsd_id"])["nsd_id"]) > twice.nunique():
        raise SplitError(
            f"{store.path}: expected images that are shown in one run only, found nsd_id "
            f"{twice[twice.duplicated()].iloc[0]} in several; use another split"
        )
    test, validation = runs[fold - 1], runs[fold % len(runs)]
    return _new_split(
        name=f"{_FOLDS} {fold} of {len(runs)}",
        train_subjects=(subject,),
        test_subjects=(subject,),
        train_images=frozenset.union(*(by_run[run] for run in runs if run not in (test, validation))),
        validation_images=by_run[validation],
        test_images=by_run[test],
    )


def with_permuted_labels(split: Split, seed: int) -> Split:
    """The same split with the images of its training and validation trials permuted within each run.

    `select_trials` does so. The betas then say nothing about the captions that a model is trained on.
    """
    name = f"{split.name}, labels permuted (seed {seed})"
    return with_checksum(replace(split, name=name, permute_labels=seed))


def with_few_trials(store: Store, split: Split, n_trials: int, *, seed: int = 0) -> Split:
    """The same split with about ``n_trials`` training trials: all trials of images drawn with ``seed``."""
    images = few_images(store, split.train_subjects, split.train_images, n_trials, seed=seed)
    return with_checksum(replace(split, name=f"{split.name} {n_trials} trials", train_images=images))


def few_images(
    store: Store, subjects: tuple[str, ...], images: frozenset[int], n_trials: int, *, seed: int
) -> frozenset[int]:
    """Images drawn with ``seed`` of which ``subjects`` have ``n_trials`` trials, or slightly more."""
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
    """The images of a named test set, determined from the trials.

    ``982``: shared images that a subject with all 40 sessions saw in the first 37. ``907``, ``766``, ``515``: images
    that all eight subjects saw at least once, twice, three times.
    """
    if name not in TEST_SETS:
        raise SplitError(f"split: expected a test set, found `{name}`; {nearest(name, list(TEST_SETS))}")
    counts = {subject: _shared_counts(store, subject, early=name == "982") for subject in store.subjects}
    if name in ("1000", "982"):
        images = frozenset.union(*[frozenset(of_subject) for of_subject in counts.values()])
    else:
        if len(counts) < _ALL_SUBJECTS:
            raise SplitError(
                f"{store.path}: expected 8 subjects for the test set {name} (images that all have seen), found "
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
    """The same split with only those test images that are among ``images``."""
    kept = split.test_images & images
    if not kept:
        raise SplitError(
            f"split `{split.name}`: expected test images of the set {name}, found none; choose another set"
        )
    return with_checksum(replace(split, name=f"{split.name}-{name}", test_images=kept))


def without_neighbours(
    split: Split, nsd_ids: Int[np.ndarray, " n"], embeddings: Float[np.ndarray, "n d"], *, cosine: float
) -> Split:
    """The same split without images that are similar to images of another part.

    All test images remain. First validation images similar to a test image are removed, then training images similar
    to a test image or to a remaining validation image.

    Parameters
    ----------
    nsd_ids, embeddings
        An embedding of every image of the split.
    cosine
        Images with a higher cosine than this are similar.
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


def _split(
    store: Store, name: str, train: tuple[str, ...], test: tuple[str, ...], *, test_part: str = "test"
) -> Split:
    return _new_split(
        name=name,
        train_subjects=train,
        test_subjects=test,
        train_images=images_seen(store, train, "train"),
        validation_images=images_seen(store, train, "validation"),
        test_images=images_seen(store, test, test_part),
    )


def _shared_counts(store: Store, subject: str, *, early: bool) -> dict[int, int]:
    trials = store.subject(subject).trials
    trials = trials[trials["shared"]]
    if early:
        n_sessions = store.manifest.subjects[subject].n_sessions
        # NSD's complete subjects have 40, 32 or 30 sessions; with other numbers the last three are already missing
        last = n_sessions - _WITHHELD_SESSIONS if n_sessions in (40, 32, 30) else n_sessions
        trials = trials[trials["session"] <= last]
    return {int(i): int(n) for i, n in zip(*np.unique(trials["nsd_id"], return_counts=True), strict=True)}
