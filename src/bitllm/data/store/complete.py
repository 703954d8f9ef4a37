"""Checks of the contents of a store, and columns that are derived from others."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from bitllm.data.store.contents import (
    OBJECT_COLUMNS,
    STIMULUS_COLUMNS,
    STIMULUS_OPTIONAL,
    TRIAL_COLUMNS,
    TRIAL_OPTIONAL,
    VOXEL_COLUMNS,
    StoreContents,
    StoreSettings,
    SubjectContents,
)
from bitllm.data.store.normalize import FEWEST_TRIALS, SCORED_BY_US, Normalization, sees
from bitllm.data.store.spaces import require_space
from bitllm.errors import DataError
from bitllm.files import require_plain_name

_BY_SESSION = SCORED_BY_US - {"across-sessions"}
_FEW_TRIALS = 10
"""The standard deviation of 10 values has a relative error of about a quarter (1 / sqrt(2 n))."""

_SMALLEST_EXTENT_MM = 0.5
_FARTHEST_MM = 500.0
PARTS = ("train", "validation", "test")
_TRIAL_TYPES = {"session": "int16", "run": "int16", "trial": "int32", "nsd_id": "int64"}
_VOXEL_TYPES = dict.fromkeys("ijk", "int32") | dict.fromkeys(("x_mm", "y_mm", "z_mm", "ncsnr"), "float32")
_OBJECT_TYPES = {"nsd_id": "int64", "is_crowd": "bool"} | dict.fromkeys(
    ("x", "y", "w", "h", "area"), "float32"
)


def part_of_image(nsd_id: int, *, is_shared: bool, validation_fraction: float, seed: int) -> str:
    """``test`` for a shared image, else ``validation`` or ``train`` as a function of seed and ``nsd_id`` only."""
    if is_shared:
        return "test"
    return "validation" if _lot(nsd_id, seed) < validation_fraction * 2**64 else "train"


def with_validation_images(
    stimuli: pd.DataFrame, *, validation_fraction: float, seed: int
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The same images; if the format names no validation images, some of the part ``train`` become validation images.

    They are those that ``part_of_image`` would select, at least one. Test images and shared images are not changed.

    Returns
    -------
    tuple
        The table, and a note if images were moved.
    """
    is_train = ((stimuli["part"] == "train") & ~stimuli["shared"].astype(bool)).to_numpy()
    if (stimuli["part"] == "validation").any() or is_train.sum() < 2:
        return stimuli, ()
    train = stimuli["nsd_id"].to_numpy()[is_train].tolist()
    drawn = [
        n
        for n in train
        if part_of_image(n, is_shared=False, validation_fraction=validation_fraction, seed=seed)
        == "validation"
    ]
    if len(drawn) in (0, len(train)):
        drawn = [min(train, key=lambda n: _lot(n, seed))]
    parts = stimuli["part"].mask(stimuli["nsd_id"].isin(drawn), "validation")
    note = (
        f"no image of the part val: {len(drawn)} of {len(train)} training images are set aside for choices "
        f"(fraction {validation_fraction:g}, seed {seed}); no test image is moved"
    )
    return stimuli.assign(part=parts), (note,)


def _lot(nsd_id: int, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{nsd_id}".encode()).digest()[:8])


def complete(contents: StoreContents, settings: StoreSettings) -> StoreContents:
    """The same contents, checked, with all columns of a store."""
    if not contents.subjects:
        raise DataError(f"{contents.origin}: expected at least one subject, found none; check the input")
    require_space(settings.space, contents.origin)
    _require_distinct_names(contents)
    for subject in contents.subjects:  # its name becomes a folder
        require_plain_name(subject.name, subject.origin, "a subject")
    for atlas in contents.atlases:
        require_plain_name(atlas, contents.origin, "an atlas")
    stimuli = _complete_stimuli(contents, settings)
    captions = _complete_captions(contents, stimuli)
    subjects = [_complete_subject(subject, stimuli, contents.atlases) for subject in contents.subjects]
    for subject in subjects:
        _check_normalization(subject, settings)
        _require_trials_for_statistics(subject, stimuli, settings.normalization)
    objects = _complete_objects(contents, stimuli)
    return replace(contents, subjects=subjects, stimuli=stimuli, captions=captions, objects=objects)


def _complete_stimuli(contents: StoreContents, settings: StoreSettings) -> pd.DataFrame:
    stimuli = contents.stimuli
    _require_columns(stimuli, ("nsd_id", "shared"), contents.origin, "the table of images")
    stimuli = stimuli.sort_values("nsd_id", ignore_index=True)
    _require_unique(stimuli, ["nsd_id"], contents.origin, "image")
    if "coco_id" not in stimuli:
        stimuli["coco_id"] = -1
    if "part" not in stimuli:
        stimuli["part"] = [
            part_of_image(
                nsd_id,
                is_shared=is_shared,
                validation_fraction=settings.validation_fraction,
                seed=settings.seed,
            )
            for nsd_id, is_shared in zip(stimuli["nsd_id"].tolist(), stimuli["shared"].tolist(), strict=True)
        ]
    wrong = stimuli["part"][~stimuli["part"].isin(PARTS)]
    if len(wrong):
        raise DataError(
            f"{contents.origin}: expected images of the parts {', '.join(PARTS)}, found `{wrong.iloc[0]}`; "
            "name the parts so"
        )
    return stimuli[[*STIMULUS_COLUMNS, *(name for name in STIMULUS_OPTIONAL if name in stimuli)]]


def _complete_captions(contents: StoreContents, stimuli: pd.DataFrame) -> pd.DataFrame:
    captions = contents.captions
    _require_columns(captions, ("nsd_id", "caption"), contents.origin, "the table of captions")
    empty = captions["nsd_id"][captions["caption"].str.strip() == ""]
    if len(empty):
        raise DataError(
            f"{contents.origin}: expected captions with words, found an empty one of the image "
            f"{empty.iloc[0]} ({len(empty)} in all); remove the empty captions"
        )
    without = np.setdiff1d(stimuli["nsd_id"], captions["nsd_id"])
    if without.size:
        raise DataError(
            f"{contents.origin}: expected a caption for every image, found none for the image {without[0]} "
            f"({without.size} images without); add captions or leave the trials out"
        )
    captions = captions[captions["nsd_id"].isin(stimuli["nsd_id"])]
    return captions[["nsd_id", "caption"]].sort_values("nsd_id", kind="stable", ignore_index=True)


def _complete_objects(contents: StoreContents, stimuli: pd.DataFrame) -> pd.DataFrame | None:
    objects = contents.objects
    if objects is None:
        return None
    _require_columns(objects, OBJECT_COLUMNS, contents.origin, "the table of objects")
    objects = objects.loc[objects["nsd_id"].isin(stimuli["nsd_id"]), list(OBJECT_COLUMNS)]
    objects = objects.astype(_OBJECT_TYPES)
    wrong = objects["nsd_id"][~objects[list("xywh")].apply(lambda column: column.between(0, 1)).all(axis=1)]
    if len(wrong):
        raise DataError(
            f"{contents.origin}: expected boxes of objects as fractions of the picture (0 to 1), found others of the "
            f"image {wrong.iloc[0]} ({len(wrong)} in all); divide them by the picture's width and height"
        )
    return objects.sort_values("nsd_id", kind="stable", ignore_index=True)


def _complete_subject(
    subject: SubjectContents, stimuli: pd.DataFrame, atlases: dict[str, dict[int, str]]
) -> SubjectContents:
    where = f"{subject.origin} ({subject.name})"
    trials, voxels = subject.trials.reset_index(drop=True), subject.voxels.reset_index(drop=True)
    _require_columns(trials, ("session", "nsd_id"), where, "the table of trials")
    _require_columns(voxels, ("x_mm", "y_mm", "z_mm", *atlases), where, "the table of voxels")
    if not len(trials) or not len(voxels):
        raise DataError(
            f"{where}: expected trials and voxels, found {len(trials)} × {len(voxels)}; check the input"
        )
    _require_numbers_in(trials, _TRIAL_TYPES, where, "the table of trials")
    _require_numbers_in(voxels, _VOXEL_TYPES | dict.fromkeys(atlases, "int16"), where, "the table of voxels")
    if not trials["session"].is_monotonic_increasing:
        raise DataError(
            f"{where}: expected trials in the order of their sessions, found a session after a later one; "
            "sort trials and betas by session"
        )
    if {"run", "trial"} <= set(trials.columns):
        _require_unique(trials, ["session", "run", "trial"], where, "trial")
    unknown = np.setdiff1d(trials["nsd_id"], stimuli["nsd_id"])
    if unknown.size:
        raise DataError(
            f"{where}: expected trials of images of the table, found the image {unknown[0]} ({unknown.size} "
            "images in all); check whether the numbers start at 0 in both"
        )
    coordinates = voxels[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float64)
    if not np.isfinite(coordinates).all():
        raise DataError(
            f"{where}: expected coordinates in mm for every voxel, found "
            f"{(~np.isfinite(coordinates).all(axis=1)).sum()} voxels without; leave those voxels out"
        )
    _require_brain_size(coordinates, where)
    return replace(
        subject, trials=_all_trial_columns(trials, stimuli), voxels=_all_voxel_columns(voxels, atlases)
    )


def _require_brain_size(coordinates: np.ndarray, where: str) -> None:
    # A brain is 100 to 250 mm wide. A region of one slice or of a few voxels is small but spans more than a voxel,
    # while a whole brain in meters spans 0.25; in micrometers, or as places in an array, it lies beyond 500.
    extent = float(np.ptp(coordinates, axis=0).max())
    farthest = float(np.abs(coordinates).max())
    if (len(coordinates) > 1 and extent < _SMALLEST_EXTENT_MM) or farthest > _FARTHEST_MM:
        raise DataError(
            f"{where}: expected coordinates in mm (a brain is 100 to 250 mm wide), found {len(coordinates)} voxels "
            f"that span {extent:.4g} and lie up to {farthest:.4g} from the origin; convert them to mm, or check that "
            "the table holds every voxel's own place"
        )


def _all_trial_columns(trials: pd.DataFrame, stimuli: pd.DataFrame) -> pd.DataFrame:
    trials = trials.copy()
    if "run" not in trials:
        trials["run"] = 1
    if "trial" not in trials:
        trials["trial"] = trials.groupby(["session", "run"]).cumcount() + 1
    trials["repetition"] = trials.groupby("nsd_id").cumcount()
    trials["shared"] = stimuli.set_index("nsd_id")["shared"].loc[trials["nsd_id"]].to_numpy(bool)
    columns = [*TRIAL_COLUMNS, *(name for name in TRIAL_OPTIONAL if name in trials)]
    return trials[columns].astype(_TRIAL_TYPES | {"repetition": "int16"})


def _all_voxel_columns(voxels: pd.DataFrame, atlases: dict[str, dict[int, str]]) -> pd.DataFrame:
    voxels = voxels.copy()
    if "i" not in voxels:  # no volume: the place in the list
        voxels["i"], voxels["j"], voxels["k"] = np.arange(len(voxels)), 0, 0
    if "ncsnr" not in voxels:
        voxels["ncsnr"] = 0.0
    voxels["ncsnr"] = np.nan_to_num(voxels["ncsnr"].to_numpy(np.float64), nan=0.0)
    return voxels[[*VOXEL_COLUMNS, *atlases]].astype(_VOXEL_TYPES | dict.fromkeys(atlases, "int16"))


def _check_normalization(subject: SubjectContents, settings: StoreSettings) -> None:
    if subject.is_z_scored != (settings.normalization == "as-delivered") and subject.is_z_scored:
        raise DataError(
            f"{subject.origin} ({subject.name}): expected betas to be z-scored, found z-scores already; "
            "they are never z-scored twice, use the normalization `as-delivered`"
        )


def require_numbers(
    table: pd.DataFrame, types: Mapping[str, str], where: str, what: str, *, advice: str = "fix that row"
) -> None:
    """Refuse a table with values that cannot be cast: numpy would wrap numbers that are too large.

    ``types`` maps columns to numpy types. Integers must be whole and in range; other numbers may be missing. Errors
    name ``where`` (the file), ``what`` (the table) and the row, counted from 1 without the heading.
    """
    for column, dtype in types.items():
        values = table[column]
        numbers = pd.to_numeric(values, errors="coerce")
        if np.dtype(dtype).kind == "f":
            kind = "numbers"
            is_wrong = numbers.isna() & values.notna()
        else:
            low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
            kind = "whole numbers" if dtype == "int64" else f"whole numbers from {low} to {high}"
            is_wrong = numbers.isna() | (numbers % 1 != 0) | (numbers < low) | (numbers > high)
        wrong = np.flatnonzero(is_wrong.to_numpy(bool))
        if wrong.size:
            found = values.iloc[int(wrong[0])]
            shown = "nothing" if pd.isna(found) else f"`{found}`"
            raise DataError(
                f"{where}: expected {kind} in the column `{column}` of {what}, found {shown} in row {wrong[0] + 1} "
                f"({wrong.size} in all, the heading not counted); {advice}"
            )


def _require_trials_for_statistics(
    subject: SubjectContents, stimuli: pd.DataFrame, normalization: Normalization
) -> None:
    """Refuse sessions with too few trials for a standard deviation, before any betas are read."""
    counts = _trials_in_statistics(subject, stimuli, normalization)
    where = f"{subject.origin} ({subject.name})"
    if counts.sum() < FEWEST_TRIALS and normalization in SCORED_BY_US:
        raise DataError(
            f"{where}: expected at least {FEWEST_TRIALS} trials of training images, found {counts.sum()}; lower the "
            "validation fraction, or set more images to train in the column `split`"
        )
    few = counts[counts < FEWEST_TRIALS]
    if len(few) and normalization in _BY_SESSION:
        raise DataError(
            f"{where}: expected at least {FEWEST_TRIALS} trials of training images in every session, found "
            f"{few.iloc[0]} in session {few.index[0]} ({len(few)} such sessions); use the normalization "
            "`across-sessions`, or leave the session out"
        )


def few_training_trials(
    subject: SubjectContents, stimuli: pd.DataFrame, normalization: Normalization
) -> Iterator[str]:
    """A note about sessions with so few training trials that mean and standard deviation are imprecise."""
    counts = _trials_in_statistics(subject, stimuli, normalization)
    few = counts[counts < _FEW_TRIALS]
    if len(few) and normalization in _BY_SESSION:
        yield (
            f"{subject.origin} ({subject.name}): session {few.index[0]} has only {few.iloc[0]} trials of training "
            f"images ({len(few)} sessions have fewer than {_FEW_TRIALS}), so its mean and deviation are inexact; the "
            "normalization `across-sessions` uses the trials of all sessions"
        )


def part_of_trials(subject: SubjectContents, stimuli: pd.DataFrame) -> pd.Series:
    """The part (train, validation, test) of each trial's image."""
    return stimuli.set_index("nsd_id")["part"].loc[subject.trials["nsd_id"]].reset_index(drop=True)


def _trials_in_statistics(
    subject: SubjectContents, stimuli: pd.DataFrame, normalization: Normalization
) -> pd.Series:
    """Number of trials of each session in the statistics, by the session's name if it has one."""
    label = "session_name" if "session_name" in subject.trials else "session"
    seen = pd.Series(sees(part_of_trials(subject, stimuli), normalization))
    return seen.groupby(subject.trials[label].to_numpy(), sort=False).sum()


def _require_distinct_names(contents: StoreContents) -> None:
    """Refuse names of subjects that people or file systems may confuse."""
    found: dict[str, str] = {}
    for subject in contents.subjects:
        other = found.get(_folded(subject.name))
        if other is not None:
            raise DataError(
                f"{contents.origin}: expected names of subjects that differ by more than case, zeros, accents' form or "
                f"spaces, found `{other}` and `{subject.name}`; rename one of them"
            )
        found[_folded(subject.name)] = subject.name


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold().strip().removeprefix("sub-")
    return re.sub(r"(?<!\d)0+(?=\d)", "", unicodedata.normalize("NFKC", plain))


def _require_columns(table: pd.DataFrame, columns: tuple[str, ...], where: str, what: str) -> None:
    for column in columns:
        if column not in table:
            raise DataError(
                f"{where}: expected the column `{column}` in {what}, found {', '.join(map(str, table))}; "
                "add it"
            )


def _require_numbers_in(table: pd.DataFrame, types: dict[str, str], where: str, what: str) -> None:
    require_numbers(table, {column: types[column] for column in types if column in table}, where, what)


def _require_unique(table: pd.DataFrame, columns: list[str], where: str, what: str) -> None:
    twice = table[table.duplicated(columns)]
    if len(twice):
        found = ", ".join(f"{column} {twice[column].iloc[0]}" for column in columns)
        raise DataError(
            f"{where}: expected every {what} once, found {found} twice ({len(twice)} in all); take the "
            "duplicates out"
        )
