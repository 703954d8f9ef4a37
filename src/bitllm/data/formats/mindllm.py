"""MindLLM's HDF5: one group a trial, named by COCO ids."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from bitllm.data.formats.beside import (
    Beside,
    Reading,
    blocks,
    caption_rows,
    fingerprint,
    places_of,
    read_stimulus_table,
)
from bitllm.data.io.hdf5 import hdf5_dataset, open_hdf5, read_dataset
from bitllm.data.io.pictures import picture_reader
from bitllm.data.io.values import whole_numbers
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.normalize import looks_z_scored
from bitllm.errors import DataError


def read_mindllm(root: Path, beside: Beside, *, subjects: tuple[str, ...] | None = None) -> Reading:
    """Read ``nsd0/subject_{1..8}.h5``: groups train and test, a group a trial.

    ``coco_id`` is COCO's id, not NSD's; with ``--stimulus-table`` the store counts by NSD ids, without by
    COCO ids.
    """
    folder = root / "nsd0" if (root / "nsd0").is_dir() else root
    files = {
        f"subj{int(path.stem.split('_')[1]):02d}": path for path in sorted(folder.glob("subject_[1-8].h5"))
    }
    files = {name: path for name, path in files.items() if subjects is None or name in subjects}
    if not files or (subjects and set(subjects) - set(files)):
        raise DataError(
            f"{folder}: expected subject_1.h5 and so on of {', '.join(subjects or ('any subject',))}, found "
            f"{', '.join(files) or 'none'}; name MindLLM's data folder"
        )
    trials = {name: _trials(path) for name, path in files.items()}
    seen = pd.concat(trials.values())
    stimuli = _stimuli(beside, seen, root)
    number = dict(zip(stimuli["coco_id"].tolist(), stimuli["nsd_id"].tolist(), strict=True))
    atlases: dict[str, dict[int, str]] = {}
    notes: list[str] = []
    found, scored = [], True
    for name, path in files.items():
        trials[name]["nsd_id"] = trials[name]["coco_id"].map(number)
        subject, is_scored = _subject(name, path, trials[name], beside, atlases, notes)
        found.append(subject)
        scored = scored and is_scored
    pictures = None
    if beside.pictures is not None:
        pictures = blocks(stimuli["nsd_id"].to_numpy(), picture_reader(beside.pictures, stimuli, notes))
    contents = StoreContents(
        subjects=found,
        stimuli=stimuli,
        captions=caption_rows(beside, stimuli, root, notes),
        origin=str(root),
        pictures=pictures,
        atlases=atlases,
    )
    normalization = "as-delivered" if scored else "training"
    settings = StoreSettings(source="mindllm", normalization=normalization)
    notes += [
        "sessions and runs are not in this format: all trials are of session 1",
        "how these betas were normalized is not documented: their values "
        + (
            "look z-scored and stay as they are"
            if scored
            else "do not look z-scored, so they are z-scored now"
        ),
    ]
    if beside.stimulus_table is None:
        notes.append("without --stimulus-table the images are counted by their COCO ids")
    if pictures is None:
        notes.append("no --pictures: the store is without pictures")
    return Reading(contents, settings, tuple(notes))


def _trials(path: Path) -> pd.DataFrame:
    rows = []
    with open_hdf5(path, "MindLLM's trials") as file:
        for part in ("train", "test"):
            group = file.get(part)
            if not isinstance(group, h5py.Group) or not len(group):
                raise DataError(
                    f"{path}: expected the groups train and test with trials, found none in `{part}`; copy it again"
                )
            for key in sorted(group):
                stored = read_dataset(hdf5_dataset(file, f"{part}/{key}/coco_id"), trial_axis=None)
                coco_id = whole_numbers(stored.reshape(-1)[:1], path, f"the coco_id of `{part}/{key}`")
                n_voxels = hdf5_dataset(file, f"{part}/{key}/visual_voxels").size
                rows.append((f"{part}/{key}", part, int(coco_id[0]), n_voxels))
    trials = pd.DataFrame(rows, columns=["key", "part", "coco_id", "n_voxels"])
    counts = trials["n_voxels"].value_counts()
    if len(counts) > 1:
        odd = trials[trials["n_voxels"] != counts.index[0]].iloc[0]
        raise DataError(
            f"{path}: expected {counts.index[0]} voxels in every trial, found {odd['n_voxels']} in `{odd['key']}`; "
            "copy it again"
        )
    return trials


def _stimuli(beside: Beside, seen: pd.DataFrame, root: Path) -> pd.DataFrame:
    parts = seen.groupby("coco_id")["part"].nunique()
    if (parts > 1).any():
        raise DataError(
            f"{root}: expected an image in train or in test, found the COCO image {parts.index[parts > 1][0]} in both "
            f"({(parts > 1).sum()} in all); use files of one version"
        )
    stimuli = seen.drop_duplicates("coco_id")[["coco_id", "part"]].reset_index(drop=True)
    stimuli["shared"] = stimuli["part"] == "test"
    stimuli["nsd_id"] = stimuli["coco_id"]
    if beside.stimulus_table is not None:
        table = read_stimulus_table(beside.stimulus_table)
        by_coco = pd.Series(table.index, index=table["cocoId"])
        missing = np.setdiff1d(stimuli["coco_id"], by_coco.index)
        if missing.size:
            raise DataError(
                f"{beside.stimulus_table}: expected the COCO id {missing[0]} of {root}, found none ({missing.size} "
                "missing); are these NSD ids? MindLLM counts by COCO ids"
            )
        stimuli["nsd_id"] = by_coco.loc[stimuli["coco_id"]].to_numpy()
    stimuli["stimulus_id"] = stimuli["coco_id"].astype(str)
    # The other training images set aside for choices are drawn by the store, as everywhere.
    return stimuli.drop(columns="part")


def _subject(
    name: str,
    path: Path,
    trials: pd.DataFrame,
    beside: Beside,
    atlases: dict[str, dict[int, str]],
    notes: list[str],
) -> tuple[SubjectContents, bool]:
    def read_session(_: int) -> np.ndarray:
        with open_hdf5(path, "MindLLM's trials") as file:
            datasets = (hdf5_dataset(file, f"{key}/visual_voxels") for key in trials["key"])
            rows = [read_dataset(one, trial_axis=None).reshape(-1) for one in datasets]
        return np.stack(rows).astype(np.float32)

    voxels, labels = places_of(beside, name, int(trials["n_voxels"].iloc[0]), path, notes)
    for atlas, found in labels.items():
        atlases.setdefault(atlas, {}).update(found)
    is_scored = looks_z_scored(read_session(1))
    subject = SubjectContents(
        name=name,
        trials=pd.DataFrame({"session": 1, "nsd_id": trials["nsd_id"]}),
        voxels=voxels,
        read_session=read_session,
        origin=str(path),
        is_z_scored=is_scored,
        fingerprint=fingerprint(path),
    )
    return subject, is_scored
