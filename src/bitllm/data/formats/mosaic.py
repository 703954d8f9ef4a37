"""Reader of MOSAIC: eight data sets in one HDF5 layout, on fsLR with 91,282 grayordinates.

A file holds one subject of one data set: the group ``betas`` with a dataset of one axis for each trial, named
``sub-01_NSD_stimulus-000000000139_phase-train_rep-0``. Betas are z-scores by the training trials of a session. Neither
sessions nor the order of the trials are in the files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float32, Int

from bitllm.config import nearest
from bitllm.data.formats.sidecar import (
    COORDINATES,
    ParsedDataset,
    Sidecar,
    blocks,
    caption_rows,
    fingerprint,
)
from bitllm.data.formats.trials import stimuli_of
from bitllm.data.io.captions import coco_id_of, read_caption_file
from bitllm.data.io.grayordinates import GLASSER, Grayordinates, read_glasser, read_grayordinates
from bitllm.data.io.hdf5 import hdf5_dataset, open_hdf5, read_dataset
from bitllm.data.io.pictures import picture_reader
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.errors import ConfigError, DataError

_KEY = re.compile(r"(sub-\d+_[A-Za-z0-9]+)_stimulus-(.+)_phase-(train|test)_rep-(\d+)")
_FILE = re.compile(r"(sub-\d+_[A-Za-z0-9]+?)(?:[_.].*)?")
_WHAT = "a subject of MOSAIC"
_BLOCK = 400
"""Trials read at a time; they are stored as a session, because the files state none."""


@dataclass(frozen=True)
class MosaicTrials:
    """Reads a block of trials of one file; picklable, for worker processes."""

    path: Path
    keys: tuple[str, ...]
    """Name of each trial, in the order of the store."""
    columns: Int[np.ndarray, " voxels"]
    """Grayordinates to read."""

    def __call__(self, session: int) -> Float32[np.ndarray, "trials voxels"]:
        """The z-scores of a block, counted from 1."""
        keys = self.keys[(session - 1) * _BLOCK :][:_BLOCK]
        betas = np.empty((len(keys), len(self.columns)), np.float32)
        with open_hdf5(self.path, _WHAT) as file:
            for row, key in enumerate(keys):
                dataset = hdf5_dataset(file, f"betas/{key}")
                betas[row] = read_dataset(dataset, trial_axis=None)[self.columns]
        return betas


@dataclass(frozen=True)
class Cortex:
    """Files that say where the grayordinates lie, and which of them to read."""

    grayordinates: Path
    """Any CIFTI file with MOSAIC's 91,282 grayordinates."""
    surfaces: Path
    """Folder with the midthickness surfaces of fsLR 32k."""
    labels: Path | None = None
    """Glasser's areas (.dlabel.nii)."""
    areas: tuple[str, ...] = ()
    """Areas to read, such as V1 and FFC; by default the whole cortex."""
    structures: Literal["cortex", "all"] = "cortex"
    """Whether to read the voxels below the cortex too."""


def read_mosaic(files: Sequence[Path], sidecar: Sidecar, cortex: Cortex) -> ParsedDataset:
    """Read subjects of one or several of MOSAIC's data sets into one store.

    Images of COCO are identified by their COCO id, so an image that two data sets share is one image of the store. It
    is a test image if it is one in any of them. Trials with images without captions are left out.

    Parameters
    ----------
    files
        ``sub-01_NSD.hdf5`` and so on.
    sidecar
        Captions (COCO's annotations, or a map from the names of the images) and, optionally, the pictures.
    cortex
        Files that say where the grayordinates lie.

    References
    ----------
    Lahner et al. 2025 (bioRxiv 2025.11.28.690060). The names of the trials are those that the authors' preprocessing
    writes; they were not compared with the released files.
    """
    notes: list[str] = []
    tables = [_trials(Path(path)) for path in files]
    names = [str(table["subject"].iloc[0]) for table in tables]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{files[-1]}: expected one file for each subject, found two of {twice}; name one of them"
        )
    every = pd.concat(tables, ignore_index=True)
    kept = _with_captions(every, sidecar, notes)
    stimuli, of_images = stimuli_of(kept.drop(columns="coco_id"), Path(files[0]))
    stimuli["coco_id"] = [coco_id_of(name) for name in stimuli["stimulus_id"]]
    notes.extend(of_images)
    places = read_grayordinates(cortex.grayordinates, cortex.surfaces)
    areas, labels = _areas(cortex, places)
    number = dict(zip(stimuli["stimulus_id"], stimuli["nsd_id"].tolist(), strict=True))
    kept = kept.assign(nsd_id=kept["stimulus_id"].map(number))
    wanted = _wanted(cortex, places, areas, labels)
    table = pd.DataFrame(places.mm, columns=list(COORDINATES)).assign(i=range(len(areas)), j=0, k=0)
    if cortex.labels is not None:
        table[GLASSER] = areas
    found = [
        _subject(Path(str(path)), part, table, wanted, notes)
        for path, part in kept.groupby("path", sort=False)
    ]
    notes.extend(_what_is_unknown(kept))
    pictures = None
    if sidecar.pictures is not None:
        pictures = blocks(stimuli["nsd_id"].to_numpy(), picture_reader(sidecar.pictures, stimuli, notes))
    contents = StoreContents(
        subjects=found,
        stimuli=stimuli,
        captions=caption_rows(sidecar.captions, stimuli, notes, source=Path(files[0])),
        origin=str(files[0]),
        pictures=pictures,
        atlases={} if cortex.labels is None else {GLASSER: labels},
    )
    settings = StoreSettings(
        source="mosaic",
        beta_version="GLMsingle TYPED",
        space="fsLR",
        roi="+".join(cortex.areas) or cortex.structures,
        normalization="as-delivered",
    )
    return ParsedDataset(contents, settings, tuple(notes))


def _trials(path: Path) -> pd.DataFrame:
    """``subject``, ``key``, ``stimulus_id``, ``coco_id``, ``phase``, ``repetition`` and ``path`` of each trial."""
    with open_hdf5(path, _WHAT) as file:
        group = file.get("betas")
        if not isinstance(group, h5py.Group) or not len(group):
            raise DataError(
                f"{path}: expected a group `betas` with a dataset for each trial, found "
                f"{', '.join(sorted(file)) or 'nothing'}; name a subject's file, such as sub-01_NSD.hdf5"
            )
        rows = [_trial(path, key, dict(group[key].attrs)) for key in group]
    table = pd.DataFrame(rows, columns=["subject", "key", "stimulus_id", "phase", "repetition"])
    subject = str(table["subject"].iloc[0])
    other = table["subject"][table["subject"] != subject]
    named = _FILE.fullmatch(path.name)
    if len(other) or (named is not None and named[1] != subject):
        raise DataError(
            f"{path}: expected trials of one subject, that of the file's name, found those of {subject}"
            f"{' and ' + str(other.iloc[0]) if len(other) else ''}; give the file its own name, or name the files of "
            "single subjects"
        )
    table = table.sort_values(["phase", "stimulus_id", "repetition"], ignore_index=True)
    wrong = table[table.groupby("stimulus_id").cumcount() != table["repetition"]]
    if len(wrong):
        raise DataError(
            f"{path}: expected the repetitions of an image from 0 without a gap, found rep-"
            f"{wrong['repetition'].iloc[0]} of `{wrong['stimulus_id'].iloc[0]}` ({len(wrong)} such trials); copy it "
            "again"
        )
    coco_id = [coco_id_of(name) for name in table["stimulus_id"]]
    return table.assign(path=str(path), coco_id=coco_id)


def _trial(path: Path, key: str, attributes: dict[str, object]) -> tuple[str, str, str, str, int]:
    found = _KEY.fullmatch(key)
    if found is None:
        raise DataError(
            f"{path}: expected trials such as sub-01_NSD_stimulus-000000000139_phase-train_rep-0, found `{key}`; name "
            "a subject's file of MOSAIC"
        )
    subject, stimulus, phase, repetition = found.groups()
    for name, value in (("phase", phase), ("repetition", repetition)):
        if name in attributes and str(attributes[name]) != value:
            raise DataError(
                f"{path}: expected the attribute {name} = {value} of `{key}`, as in its name, found "
                f"{attributes[name]}; copy it again"
            )
    stimulus = stimulus.removeprefix("COCO_train2014_")
    return subject, key, stimulus, phase, int(repetition)


def _with_captions(every: pd.DataFrame, sidecar: Sidecar, notes: list[str]) -> pd.DataFrame:
    """Trials with images of COCO, or if the captions are maps, with images that these name; with their part."""
    read = [read_caption_file(path) for path in sidecar.captions]
    if all(not file.is_coco for file in read):
        named = {image for file in read for image in file.captions}
        kept = every[every["stimulus_id"].isin(named)]
    else:
        kept = every[every["coco_id"] >= 0]
    without = every.drop(kept.index)
    gone = sorted(set(every["subject"]) - set(kept["subject"]))
    if gone:
        own = every[every["subject"] == gone[0]]
        raise DataError(
            f"{own['path'].iloc[0]}: expected images with captions, found none among {own['stimulus_id'].nunique()} "
            f"(the first is `{own['stimulus_id'].iloc[0]}`); name captions with --captions: COCO's annotations, or a "
            "map from the names of the images"
        )
    if len(without):
        notes.append(f"{len(without)} of {len(every)} trials show images without captions; they are left out")
    is_test = kept["stimulus_id"].isin(kept["stimulus_id"][kept["phase"] == "test"])
    moved = kept["stimulus_id"][is_test & (kept["phase"] == "train")].nunique()
    if moved:
        notes.append(
            f"{moved} images are for training in one data set and for test in another; they are for test"
        )
    return kept.assign(split=np.where(is_test, "test", "train"))


def _areas(cortex: Cortex, places: Grayordinates) -> tuple[np.ndarray, dict[int, str]]:
    if cortex.labels is None:
        return np.zeros(len(places.mm), np.int64), {}
    return read_glasser(cortex.labels, places)


def _wanted(cortex: Cortex, places: Grayordinates, areas: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """Which grayordinates to read."""
    if not cortex.areas:
        return places.is_cortex if cortex.structures == "cortex" else np.ones(len(areas), bool)
    if cortex.labels is None:
        raise ConfigError(
            "--areas: expected Glasser's areas to choose from, found none; name them with --labels"
        )
    number = {name: n for n, name in names.items()}
    for area in cortex.areas:
        if area not in number:
            hint = nearest(area, list(number))
            raise ConfigError(f"--areas: expected areas of {cortex.labels}, found `{area}`; {hint}")
    return np.isin(areas, [number[area] for area in cortex.areas])


def _subject(
    path: Path, trials: pd.DataFrame, table: pd.DataFrame, wanted: np.ndarray, notes: list[str]
) -> SubjectContents:
    with open_hdf5(path, _WHAT) as file:
        shape = hdf5_dataset(file, f"betas/{trials['key'].iloc[0]}").shape
        if shape != (len(table),):
            raise DataError(
                f"{path}: expected {len(table)} grayordinates in a trial, as --grayordinates has, found the shape "
                f"{shape}; name a CIFTI file with the same grayordinates (91k)"
            )
        undefined = _undefined(file, trials["key"].tolist())
    columns = np.flatnonzero(wanted & ~np.isin(np.arange(len(table)), undefined))
    if len(columns) < wanted.sum():
        notes.append(
            f"{path}: {wanted.sum() - len(columns)} grayordinates without a value in some trials are left out"
        )
    sessions = np.arange(len(trials)) // _BLOCK + 1
    return SubjectContents(
        name=str(trials["subject"].iloc[0]),
        trials=pd.DataFrame({"session": sessions, "nsd_id": trials["nsd_id"].to_numpy()}),
        voxels=table.iloc[columns].reset_index(drop=True),
        read_session=MosaicTrials(path, tuple(trials["key"]), columns),
        origin=str(path),
        is_z_scored=True,
        fingerprint=fingerprint(path),
    )


def _undefined(file: h5py.File, keys: Sequence[str]) -> np.ndarray:
    """Grayordinates without a value (NaN) in at least one trial."""
    if "nan_indices_all" in file:
        return read_dataset(hdf5_dataset(file, "nan_indices_all"), trial_axis=None).astype(np.int64)
    found = [np.asarray(file[f"betas/{key}"].attrs.get("nan_indices", ()), np.int64) for key in keys]
    return np.unique(np.concatenate(found))


def _what_is_unknown(kept: pd.DataFrame) -> list[str]:
    notes = [
        f"the files state no sessions and no order of the trials: blocks of {_BLOCK} trials, sorted by image, are "
        "stored as sessions",
        "the betas are believed to be z-scores by training trials, as MOSAIC's authors describe them",
    ]
    if kept["subject"].str.partition("_")[2].nunique() > 1:
        notes.append(
            "some people took part in several data sets (participants_shared.tsv of MOSAIC); a split by subject does "
            "not see that"
        )
    return notes
