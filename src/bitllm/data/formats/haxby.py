"""Haxby et al. 2001: fMRI of people who look at blocks of pictures of eight categories.

Two layouts are read: that of nilearn's `fetch_haxby`, and PyMVPA's copy of one axial slice of the first subject.

    FOLDER/subjN/  bold.nii.gz  labels.txt  mask4_vt.nii.gz     nilearn; FOLDER may also be its parent or one subjN
    FOLDER/        bold.nii.gz  attributes_literal.txt          one slice

Each block (24 s, about 9 volumes) is one image of the store: the mean of its volumes. The captions of a block are made
from templates, with the name of its category; the category is also the object of the image.

References
----------
Haxby et al. (2001), Science 293, 2425-2430. Block averages after linear detrending and z-scoring of each run, with
labels shifted by 5 s for the hemodynamic delay, as in the tutorials of PyMVPA and nilearn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from bitllm.config import nearest
from bitllm.data.formats.series import read_mask
from bitllm.data.formats.sidecar import COORDINATES, ParsedDataset, fingerprint
from bitllm.data.io.volumes import Grid, grid_of, open_volume, require_same_grid, volume_values
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.errors import ConfigError, DataError
from bitllm.files import read_text, require_file

LICENSE = "CC BY-SA 3.0"
CITATION = (
    "Haxby, Gobbini, Furey, Ishai, Schouten and Pietrini (2001): Distributed and overlapping representations of faces "
    "and objects in ventral temporal cortex. Science 293, 2425-2430"
)

CATEGORIES = {
    "bottle": ("bottle", "a bottle"),
    "cat": ("cat", "a cat"),
    "chair": ("chair", "a chair"),
    "face": ("face", "a face"),
    "house": ("house", "a house"),
    "scissors": ("scissors", "a pair of scissors"),
    "scrambledpix": ("scrambled picture", "a scrambled picture"),
    "shoe": ("shoe", "a shoe"),
}
"""Label of a block → category of the store's objects, and its name in captions."""

TEMPLATES = (
    "A photo of {}.",
    "A black and white image of {}.",
    "This is {}.",
    "A gray photo that shows {}.",
    "The image shows {}.",
    "There is {} in the photo.",
)
CAPTIONS_PER_BLOCK = 3
"""Each block has three of the templates; the next run begins with the next one, so that captions differ."""

SHIFT_VOLUMES = 2
"""Volumes by which labels are shifted: 5 s at a repetition time of 2.5 s."""

_REST = "rest"
_VT = "mask4_vt.nii.gz"
_LABELS = ("labels.txt", "attributes_literal.txt")
_SUPERCATEGORY = "haxby2001"
_SUBJECTS = tuple(f"subj{n}" for n in range(1, 7))
_NILEARN = "install it with `pip install 'bitllm[maps]'`"


class Block(NamedTuple):
    """One block: consecutive volumes of one category in one run."""

    run: int
    """Number of the run, from 1."""
    category: str
    volumes: range
    """Volumes whose mean is the block's beta, after the shift."""


@dataclass(frozen=True)
class SubjectFolder:
    """The files of one subject."""

    name: str
    bold: Path
    labels: Path
    mask: Path | None
    """Ventral temporal mask; None for the layout of one slice."""


def read_haxby(folder: Path, *, subjects: Sequence[str] | None = None) -> ParsedDataset:
    """Read blocks of Haxby et al. 2001 as images with captions and categories.

    Parameters
    ----------
    folder
        Folder in either layout.
    subjects
        Subjects to read, such as ``subj2``; by default all in the folder.

    Returns
    -------
    ParsedDataset
        Betas in standard deviations of the run's time series, in float64. Coordinates are in mm of the subject's own
        volume, so one model cannot be trained on several subjects.

    Raises
    ------
    DataError
        If a file is missing, damaged, or does not match the others.
    """
    notes: list[str] = []
    found = _subject_folders(Path(folder))
    if subjects and (unknown := sorted(set(subjects) - set(found))):
        raise DataError(
            f"{folder}: expected the subjects {', '.join(subjects)}, found {', '.join(found)}; "
            f"{nearest(unknown[0], list(found))}"
        )
    chosen = [one for name, one in found.items() if not subjects or name in subjects]
    contents: list[SubjectContents] = []
    images: list[pd.DataFrame] = []
    for one in chosen:
        subject, table = _read_subject(one, sum(len(table) for table in images), notes)
        contents.append(subject)
        images.append(table)
    blocks = pd.concat(images, ignore_index=True)
    has_masks = all(one.mask is not None for one in chosen)
    return ParsedDataset(
        StoreContents(
            subjects=contents,
            stimuli=blocks[["nsd_id", "stimulus_name"]].assign(shared=False, part="train"),
            captions=_captions(blocks),
            objects=_objects(blocks),
            origin=str(folder),
        ),
        StoreSettings(
            source="haxby2001",
            beta_version="block means",
            space="native",
            roi="ventral temporal cortex" if has_masks else "brain voxels of one slice",
            normalization="none",
            license=LICENSE,
            citation=CITATION,
        ),
        (
            *notes,
            "betas are block means in standard deviations of the run's time series; runs share no statistic",
            "all blocks have the part train: make folds with the split `leave-one-run-out`",
            f"license of the data: {LICENSE}; cite: {CITATION}",
        ),
    )


def subjects_in(folder: Path) -> tuple[str, ...]:
    """Names of the subjects in a folder, in order."""
    return tuple(_subject_folders(Path(folder)))


def fetch_haxby(folder: Path | None, subject: str) -> Path:
    """Download one subject with nilearn; returns the folder of the data.

    Parameters
    ----------
    folder
        Where to save them; by default nilearn's folder for data.
    subject
        For example ``subj2``.

    Raises
    ------
    DataError
        If the download fails, for example because there is no network.
    """
    if subject not in _SUBJECTS:
        raise ConfigError(
            f"haxby: expected a subject, found `{subject}`; {nearest(subject, list(_SUBJECTS))}"
        )
    try:
        from nilearn import datasets
    except ImportError:
        raise DataError(
            f"haxby: expected nilearn for the download, found it is not installed; {_NILEARN}"
        ) from None
    try:
        made = datasets.fetch_haxby(
            data_dir=None if folder is None else str(folder),
            subjects=[_SUBJECTS.index(subject) + 1],
            verbose=0,
        )
    except Exception as error:  # noqa: BLE001 - nilearn passes on what requests, urllib and tarfile raise
        reason = str(error).strip().replace("\n", " ")[:160]
        raise DataError(
            f"haxby: expected a folder with the data, or a network to download {subject} of Haxby et al. 2001 (about "
            f"300 MB), found none ({type(error).__name__}: {reason}); name the folder (in a recipe --data.haxby FOLDER)"
        ) from None
    return Path(made["func"][0]).parent


def _subject_folders(folder: Path) -> dict[str, SubjectFolder]:
    """Folders of subjects by name, in either layout."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of Haxby et al. 2001, found none; check the path")
    for place in (folder, folder / "haxby2001"):
        names = [name for name in _SUBJECTS if (place / name).is_dir()]
        if names:
            return {name: _subject_folder(place / name, name) for name in names}
    if not (folder / "bold.nii.gz").is_file():
        raise DataError(
            f"{folder}: expected subj1 to subj6 as nilearn's fetch_haxby leaves them, or bold.nii.gz with "
            f"{' or '.join(_LABELS)}, found neither; name another folder"
        )
    name = folder.resolve().name if folder.resolve().name in _SUBJECTS else _SUBJECTS[0]
    return {name: _subject_folder(folder, name)}


def _subject_folder(place: Path, name: str) -> SubjectFolder:
    labels = next((place / file for file in _LABELS if (place / file).is_file()), place / _LABELS[0])
    require_file(labels, "the labels of the volumes")
    mask = place / _VT
    if not mask.is_file() and labels.name == _LABELS[0]:
        raise DataError(
            f"{mask}: expected the ventral temporal mask of {name}, found none; download the subject again"
        )
    return SubjectFolder(name, place / "bold.nii.gz", labels, mask if mask.is_file() else None)


def _read_subject(
    files: SubjectFolder, first_id: int, notes: list[str]
) -> tuple[SubjectContents, pd.DataFrame]:
    """A subject's betas, and the table of its blocks: ``nsd_id``, ``run``, ``category``, ``stimulus_name``."""
    image = open_volume(files.bold, "the BOLD series")
    if len(image.shape) != 4:
        raise DataError(
            f"{files.bold}: expected a series of volumes (4 axes), found the shape {image.shape}; name the series"
        )
    table = _read_labels(files.labels, image.shape[3])
    values = volume_values(image, files.bold, "the BOLD series")
    mask, grid = _voxels(files, values, grid_of(image, files.bold))
    notes.extend(grid.notes)
    series = values[mask].T.astype(np.float64)
    if not np.isfinite(series).all():
        raise DataError(
            f"{files.bold}: expected numbers, found NaN or infinity in {(~np.isfinite(series)).any(axis=0).sum()} "
            "voxels of the mask; download it again"
        )
    blocks = _blocks(table, files, notes)
    series = clean_runs(series, table["run"].to_numpy())
    betas = np.stack([series[block.volumes].mean(axis=0) for block in blocks])
    images = pd.DataFrame(
        {
            "nsd_id": first_id + np.arange(len(blocks)),
            "run": [block.run for block in blocks],
            "category": [block.category for block in blocks],
        }
    )
    images["trial"] = images.groupby("run").cumcount() + 1
    images["stimulus_name"] = [f"{files.name} run {block.run} {block.category}" for block in blocks]
    ijk = np.argwhere(mask)
    voxels = pd.DataFrame(ijk, columns=["i", "j", "k"])
    voxels[list(COORDINATES)] = grid.mm(ijk)
    subject = SubjectContents(
        name=files.name,
        trials=images[["nsd_id", "run", "trial"]].assign(session=1),
        voxels=voxels,
        read_session=lambda _: betas,
        origin=str(files.bold),
        fingerprint=fingerprint(files.bold, files.labels),
    )
    return subject, images


def clean_runs(
    series: Float[np.ndarray, "volumes voxels"], runs: np.ndarray
) -> Float[np.ndarray, "volumes voxels"]:
    """The time series of each run without its linear trend, z-scored (nilearn; ddof 1, constant voxels are 0)."""
    try:
        from nilearn.signal import clean
    except ImportError:
        raise DataError(
            f"haxby: expected nilearn to detrend the runs, found it is not installed; {_NILEARN}"
        ) from None
    parts = [
        clean(series[runs == run], detrend=True, standardize="zscore_sample", ensure_finite=False)
        for run in dict.fromkeys(runs.tolist())
    ]
    return np.concatenate(parts)


def _voxels(files: SubjectFolder, values: np.ndarray, grid: Grid) -> tuple[Bool[np.ndarray, "x y z"], Grid]:
    """The ventral temporal mask, or the brain voxels of a slice, and the grid of their coordinates."""
    if files.mask is None:
        mask = brain_voxels(values, files.bold)
    else:
        mask, of_mask = read_mask(files.mask)
        require_same_grid(of_mask, grid, "a mask")
        grid = of_mask if grid.affine is None else grid
    if grid.affine is None:
        raise DataError(
            f"{files.bold}: expected a header that says where the voxels lie, found no affine; download it again"
        )
    return mask, grid


def brain_voxels(values: np.ndarray, path: Path) -> Bool[np.ndarray, "x y z"]:
    """Voxels that vary; the copy of one slice is 0 outside of the brain."""
    found = values.max(axis=3) > values.min(axis=3)
    if not found.any():
        raise DataError(f"{path}: expected voxels that vary, found none; download it again")
    return found


def _read_labels(path: Path, n_volumes: int) -> pd.DataFrame:
    """``label`` and ``run`` (from 1) of every volume."""
    lines = [
        line.split() for line in read_text(path, "the labels of the volumes").splitlines() if line.strip()
    ]
    if lines and lines[0] == ["labels", "chunks"]:
        lines = lines[1:]
    for number, cells in enumerate(lines, start=1):
        if len(cells) != 2 or not cells[1].isdecimal():
            raise DataError(
                f"{path}: expected a label and the number of a run for each volume, found `{' '.join(cells)}` for "
                f"volume {number}; download it again"
            )
        if cells[0] not in CATEGORIES and cells[0] != _REST:
            raise DataError(
                f"{path}: expected a category of Haxby et al. 2001 or rest, found `{cells[0]}` for volume {number}; "
                f"{nearest(cells[0], [*CATEGORIES, _REST])}"
            )
    if len(lines) != n_volumes:
        raise DataError(
            f"{path}: expected {n_volumes} labels, one for each volume of the series, found {len(lines)}; both must be "
            "of one subject"
        )
    runs = [int(run) for _, run in lines]
    if runs != sorted(runs):
        raise DataError(
            f"{path}: expected the volumes in the order of the runs, found run {max(runs)} before another; download "
            "it again"
        )
    return pd.DataFrame({"label": [label for label, _ in lines], "run": [run + 1 for run in runs]})


def _blocks(table: pd.DataFrame, files: SubjectFolder, notes: list[str]) -> list[Block]:
    """Consecutive volumes of one category, shifted within their run."""
    change = (table != table.shift()).any(axis=1).cumsum()
    last = table.groupby("run").tail(1)
    end_of_run = dict(zip(last["run"].tolist(), (last.index + 1).tolist(), strict=True))
    found = []
    for _, rows in table.groupby(change, sort=False):
        label, run = str(rows["label"].iloc[0]), int(rows["run"].iloc[0])
        start = int(rows.index[0]) + SHIFT_VOLUMES
        stop = min(int(rows.index[-1]) + 1 + SHIFT_VOLUMES, end_of_run[run])
        if label != _REST and stop > start:
            found.append(Block(run, label, range(start, stop)))
    n_runs = len({block.run for block in found})
    if n_runs < 2:
        raise DataError(
            f"{files.labels}: expected blocks of categories in at least 2 runs, found them in {n_runs}; check the file"
        )
    if n_runs < table["run"].nunique():
        notes.append(f"{files.labels}: {table['run'].nunique() - n_runs} runs without labels are left out")
    return found


def _captions(blocks: pd.DataFrame) -> pd.DataFrame:
    rows = [
        (nsd_id, TEMPLATES[(run + place) % len(TEMPLATES)].format(CATEGORIES[category][1]))
        for nsd_id, run, category in blocks[["nsd_id", "run", "category"]].itertuples(index=False)
        for place in range(CAPTIONS_PER_BLOCK)
    ]
    return pd.DataFrame(rows, columns=["nsd_id", "caption"])


def _objects(blocks: pd.DataFrame) -> pd.DataFrame:
    """The category of each block as one object that fills the image."""
    return pd.DataFrame(
        {
            "nsd_id": blocks["nsd_id"],
            "category": [CATEGORIES[category][0] for category in blocks["category"]],
            "supercategory": _SUPERCATEGORY,
            "is_crowd": False,
            "x": 0.0,
            "y": 0.0,
            "w": 1.0,
            "h": 1.0,
            "area": 1.0,
        }
    )
