"""The general contract: betas, mask, trials table and captions of any lab, described by one header file."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import model_validator

from bitllm.config import StrictConfig
from bitllm.data.formats.beside import (
    Reading,
    blocks,
    fingerprint,
    places_in_mask,
    read_voxel_table,
)
from bitllm.data.formats.trials import read_trials, stimuli_of
from bitllm.data.io.arrays import cifti_order, cifti_places, read_betas
from bitllm.data.io.captions import captions_by_nsd_id
from bitllm.data.io.pictures import picture_reader
from bitllm.data.store.contents import TRIAL_OPTIONAL, StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.normalize import Normalization
from bitllm.errors import ConfigError, DataError
from bitllm.files import require_plain_name


class SubjectFiles(StrictConfig):
    """The files of one subject; paths are relative to the header."""

    betas: Path
    """``.npy``, ``.h5``, ``.nii.gz``, ``.mgh`` or CIFTI ``.dscalar.nii``."""
    key: str = "betas"
    """The dataset, for HDF5."""
    mask: Path | None = None
    """A volume whose values above 0 are the voxels, on the grid of the betas."""
    voxels: Path | None = None
    """A table with ``x_mm``, ``y_mm``, ``z_mm`` for each voxel (TSV or Parquet)."""


class Header(StrictConfig):
    """What the files do not say of themselves."""

    subjects: dict[str, SubjectFiles]
    trials: Path
    captions: Path
    pictures: Path | None = None
    """Folder of the pictures, named by ``stimulus_id``."""
    scale: float = 1.0
    """What stored whole numbers are multiplied by; 1/300 for NSD's."""
    axis_order: Literal["trials-voxels", "voxels-trials", "xyz-trials", "trials-zyx"]
    voxel_order: Literal["C", "F"] = "C"
    """Order in which a flat array lists the voxels of the mask's axes x, y, z."""
    already_zscored: bool
    normalization: Normalization | None = None
    """As in `prepare nsd`; by default ``training``, or ``as-delivered`` where the betas are z-scores."""
    space: str = "unknown"
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


def read_contract(header_path: Path) -> Reading:
    """Read a dataset that a header file describes.

    Raises
    ------
    ConfigError
        If the header has an unknown key or a wrong value.
    DataError
        If a file lacks, is damaged, or does not fit the others.
    """
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
    captions = captions_by_nsd_id([folder / header.captions], stimuli.assign(coco_id=stimuli["nsd_id"]))
    pictures = None
    if header.pictures is not None:
        pictures = blocks(
            stimuli["nsd_id"].to_numpy(),
            picture_reader(folder / header.pictures, stimuli.assign(coco_id=stimuli["nsd_id"])),
        )
    else:
        notes.append("no `pictures` in the header: the store is without pictures")
    rows = [(nsd_id, caption) for nsd_id, found in captions.items() for caption in found]
    contents = StoreContents(
        subjects=subjects,
        stimuli=stimuli,
        captions=pd.DataFrame(rows, columns=["nsd_id", "caption"]),
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
    return Reading(contents, settings, tuple(notes))


def _subject(
    name: str,
    folder: Path,
    files: SubjectFiles,
    header: Header,
    trials: pd.DataFrame,
    n_betas: int,
    notes: list[str],
) -> SubjectContents:
    path = folder / files.betas
    betas, kind = read_betas(path, key=files.key)
    flat, voxels = flattened(path, betas, kind, header, files, folder, notes)
    return SubjectContents(
        name=name,
        trials=store_columns(trials),
        voxels=voxels,
        read_session=session_reader(path, flat, header, trials, n_betas),
        origin=str(path),
        is_z_scored=header.already_zscored,
        fingerprint=fingerprint(path),
    )


def store_columns(trials: pd.DataFrame) -> pd.DataFrame:
    """What a store has of the trials table."""
    return trials[["session", "run", "nsd_id", *(name for name in TRIAL_OPTIONAL if name in trials)]]


def session_reader(
    path: Path, flat: np.ndarray, header: Header, trials: pd.DataFrame, n_betas: int
) -> Callable[[int], np.ndarray]:
    """Checks betas [trials, voxels] against the header and the trials, and reads them by session.

    Parameters
    ----------
    trials
        ``session`` and ``trial_row`` of the trials that are stored; rows of ``flat`` that none has are left out.
    n_betas
        Rows of ``flat`` according to the trials table, trials without an image counted.

    Raises
    ------
    DataError
        If there is another number of trials, or ``scale`` does not suit the numbers.
    """
    if len(flat) != n_betas:
        raise DataError(
            f"{path}: expected {n_betas} trials, as in the trials table, found {len(flat)} (array of "
            f"{flat.shape[0]} × {flat.shape[1]}); check axis_order, and that both are of one subject"
        )
    if header.scale != 1 and flat.dtype.kind == "f":
        raise DataError(
            f"{path}: expected whole numbers for the scale {header.scale:g}, found {flat.dtype} (they are scaled "
            "already, or NIfTI's own header scales them); write scale: 1"
        )

    def read_session(session: int) -> np.ndarray:
        rows = trials["trial_row"][trials["session"] == session].to_numpy()
        values = np.asarray(flat[rows], np.float32) * np.float32(header.scale)
        if header.already_zscored and np.median(values.std(axis=0)) > _LARGEST_DEVIATION:
            raise DataError(
                f"{path}: expected z-scores (already_zscored: true), found a deviation of "
                f"{np.median(values.std(axis=0)):.3g} in session {session}; write already_zscored: false"
            )
        return values

    return read_session


_LARGEST_DEVIATION = 5.0


def flattened(
    path: Path,
    betas: np.ndarray,
    kind: str,
    header: Header,
    files: SubjectFiles,
    folder: Path,
    notes: list[str],
) -> tuple[np.ndarray, pd.DataFrame]:
    """Betas as trials x voxels in the C order of x, y, z, and the table of the voxels.

    Raises
    ------
    DataError
        If the axes are not those of the header, the mask is on another grid, or the places are unknown.
    """
    mask, voxels = places_in_mask(folder / files.mask) if files.mask else (None, None)
    if header.axis_order in ("xyz-trials", "trials-zyx"):
        grid = betas.transpose(3, 2, 1, 0) if betas.ndim == 4 and header.axis_order == "trials-zyx" else betas
        if betas.ndim != 4 or mask is None or grid.shape[:3] != mask.shape:
            shape = mask.shape if mask is not None else "a mask"
            raise DataError(
                f"{path}: expected axes {header.axis_order} on the mask's grid {shape}, found the shape {betas.shape}; "
                "check axis_order (h5py shows MATLAB's and NSD's HDF5 with reversed axes) and mask"
            )
        flat = grid[mask].T
    else:
        if betas.ndim == 4 and betas.shape[1:3] == (1, 1):  # surfaces in MGH, and GLMsingle's V × 1 × 1
            betas = betas.reshape(betas.shape[0], betas.shape[3])
        if betas.ndim != 2:
            raise DataError(
                f"{path}: expected two axes ({header.axis_order}), found the shape {betas.shape}; a volume has the "
                "axis_order xyz-trials or trials-zyx"
            )
        is_last = header.axis_order == "voxels-trials" and kind != "cifti"
        flat = betas.T if is_last else betas
        if kind == "cifti" and mask is not None:
            flat = flat[
                :, cifti_order(path, mask)
            ]  # CIFTI orders by structure, and says where each column lies
        elif header.voxel_order == "F" and mask is not None and flat.shape[1] == mask.sum():
            order = np.zeros(mask.shape, np.int64)
            order.T[mask.T] = np.arange(mask.sum())
            flat = flat[:, order[mask]]
    if files.voxels:
        voxels = read_voxel_table(folder / files.voxels, notes)
    if voxels is None:
        surface = kind == "cifti" and (cifti_places(path) < 0).any()
        raise DataError(
            f"{path}: expected the places of the voxels, found neither `mask` nor `voxels` in the header"
            f"{' (CIFTI does not hold the coordinates of surface vertices)' if surface else ''}; add one"
        )
    if len(voxels) != flat.shape[1]:
        raise DataError(
            f"{path}: expected {len(voxels)} voxels, as in mask or voxels, found {flat.shape[1]} (array of "
            f"{flat.shape[0]} × {flat.shape[1]}); check axis_order, and that both are of one region"
        )
    return flat, voxels
