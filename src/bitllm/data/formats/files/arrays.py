"""Arrays from files of several kinds, none of which may run code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from bitllm.data.nsd.volumes import IMAGE_DAMAGE
from bitllm.errors import DataError

_SUFFIXES = (".npy", ".h5", ".hdf5", ".dscalar.nii", ".nii", ".nii.gz", ".mgh", ".mgz")


def require_readable(path: Path, what: str) -> Path:
    """The path, if it is a file that may be read.

    Raises
    ------
    DataError
        If it is missing or may not be read.
    """
    path = Path(path)
    try:
        is_file = path.is_file()
    except PermissionError:
        is_file = False
    if not is_file:
        raise DataError(f"{path}: expected {what}, found no file; check the path")
    if not os.access(path, os.R_OK):
        raise DataError(
            f"{path}: expected {what} that can be read, found no permission; change the file's permissions"
        )
    return path


def read_npy(path: Path, what: str) -> np.ndarray:
    """Memory-map a ``.npy`` file; a pickle in it is refused.

    Raises
    ------
    DataError
        If the file is missing, damaged or a pickle.
    """
    require_readable(path, what)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise DataError(
                f"{path}: expected {what} as a plain array, found a pickle, which can run code; save it again "
                "as plain .npy or .h5"
            ) from None
        raise DataError(
            f"{path}: expected {what} as a whole .npy file, found a damaged one ({error}); copy it again"
        ) from None


def open_hdf5(path: Path, what: str) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    require_readable(path, what)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path}: expected {what} as whole HDF5, found a damaged file ({error}); copy it again"
        ) from None


def hdf5_dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """A dataset of an open file.

    Raises
    ------
    DataError
        If there is none of this name.
    """
    found = file.get(key)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise DataError(
            f"{file.filename}: expected a dataset `{key}`, found {', '.join(sorted(file)) or 'nothing'}; "
            "name the right one, or copy the file again"
        )
    return found


def load_image(path: Path, what: str) -> Any:
    """Open NIfTI, MGH or CIFTI.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    require_readable(path, what)
    with _damage_named(path, what):
        return nib.load(path)


def image_values(path: Path, what: str) -> np.ndarray:
    """All values of an image, scaled by its own header.

    Raises
    ------
    DataError
        If it is missing, damaged or cut off.
    """
    image = load_image(path, what)
    with _damage_named(path, what):
        return np.asanyarray(image.dataobj)


@contextmanager
def _damage_named(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except IMAGE_DAMAGE as error:
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{path}: expected {what}, found a file that nibabel cannot read to its end ({reason}); copy it again"
        ) from None


def read_betas(path: Path, *, key: str = "betas") -> tuple[np.ndarray, str]:
    """Betas of any admitted kind of file, and the kind.

    Returns
    -------
    tuple
        The array as the file holds it (a memory map for ``.npy``), and ``npy``, ``hdf5``, ``volume`` or
        ``cifti`` (trials x grayordinates).

    Raises
    ------
    DataError
        If the kind is not admitted, or the file is missing or damaged, or CIFTI has no axis of scalars.
    """
    name = path.name.lower()
    if not name.endswith(_SUFFIXES):
        raise DataError(
            f"{path}: expected betas in {', '.join(_SUFFIXES)}, found another kind of file; convert it"
        )
    if name.endswith(".npy"):
        return read_npy(path, "betas"), "npy"
    if name.endswith((".h5", ".hdf5")):
        with open_hdf5(path, "betas") as file:
            return hdf5_dataset(file, key)[()], "hdf5"
    image = load_image(path, "betas")
    if isinstance(image, nib.Cifti2Image):
        axes = [image.header.get_axis(n) for n in range(image.ndim)]
        if not isinstance(axes[0], nib.cifti2.ScalarAxis):
            raise DataError(
                f"{path}: expected CIFTI with trials as its axis of scalars (dscalar), found "
                f"{type(axes[0]).__name__}; write one scalar map for each trial"
            )
        return image_values(path, "betas"), "cifti"
    return image_values(path, "betas"), "volume"


def cifti_places(path: Path) -> np.ndarray:
    """Voxel indices (i, j, k) of CIFTI's grayordinates; -1 for vertices of the surface."""
    axis = load_image(path, "betas").header.get_axis(1)
    return np.asarray(axis.voxel)


def cifti_order(path: Path, mask: np.ndarray) -> np.ndarray:
    """Columns of a CIFTI file in the C order of a mask's voxels.

    Raises
    ------
    DataError
        If the file's grayordinates are not the voxels of the mask.
    """
    places = cifti_places(path)
    is_inside = ((places >= 0) & (places < mask.shape)).all(axis=1)
    flat = np.ravel_multi_index(tuple(places[is_inside].T), mask.shape)
    wanted = np.flatnonzero(mask)
    if len(flat) != len(places) or not np.array_equal(np.sort(flat), wanted):
        raise DataError(
            f"{path}: expected grayordinates at the {len(wanted)} voxels of the mask, found {len(places)} with "
            f"{int((~np.isin(flat, wanted)).sum() + (~is_inside).sum())} elsewhere; give the mask of this file, or a "
            "table of voxels in its order"
        )
    return np.argsort(flat)
