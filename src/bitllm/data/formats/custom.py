"""The general format: betas, mask, trials table and captions of any lab, described by a header file."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from bitllm.config import StrictConfig
from bitllm.data.formats.series import Axes, AxisOrder, Series, read_series
from bitllm.data.formats.sidecar import ParsedDataset, blocks, caption_rows, fingerprint
from bitllm.data.formats.trials import read_trials, stimuli_of
from bitllm.data.io.arrays import open_betas
from bitllm.data.io.pictures import picture_reader
from bitllm.data.store.contents import (
    TRIAL_OPTIONAL,
    StoreContents,
    StoreSettings,
    SubjectContents,
)
from bitllm.data.store.normalize import Normalization
from bitllm.data.store.spaces import is_subjects_own
from bitllm.errors import ConfigError, DataError
from bitllm.files import require_plain_name


class SubjectFiles(StrictConfig):
    """The files of one subject; paths are relative to the header."""

    betas: tuple[Path, ...] = Field(min_length=1)
    """One file, or several in the order of the trials: ``.npy``, ``.h5``, ``.nii.gz``, ``.mgh`` or CIFTI
    ``.dscalar.nii``."""
    key: str = "betas"
    """Name of the dataset in HDF5."""
    mask: Path | None = None
    """A volume on the grid of the betas; voxels are its labels above 0."""
    voxels: Path | None = None
    """A table with ``x_mm``, ``y_mm``, ``z_mm`` for each voxel (TSV or Parquet)."""


class Header(StrictConfig):
    """What the files themselves do not state."""

    subjects: dict[str, SubjectFiles]
    trials: Path
    captions: Path
    pictures: Path | None = None
    """Folder of images named by ``stimulus_id``."""
    scale: float = 1.0
    """Factor for stored integers; 1/300 for NSD's."""
    axis_order: AxisOrder | None = None
    """By default that of the file format; needed for a plain array with an ambiguous shape."""
    voxel_order: Literal["C", "F"] = "C"
    """Order of the voxels along the axes x, y, z of the mask in a flat array."""
    already_zscored: bool
    normalization: Normalization | None = None
    """As for `prepare nsd`; by default ``training``, or ``as-delivered`` if the betas are z-scores."""
    resample_mask: bool = False
    """Whether a mask on another grid is resampled to that of the betas (nearest neighbor, by nilearn)."""
    space: str = "unknown"
    """The space of the coordinates. ``T1w``, ``native`` and similar ones are specific to a subject."""
    source_version: str = "unknown"

    @model_validator(mode="after")
    def _agrees(self) -> "Header":
        is_delivered = self.normalization == "as-delivered"
        if self.normalization is not None and is_delivered != self.already_zscored:
            raise ValueError(
                f"expected `normalization` to fit already_zscored: {str(self.already_zscored).lower()}, found "
                f"`{self.normalization}`; leave `normalization` out, or write "
                + ("as-delivered" if self.already_zscored else "none for betas in their own unit")
            )
        return self


def read_custom(header_path: Path) -> ParsedDataset:
    """Read a dataset that a header file describes."""
    header = Header.read(header_path)
    for name in header.subjects:
        require_plain_name(name, header_path, "a subject", error=ConfigError)
    folder = header_path.parent
    table_path = folder / header.trials
    read = read_trials(table_path, subjects=tuple(header.subjects))
    stimuli, of_images = stimuli_of(read.table, table_path)
    notes = [*read.notes, *of_images]
    number = dict(zip(stimuli["stimulus_id"], stimuli["nsd_id"].tolist(), strict=True))
    subjects = []
    for name, files in header.subjects.items():
        trials = read.of(name).assign(nsd_id=lambda own: own["stimulus_id"].map(number))
        subjects.append(_subject(name, folder, files, header, trials, read.n_betas[name], notes))
    captions = caption_rows(
        [folder / header.captions], stimuli, notes, source=header_path, numbers_are_coco_ids=True
    )
    pictures = None
    if header.pictures is not None:
        pictures = blocks(
            stimuli["nsd_id"].to_numpy(), picture_reader(folder / header.pictures, stimuli, notes)
        )
    else:
        notes.append("no `pictures` in the header: the store is without pictures")
    notes.extend(_space_notes(header))
    contents = StoreContents(
        subjects=subjects,
        stimuli=stimuli,
        captions=captions,
        origin=str(table_path),
        pictures=pictures,
    )
    settings = StoreSettings(
        source="table",
        beta_version=header.source_version,
        space=header.space,
        roi="mask",
        normalization=header.normalization or ("as-delivered" if header.already_zscored else "training"),
    )
    return ParsedDataset(contents, settings, tuple(notes))


def _space_notes(header: Header) -> tuple[str, ...]:
    if len(header.subjects) < 2:
        return ()
    n = len(header.subjects)
    if is_subjects_own(header.space):
        return (
            f"the coordinates of {n} subjects are each in the subject's own space (`{header.space}`): a model of "
            "several subjects is refused on this store; bring the coordinates to a common space, such as MNI",
        )
    if header.space == "unknown":
        return (f"the header names no `space`: a model of {n} subjects needs coordinates in a common one",)
    return ()


def _subject(
    name: str,
    folder: Path,
    files: SubjectFiles,
    header: Header,
    trials: pd.DataFrame,
    n_betas: int,
    notes: list[str],
) -> SubjectContents:
    paths = [folder / path for path in files.betas]
    series, voxels = read_series(
        [open_betas(path, key=files.key) for path in paths],
        Axes(header.axis_order, header.voxel_order),
        n_trials=n_betas,
        notes=notes,
        mask=None if files.mask is None else folder / files.mask,
        table=None if files.voxels is None else folder / files.voxels,
        resample=header.resample_mask,
        space=header.space,
    )
    origin = ", ".join(map(str, paths))
    return SubjectContents(
        name=name,
        trials=store_columns(trials),
        voxels=voxels,
        read_session=session_reader(origin, series, header, trials, n_betas),
        origin=origin,
        is_z_scored=header.already_zscored,
        fingerprint=fingerprint(*paths),
    )


def store_columns(trials: pd.DataFrame) -> pd.DataFrame:
    """The columns of the trials table that a store needs."""
    return trials[["session", "run", "nsd_id", *(name for name in TRIAL_OPTIONAL if name in trials)]]


def session_reader(
    origin: str, series: Series, header: Header, trials: pd.DataFrame, n_betas: int
) -> Callable[[int], np.ndarray]:
    """Check the betas [trials, voxels] against header and trials; return a function that reads them by session.

    ``trials`` has ``session`` and ``trial_row`` of the trials to store; betas of other rows are ignored. ``n_betas``
    is the number of rows according to the trials table, including trials without an image.
    """
    n_trials = sum(series.n_trials)
    if n_trials != n_betas:
        raise DataError(
            f"{origin}: expected {n_betas} trials, as in the trials table, found {n_trials} (array of "
            f"{n_trials} × {series.n_voxels}); check axis_order, and that both are of one subject"
        )
    if header.scale != 1 and series.dtype.kind == "f":
        raise DataError(
            f"{origin}: expected whole numbers for the scale {header.scale:g}, found {series.dtype} (they are scaled "
            "already, or the file's own header scales them); write scale: 1"
        )

    def read_session(session: int) -> np.ndarray:
        rows = trials["trial_row"][trials["session"] == session].to_numpy()
        values = series.rows(rows) * np.float32(header.scale)
        if header.already_zscored and np.median(values.std(axis=0)) > _LARGEST_DEVIATION:
            raise DataError(
                f"{origin}: expected z-scores (already_zscored: true), found a deviation of "
                f"{np.median(values.std(axis=0)):.3g} in session {session}; write already_zscored: false"
            )
        return values

    return read_session


_LARGEST_DEVIATION = 5.0
