"""Data of a recipe: the store of Haxby et al., the split, and the coordinates of a simulated store."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitllm.data.formats.haxby import fetch_haxby, read_haxby, subjects_in
from bitllm.data.splits import (
    LEAVE_ONE_RUN_OUT,
    PRESETS,
    WITHIN_SUBJECT,
    Split,
    check_split,
    few_images,
    images_seen,
    leave_one_run_out,
    leave_one_subject_out,
    load_split,
    make_split,
    with_checksum,
    with_permuted_labels,
)
from bitllm.data.store import Store, open_store
from bitllm.data.store.write import write_store
from bitllm.errors import ConfigError
from bitllm.files import folder_written_whole, read_json, sha256_of_file, write_json
from bitllm.pipeline.recipe import DataConfig

SPLIT_CHANGES = ("held_out", "n_train_subjects", "training_share", "n_shots", "n_shots_alone")
"""Settings of a recipe's data that change the split."""

_COORDINATES, _INDICES = ["x_mm", "y_mm", "z_mm"], ["i", "j", "k"]


def split_of(store: Store, data: DataConfig, *, seed: int) -> Split:
    """The split that a recipe names, with the recipe's changes.

    Parameters
    ----------
    seed
        Seed of the training images drawn for ``training_share``, ``n_shots`` and ``n_shots_alone``.
    """
    split = _named(store, data)
    if data.held_out is not None:
        split = leave_one_subject_out(store, data.held_out)
    if data.permute_labels is not None:
        split = with_permuted_labels(split, data.permute_labels)
    changes = {key: value for key in SPLIT_CHANGES if (value := getattr(data, key)) is not None}
    if not changes:
        return split
    split = _with_less(store, _with_fewer_subjects(store, split, data.n_train_subjects), data, seed=seed)
    name = " ".join([split.name, *(f"{key}={value}" for key, value in changes.items())])
    is_within = bool({*split.train_subjects} & {*split.test_subjects})
    is_named = name.startswith(WITHIN_SUBJECT) or not is_within
    return with_checksum(replace(split, name=name if is_named else f"{WITHIN_SUBJECT} {name}"))


def _with_fewer_subjects(store: Store, split: Split, n: int | None) -> Split:
    if n is None:
        return split
    if n > len(split.train_subjects):
        raise ConfigError(
            f"data.n_train_subjects: expected at most {len(split.train_subjects)}, found {n}; use a smaller number"
        )
    subjects = split.train_subjects[:n]
    return replace(
        split,
        train_subjects=subjects,
        train_images=split.train_images & images_seen(store, subjects, "train"),
        validation_images=split.validation_images & images_seen(store, subjects, "validation"),
    )


def _with_less(store: Store, split: Split, data: DataConfig, *, seed: int) -> Split:
    """Train on a share of the images, and on a few trials of the test subject."""
    train = split.train_images
    if data.training_share is not None:
        order = np.random.default_rng(seed).permutation(sorted(train))
        train = frozenset(order[: round(len(order) * data.training_share)].tolist())
    subjects, tested = split.train_subjects, split.test_subjects
    if data.n_shots is not None:
        own = images_seen(store, tested, "train") - train
        train |= few_images(store, tested, own, data.n_shots, seed=seed)
        subjects = (*subjects, *tested)
    split = replace(split, train_subjects=subjects, train_images=train)
    if data.n_shots_alone is None:
        return split
    own = images_seen(store, tested, "train")
    return replace(
        split,
        train_subjects=tested,
        train_images=few_images(store, tested, own, data.n_shots_alone, seed=seed),
        validation_images=images_seen(store, tested, "validation"),
    )


def _named(store: Store, data: DataConfig) -> Split:
    name = data.split
    if name == LEAVE_ONE_RUN_OUT:
        assert data.fold is not None, "a run of folds makes no split itself"
        return leave_one_run_out(store, data.fold, subject=data.subject)
    if name in PRESETS:
        return make_split(store, name)
    if not Path(name).is_file():
        raise ConfigError(
            f"data.split: expected one of {', '.join((*PRESETS, LEAVE_ONE_RUN_OUT))} or the file of a split, found "
            f"`{name}`; make one with `bitllm split`"
        )
    split = load_split(Path(name))
    check_split(store, split)
    return split


def write_haxby(data: DataConfig, path: Path) -> None:
    """Write the store of Haxby et al. 2001 that a recipe names."""
    assert data.haxby is not None, "named by the recipe"
    is_download = data.haxby == "download"
    folder = fetch_haxby(None, data.subject or "subj2") if is_download else Path(data.haxby)
    found = read_haxby(folder, subjects=[data.subject or subjects_in(folder)[0]])
    write_store(path, found.contents, found.settings)


def replace_coordinates_by_indices(folder: Path) -> None:
    """Replace each voxel's coordinates by its indices in the subject's own volume, scaled and centered like mm.

    The encoder then has no common space: the same coordinates are another location in each subject.
    """
    store = open_store(folder)
    with folder_written_whole(folder, replace=True) as unfinished:
        shutil.copytree(folder, unfinished, dirs_exist_ok=True)
        manifest = read_json(unfinished / "manifest.json")
        for subject in store.subjects:
            path = unfinished / "subjects" / subject / "voxels.parquet"
            voxels = store.subject(subject).voxels.copy()
            indices, mm = voxels[_INDICES].to_numpy(np.float64), voxels[_COORDINATES].to_numpy(np.float64)
            scaled = (indices - indices.mean(axis=0)) * (mm.std() / indices.std())
            voxels[_COORDINATES] = scaled.astype(np.float32)
            voxels.to_parquet(path, index=False)
            manifest["subjects"][subject]["sha256"]["voxels.parquet"] = sha256_of_file(path)
        write_json(unfinished / "manifest.json", manifest)
