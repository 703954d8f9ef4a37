"""Reader of NSD as MindEye, MindEye2 and MindLLM distribute it, with a table of their differences.

UMBRAE, MindBridge and others use MindEye's tars too.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from bitllm.config import nearest
from bitllm.data.formats.sidecar import (
    Blocks,
    ParsedDataset,
    Sidecar,
    blocks,
    caption_rows,
    coordinates_of,
    fingerprint,
    nsd_stimuli,
    read_stimulus_table,
)
from bitllm.data.io.hdf5 import hdf5_dataset, open_hdf5, read_dataset
from bitllm.data.io.pictures import decode_picture, picture_reader
from bitllm.data.io.tars import Sample, array_of, read_samples
from bitllm.data.io.values import whole_numbers
from bitllm.data.store.complete import with_validation_images
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.normalize import looks_z_scored
from bitllm.errors import DataError

_NO_SESSIONS = "sessions and runs are not in this format: all trials are of session 1"


@dataclass(frozen=True)
class _Subject:
    """Contents of one subject's files."""

    trials: pd.DataFrame
    """``session``, an image (``nsd_id`` or ``coco_id``), and ``shared`` or ``part``; optionally ``run`` and
    ``trial``."""
    n_voxels: int
    read_session: Callable[[int], np.ndarray]
    files: tuple[Path, ...]
    """Files with the betas; errors name the first."""
    encoded: dict[int, bytes] = field(default_factory=dict)
    """Encoded images in the files, by NSD id."""


@dataclass(frozen=True)
class _Format:
    """How to find, read and describe the files of one format."""

    patterns: tuple[str, ...]
    """Globs that match at least one file per subject; the first with a match is used."""
    name_part: int
    """Index of the part of a file name (separated by ``_``) that identifies the subject."""
    example: str
    advice: str
    read: Callable[[Path, str, Path], _Subject]
    """Reads a subject, given the root folder, the subject's name and its first file."""
    pictures: Callable[[Path, Sidecar, pd.DataFrame, Sequence[_Subject], list[str]], Blocks | None]
    no_pictures: str
    notes: tuple[str, ...]
    beta_version: str = "unknown"
    image: str = "nsd_id"
    """Kind of id of an image in the files."""
    is_z_scored: bool | None = True
    """``None`` if it is not documented; then the values decide."""
    is_sorted: bool = False
    """Whether selected subjects are in the order of the files, not in that of the selection."""


def read_processed(
    name: str, root: Path, sidecar: Sidecar, *, subjects: tuple[str, ...] | None = None
) -> ParsedDataset:
    """Read one of `FORMATS`.

    Parameters
    ----------
    name
        ``mindeye``, ``mindeye2`` or ``mindllm``.
    root
        The folder with the files.
    sidecar
        Captions, coordinates and the stimulus table, which these formats lack.
    subjects
        Subjects to read; by default all.
    """
    how = FORMATS[name]
    files = _files(how, root, subjects)
    found = {subject: how.read(root, subject, path) for subject, path in files.items()}
    notes = list(how.notes)
    seen = pd.concat([one.trials for one in found.values()])
    _require_one_part(seen, how.image, root)
    if how.image == "coco_id":
        stimuli = _stimuli_by_coco_id(seen, sidecar, root, notes)
    else:
        stimuli = nsd_stimuli(sidecar, seen["nsd_id"].to_numpy(), seen["shared"].to_numpy(), root)
    if "part" in seen and how.image == "nsd_id":
        parts = seen.groupby("nsd_id")["part"].first()
        stimuli["part"] = parts.loc[stimuli["nsd_id"]].to_numpy()
        defaults = StoreSettings(source=name)
        stimuli, drawn = with_validation_images(
            stimuli, validation_fraction=defaults.validation_fraction, seed=defaults.seed
        )
        notes += drawn
    number = dict(zip(stimuli[how.image].tolist(), stimuli["nsd_id"].tolist(), strict=True))
    atlases: dict[str, dict[int, str]] = {}
    made = [_contents(how, subject, one, number, sidecar, atlases, notes) for subject, one in found.items()]
    is_z_scored = all(subject.is_z_scored for subject in made)
    if how.is_z_scored is None:
        found_so = "look z-scored and stay as they are"
        if not is_z_scored:
            found_so = "do not look z-scored, so they are z-scored now"
        notes.append(f"how these betas were normalized is not documented: their values {found_so}")
    contents = StoreContents(
        subjects=made,
        stimuli=stimuli,
        captions=caption_rows(sidecar.captions, stimuli, notes, source=root),
        origin=str(root),
        pictures=how.pictures(root, sidecar, stimuli, [*found.values()], notes),
        atlases=atlases,
    )
    if contents.pictures is None:
        notes.append(f"{how.no_pictures}: the store is without pictures")
    settings = StoreSettings(
        source=name,
        beta_version=how.beta_version,
        normalization="as-delivered" if is_z_scored else "training",
    )
    return ParsedDataset(contents, settings, tuple(notes))


def _files(how: _Format, root: Path, subjects: tuple[str, ...] | None) -> dict[str, Path]:
    """The first file of each subject."""
    files: dict[str, Path] = {}
    of_patterns = (sorted(root.glob(pattern)) for pattern in how.patterns)
    for path in next((paths for paths in of_patterns if paths), []):
        part = path.name.split("_")[how.name_part].split(".")[0]
        files.setdefault(f"subj{int(part):02d}" if part.isdigit() else part, path)
    if not files:
        raise DataError(f"{root}: expected {how.example} and so on, found none; {how.advice}")
    unknown = [name for name in subjects or () if name not in files]
    if unknown:
        raise DataError(
            f"{root}: expected files of the subject `{unknown[0]}`, found none; {nearest(unknown[0], list(files))}"
        )
    wanted = sorted(subjects or files) if how.is_sorted else subjects or files
    return {name: files[name] for name in wanted}


def _require_one_part(seen: pd.DataFrame, image: str, root: Path) -> None:
    if "part" not in seen:
        return
    pairs = seen[[image, "part"]].drop_duplicates()
    both = pairs[pairs.duplicated(image, keep=False)].sort_values(image, kind="stable")
    if len(both):
        first = both[both[image] == both[image].iloc[0]]
        kind = "NSD" if image == "nsd_id" else "COCO"
        raise DataError(
            f"{root}: expected an image in one part only, found the {kind} id {first[image].iloc[0]} in "
            f"{' and in '.join(first['part'])} ({both[image].nunique()} such images); use files of one version"
        )


def _stimuli_by_coco_id(seen: pd.DataFrame, sidecar: Sidecar, root: Path, notes: list[str]) -> pd.DataFrame:
    """The images by NSD ids if there is a stimulus table, else by COCO ids."""
    stimuli = seen.drop_duplicates("coco_id")[["coco_id", "shared"]].reset_index(drop=True)
    stimuli["nsd_id"] = stimuli["coco_id"]
    stimuli["stimulus_id"] = stimuli["coco_id"].astype(str)
    if sidecar.stimulus_table is None:
        notes.append("without --stimulus-table the images are counted by their COCO ids")
        return stimuli
    table = read_stimulus_table(sidecar.stimulus_table)
    by_coco = pd.Series(table.index, index=table["cocoId"])
    missing = np.setdiff1d(stimuli["coco_id"], by_coco.index)
    if missing.size:
        raise DataError(
            f"{sidecar.stimulus_table}: expected the COCO id {missing[0]} of {root}, found none ({missing.size} "
            "missing); use COCO ids, as MindLLM does (these may be NSD ids)"
        )
    stimuli["nsd_id"] = by_coco.loc[stimuli["coco_id"]].to_numpy()
    return stimuli


def _contents(
    how: _Format,
    name: str,
    found: _Subject,
    number: dict[int, int],
    sidecar: Sidecar,
    atlases: dict[str, dict[int, str]],
    notes: list[str],
) -> SubjectContents:
    voxels, labels = coordinates_of(sidecar, name, found.n_voxels, found.files[0], notes)
    for atlas, names in labels.items():
        atlases.setdefault(atlas, {}).update(names)
    trials = found.trials.assign(nsd_id=found.trials[how.image].map(number))
    is_scored = looks_z_scored(found.read_session(1)) if how.is_z_scored is None else how.is_z_scored
    return SubjectContents(
        name=name,
        trials=trials[[column for column in ("session", "run", "trial", "nsd_id") if column in trials]],
        voxels=voxels,
        read_session=found.read_session,
        origin=str(found.files[0]),
        is_z_scored=is_scored,
        fingerprint=fingerprint(*found.files),
    )


# --- MindEye ----------------------------------------------------------------------------------------------------------

_MINDEYE_PARTS = {"train": "train", "val": "validation", "test": "test"}
_MINDEYE_MEMBERS = ("nsdgeneral.npy", "num_uniques.npy", "coco73k.npy", "jpg", "png")


def _read_mindeye(root: Path, name: str, _: Path) -> _Subject:
    """The tars determine the split. In spite of its name, ``coco73k`` is the 0-based NSD id.

    Rows of a sample beyond ``num_uniques`` repeat earlier ones and are ignored.
    """
    tars = [
        (part, path) for split, part in _MINDEYE_PARTS.items() for path in _mindeye_tars(root, split, name)
    ]
    betas: list[np.ndarray] = []
    rows_of: list[tuple[int, str]] = []
    encoded: dict[int, bytes] = {}
    seen = set()
    for part, path in tars:
        for sample in read_samples(path, _MINDEYE_MEMBERS):
            nsd_id, rows = _mindeye_sample(path, sample, betas[0].shape[1] if betas else None)
            if nsd_id in seen:
                raise DataError(
                    f"{path}: expected every image in one sample of a subject, found the NSD id {nsd_id} twice; "
                    "keep one version of the tars in the folder"
                )
            seen.add(nsd_id)
            betas.append(rows)
            rows_of += [(nsd_id, part)] * len(rows)
            if picture := sample.get("jpg") or sample.get("png"):
                encoded[nsd_id] = picture
    together = np.concatenate(betas)
    trials = pd.DataFrame(rows_of, columns=["nsd_id", "part"]).assign(session=1)
    trials["shared"] = trials["part"] == "test"
    files = tuple(path for _, path in tars)
    return _Subject(trials, together.shape[1], lambda _: together, files, encoded)


def _mindeye_tars(root: Path, split: str, name: str) -> list[Path]:
    tars = sorted(root.glob(f"{split}/{split}_{name}_*.tar"), key=_number_of)
    if not tars and split != "val":
        raise DataError(f"{root / split}: expected {split}_{name}_0.tar, found no tar; download it")
    return tars


def _mindeye_sample(path: Path, sample: Sample, n_voxels: int | None) -> tuple[int, np.ndarray]:
    """NSD id and betas [repeats, voxels] of a sample."""
    rows = array_of(path, sample, "nsdgeneral.npy")
    nsd_id, n_unique = (
        int(whole_numbers(array_of(path, sample, f"{key}.npy").reshape(-1)[:1], path, f"`{key}`")[0])
        for key in ("coco73k", "num_uniques")
    )
    n_voxels = rows.shape[-1] if n_voxels is None else n_voxels
    if rows.ndim != 2 or rows.shape[1] != n_voxels or not 1 <= n_unique <= len(rows):
        raise DataError(
            f"{path}: expected betas of repeats × {n_voxels} voxels and 1 to {len(rows)} of them real, found the shape "
            f"{rows.shape} and {n_unique}; download the tar again"
        )
    return nsd_id, rows[:n_unique]


def _number_of(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not (number.isascii() and number.isdigit()):
        raise DataError(
            f"{path}: expected a number at the end of the tar's name, found `{number}`; is it a copy of another tar? "
            "Remove or rename it"
        )
    return int(number)


def _mindeye_pictures(
    root: Path, _: Sidecar, stimuli: pd.DataFrame, found: Sequence[_Subject], __: list[str]
) -> Blocks | None:
    encoded = {nsd_id: picture for one in reversed(found) for nsd_id, picture in one.encoded.items()}
    if set(encoded) != set(stimuli["nsd_id"].tolist()):
        return None
    return blocks(stimuli["nsd_id"].to_numpy(), lambda n: decode_picture(io.BytesIO(encoded[n]), root))


# --- MindEye2 ---------------------------------------------------------------------------------------------------------

_BEHAVIOUR_COLUMNS = 17
_BEHAVIOUR = {"nsd_id": 0, "session": 2, "run": 3, "trial": 4, "row": 5, "shared": 16}
"""Columns of ``behav.npy``: 0 is the 0-based NSD id (its documentation says COCO), 5 the 0-based row of the betas."""
_MINDEYE2_PICTURES = "coco_images_224_float16.hdf5"


def _read_mindeye2(root: Path, name: str, path: Path) -> _Subject:
    """``test`` is an older version of ``new_test``; it is read only if the newer one is missing."""
    trials = _mindeye2_trials(root / "wds" / name)
    with open_hdf5(path, "betas") as file:
        shape = hdf5_dataset(file, "betas").shape
    if len(shape) != 2 or trials["row"].max() >= shape[0]:
        raise DataError(
            f"{path}: expected betas of trials × voxels with the row {trials['row'].max()} of behav.npy, found "
            f"the shape {shape}; betas and tars must be of one release (27,750 or 30,000 trials)"
        )

    def read_session(session: int) -> np.ndarray:
        rows = trials["row"][trials["session"] == session].to_numpy()
        with open_hdf5(path, "betas") as file:
            block = read_dataset(hdf5_dataset(file, "betas"), slice(rows[0], rows[-1] + 1))
        return block[rows - rows[0]]

    return _Subject(trials, shape[1], read_session, (path,))


def _mindeye2_trials(folder: Path) -> pd.DataFrame:
    test = folder / "new_test" if (folder / "new_test").is_dir() else folder / "test"
    tars = sorted([*(folder / "train").glob("[!.]*.tar"), *test.glob("[!.]*.tar")])
    if not tars:
        raise DataError(f"{folder}: expected train/*.tar and new_test/0.tar, found none; download them")
    rows = []
    for path in tars:
        for sample in read_samples(path, ("behav.npy",)):
            behaviour = array_of(path, sample, "behav.npy")
            if behaviour.shape != (1, _BEHAVIOUR_COLUMNS):
                raise DataError(
                    f"{path}: expected behav.npy of 1 × {_BEHAVIOUR_COLUMNS} columns, found the shape "
                    f"{behaviour.shape}; download the tar again"
                )
            rows.append(behaviour[0])
    table = np.stack(rows)[:, [*_BEHAVIOUR.values()]]
    trials = pd.DataFrame(
        whole_numbers(table[:, :-1], folder, "the numbers in behav.npy"), columns=[*_BEHAVIOUR][:-1]
    )
    trials["shared"] = table[:, -1] == 1
    trials = trials.sort_values("row", ignore_index=True)
    if trials["row"].duplicated().any():
        row = trials["row"][trials["row"].duplicated()].iloc[0]
        raise DataError(
            f"{folder}: expected every trial once, found the row {row} of the betas twice; keep each tar once"
        )
    return trials


def _mindeye2_pictures(
    root: Path, _: Sidecar, stimuli: pd.DataFrame, __: Sequence[_Subject], ___: list[str]
) -> Blocks | None:
    path, nsd_ids = root / _MINDEYE2_PICTURES, stimuli["nsd_id"].to_numpy()
    if not path.exists():
        return None
    with open_hdf5(path, "pictures") as file:
        shape = hdf5_dataset(file, "images").shape
    if len(shape) != 4 or shape[1] != 3 or shape[0] <= nsd_ids.max():
        raise DataError(
            f"{path}: expected pictures [images, 3, height, width] up to the NSD id {nsd_ids.max()}, found the shape "
            f"{shape}; download it again"
        )

    def picture(nsd_id: int) -> np.ndarray:
        with open_hdf5(path, "pictures") as file:
            values = read_dataset(hdf5_dataset(file, "images"), nsd_id).astype(np.float32)
        return np.round(values.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)

    return blocks(nsd_ids, picture)


# --- MindLLM ----------------------------------------------------------------------------------------------------------


def _read_mindllm(_: Path, __: str, path: Path) -> _Subject:
    """Groups ``train`` and ``test`` contain one group per trial; ``coco_id`` is COCO's id, not NSD's."""
    what = "MindLLM's trials"
    rows = []
    with open_hdf5(path, what) as file:
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
                rows.append((1, f"{part}/{key}", part, part == "test", int(coco_id[0]), n_voxels))
    trials = pd.DataFrame(rows, columns=["session", "key", "part", "shared", "coco_id", "n_voxels"])
    counts = trials["n_voxels"].value_counts()
    if len(counts) > 1:
        odd = trials[trials["n_voxels"] != counts.index[0]].iloc[0]
        raise DataError(
            f"{path}: expected {counts.index[0]} voxels in every trial, found {odd['n_voxels']} in `{odd['key']}`; "
            "copy it again"
        )

    def read_session(_: int) -> np.ndarray:
        with open_hdf5(path, what) as file:
            datasets = (hdf5_dataset(file, f"{key}/visual_voxels") for key in trials["key"])
            values = [read_dataset(one, trial_axis=None).reshape(-1) for one in datasets]
        return np.stack(values).astype(np.float32)

    return _Subject(trials, int(counts.index[0]), read_session, (path,))


def _mindllm_pictures(
    _: Path, sidecar: Sidecar, stimuli: pd.DataFrame, __: Sequence[_Subject], notes: list[str]
) -> Blocks | None:
    if sidecar.pictures is None:
        return None
    return blocks(stimuli["nsd_id"].to_numpy(), picture_reader(sidecar.pictures, stimuli, notes))


FORMATS = {
    "mindeye": _Format(
        patterns=("train/train_subj*_*.tar",),
        name_part=1,
        example="tars train/train_subj01_0.tar",
        advice="name the folder webdataset_avg_split",
        read=_read_mindeye,
        pictures=_mindeye_pictures,
        no_pictures="some samples have no picture",
        notes=(_NO_SESSIONS,),
        beta_version="b3 (MindEye1)",
    ),
    "mindeye2": _Format(
        patterns=("betas_all_subj*_fp32_renorm.hdf5",),
        name_part=2,
        example="betas_all_subj01_fp32_renorm.hdf5",
        advice="download them",
        read=_read_mindeye2,
        pictures=_mindeye2_pictures,
        no_pictures=f"no {_MINDEYE2_PICTURES}",
        notes=(
            "these betas were z-scored by their makers, perhaps with test trials: MindEye2's notebook takes mean and "
            "deviation from whole sessions, its paper from the training set; `bitllm prepare nsd` makes z-scores that "
            "see training trials only",
        ),
        beta_version="b2 (MindEye2 renorm)",
    ),
    "mindllm": _Format(
        patterns=("nsd0/subject_[1-8].h5", "subject_[1-8].h5"),
        name_part=1,
        example="subject_1.h5",
        advice="name MindLLM's data folder",
        read=_read_mindllm,
        pictures=_mindllm_pictures,
        no_pictures="no --pictures",
        notes=(_NO_SESSIONS,),
        image="coco_id",
        is_z_scored=None,
        is_sorted=True,
    ),
}
"""The formats by their names on the command line."""
