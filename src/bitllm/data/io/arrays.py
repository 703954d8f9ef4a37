"""Arrays from files of several kinds, none of which may run code."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

from bitllm.data.io.volumes import open_volume, read_volume
from bitllm.errors import DataError
from bitllm.files import require_file

_SUFFIXES = (".npy", ".h5", ".hdf5", ".dscalar.nii", ".nii", ".nii.gz", ".mgh", ".mgz")


def read_npy(path: Path, what: str) -> np.ndarray:
    """Memory-map a ``.npy`` file; a pickle in it is refused.

    Raises
    ------
    DataError
        If the file is missing, damaged or a pickle.
    """
    require_file(path, what)
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
    require_file(path, what)
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
    image = open_volume(path, "betas")
    if isinstance(image, nib.Cifti2Image):
        axes = [image.header.get_axis(n) for n in range(image.ndim)]
        if not isinstance(axes[0], nib.cifti2.ScalarAxis):
            raise DataError(
                f"{path}: expected CIFTI with trials as its axis of scalars (dscalar), found "
                f"{type(axes[0]).__name__}; write one scalar map for each trial"
            )
        return read_volume(path, "betas"), "cifti"
    return read_volume(path, "betas"), "volume"


def cifti_places(path: Path) -> np.ndarray:
    """Voxel indices (i, j, k) of CIFTI's grayordinates; -1 for vertices of the surface."""
    image = open_volume(path, "betas")
    assert isinstance(image, nib.Cifti2Image), f"{path}: not CIFTI"
    return np.asarray(image.header.get_axis(1).voxel)


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
