"""Data of a recipe: the store of Haxby et al., the split, and the coordinates of a simulated store."""

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bitllm.config import nearest
from bitllm.data.formats.bold5000 import ROIS, OpenNeuro, read_bold5000
from bitllm.data.formats.haxby import fetch_haxby, read_haxby, subjects_in
from bitllm.data.formats.sidecar import Sidecar
from bitllm.data.join import join_stores
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
from bitllm.simulation.bold5000 import simulate_bold5000

SPLIT_CHANGES = (
    "held_out",
    "train_subjects",
    "n_train_subjects",
    "training_share",
    "n_shots",
    "n_shots_alone",
)
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
    split = _with_less(store, _with_fewer_subjects(store, split, data), data, seed=seed)
    name = " ".join([split.name, *(f"{key}={value}" for key, value in changes.items())])
    is_within = bool({*split.train_subjects} & {*split.test_subjects})
    is_named = name.startswith(WITHIN_SUBJECT) or not is_within
    return with_checksum(replace(split, name=name if is_named else f"{WITHIN_SUBJECT} {name}"))


def _with_fewer_subjects(store: Store, split: Split, data: DataConfig) -> Split:
    if data.train_subjects is None and data.n_train_subjects is None:
        return split
    subjects, n = data.train_subjects or split.train_subjects, data.n_train_subjects
    if unknown := [name for name in subjects if name not in split.train_subjects]:
        raise ConfigError(
            f"data.train_subjects: expected training subjects of the split ({', '.join(split.train_subjects)}), found "
            f"`{unknown[0]}`; {nearest(unknown[0], list(split.train_subjects))}"
        )
    if n is not None and n > len(subjects):
        raise ConfigError(
            f"data.n_train_subjects: expected at most {len(subjects)}, found {n}; use a smaller number"
        )
    subjects = subjects[:n]
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


def add_simulated_bold5000(folder: Path, nsd: Path, *, seed: int) -> None:
    """Join a simulated store with a second simulated data set, in BOLD5000's layout, that belongs to its release.

    Its subjects are CSI1 to CSI4, with the voxels of BOLD5000's regions.

    Parameters
    ----------
    folder
        The store; it is replaced by the joint one.
    nsd
        The simulated NSD release that the store was prepared from.
    seed
        Seed of the second data set.
    """
    with TemporaryDirectory(dir=folder.parent) as unfinished:
        root, second, both = (Path(unfinished) / name for name in ("release", "second", "both"))
        simulate_bold5000(root, nsd, seed=seed)
        openneuro = root / "ds001499"
        read = read_bold5000(
            root / "BOLD5000",
            Sidecar(captions=(root / "captions_train2014.json",), pictures=root / "pictures"),
            openneuro=OpenNeuro(openneuro, openneuro / "derivatives/spm", root / "fmriprep"),
            roi="+".join(ROIS),
        )
        write_store(second, read.contents, read.settings)
        join_stores([folder, second], both)
        shutil.rmtree(folder)
        both.rename(folder)


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
