"""Single-trial responses of one session, in the order of the mask's voxels."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Bool, Float32, Int16
from nibabel.arrayproxy import ArrayProxy

from bitllm.data.io.hdf5 import Packing, hdf5_dataset, open_hdf5, packing_of, read_dataset
from bitllm.data.io.volumes import Grid, grid_of, open_volume, require_same_grid, stored_volumes
from bitllm.errors import DataError
from bitllm.files import require_file

UNITS_PER_PERCENT = 300
"""NSD stores volume betas as int16 of 300 times the percent signal change."""

_SLAB_BYTES = 128 * 2**20  # read at once from files with other chunks than NSD's
_GROUP = 4096  # voxels transposed at a time


def percent_signal_change(stored: Int16[np.ndarray, "trials voxels"]) -> Float32[np.ndarray, "trials voxels"]:
    """Betas in percent signal change, from NSD's integers."""
    return stored.astype(np.float32) / UNITS_PER_PERCENT


def read_session_betas(
    path: Path, voxel_mask: Bool[np.ndarray, "x y z"], n_trials: int, *, grid: Grid | None = None
) -> Int16[np.ndarray, "trials voxels"]:
    """Betas of one session at the voxels of a mask, as NSD's integers.

    The voxels are in C order of the (X, Y, Z) mask, the order of ``volume[mask]``, for both formats. (In the HDF5 file
    the axes are reversed.)

    Parameters
    ----------
    path
        ``betas_sessionNN.hdf5`` or ``.nii.gz``.
    voxel_mask
        The voxels to read.
    n_trials
        Number of trials in this session according to the design.
    grid
        Grid of the brain mask, which a NIfTI file must have; HDF5 has no affine to compare.

    References
    ----------
    NSD Data Manual, "Betas"; the HDF5 files have chunks of one voxel and all trials.
    """
    require_file(path, "a session of betas")
    if path.suffix == ".hdf5":
        return _read_hdf5(path, voxel_mask, n_trials)
    return _read_nifti(path, voxel_mask, n_trials, grid)


def _read_hdf5(path: Path, voxel_mask: np.ndarray, n_trials: int) -> np.ndarray:
    i, j, k = np.nonzero(voxel_mask)
    betas = np.empty((n_trials, len(i)), np.int16)
    with open_hdf5(path, "a session of betas") as file:
        stored = hdf5_dataset(file, "betas")
        _check_encoding(path, stored.shape, stored.dtype, (n_trials, *voxel_mask.shape[::-1]))
        _require_unscaled(path, packing_of(stored))
        if stored.chunks == (n_trials, 1, 1, 1) and stored.id.get_create_plist().get_nfilters() == 0:
            _read_chunks(stored, (k, j, i), betas)
            return betas
        for here in _slabs(k, n_trials * voxel_mask[:, :, 0].size * stored.dtype.itemsize):
            box = tuple(slice(axis[here].min(), axis[here].max() + 1) for axis in (k, j, i))
            slab = read_dataset(stored, (slice(None), *box))
            inside = tuple(axis[here] - b.start for axis, b in zip((k, j, i), box, strict=True))
            betas[:, here] = slab[(slice(None), *inside)]
    return betas


def _read_chunks(stored: h5py.Dataset, zyx: tuple[np.ndarray, ...], betas: np.ndarray) -> None:
    """Fill ``betas`` from NSD's own chunks (one voxel, all trials), without reading other voxels.

    The voxels are read in the order in which the file was written (X fastest), and copied in groups, because writing
    single columns of a matrix would take longer than reading them.
    """
    n_trials = len(betas)
    order = np.lexsort(zyx[::-1])
    group = np.empty((_GROUP, n_trials), stored.dtype)
    for first in range(0, len(order), _GROUP):
        here = order[first : first + _GROUP]
        for row, voxel in enumerate(here):
            place = (0, int(zyx[0][voxel]), int(zyx[1][voxel]), int(zyx[2][voxel]))
            group[row] = _chunk(stored, place)
        betas[:, here] = group[: len(here)].T


def _chunk(stored: h5py.Dataset, place: tuple[int, int, int, int]) -> np.ndarray:
    # Without asking first whether the chunk exists: for an answer HDF5 iterates over all 700,000 chunks.
    try:
        return np.frombuffer(stored.id.read_direct_chunk(place)[1], stored.dtype)
    except (
        OSError,
        RuntimeError,
    ):  # never written (out of view) or damaged; h5py's normal read distinguishes them
        return read_dataset(stored, (slice(None), *place[1:]))


def _slabs(k: np.ndarray, plane_bytes: int) -> Iterator[np.ndarray]:
    """Indices of voxels, grouped by stacks of planes that are small enough to read at once."""
    n_planes = max(1, _SLAB_BYTES // plane_bytes)
    for first in range(0, int(k.max()) + 1, n_planes):
        here = np.flatnonzero((k >= first) & (k < first + n_planes))
        if here.size:
            yield here


def _read_nifti(path: Path, voxel_mask: np.ndarray, n_trials: int, grid: Grid | None) -> np.ndarray:
    what = "a session of betas"
    image = open_volume(path, what)
    _check_encoding(path, image.shape, image.get_data_dtype(), (*voxel_mask.shape, n_trials))
    if grid is not None:
        require_same_grid(grid_of(image, path), grid, what)
    assert isinstance(image.dataobj, ArrayProxy), f"{path}: not read from a file"
    _require_unscaled(path, Packing(image.dataobj.slope, image.dataobj.inter))
    inside = np.ravel_multi_index(np.nonzero(voxel_mask), voxel_mask.shape, order="F")
    betas = np.empty((n_trials, len(inside)), np.int16)
    for trial, volume in enumerate(stored_volumes(image, path, what)):
        betas[trial] = volume[inside]
    return betas


def _require_unscaled(path: Path, packing: Packing) -> None:
    if packing != Packing():
        raise DataError(
            f"{path}: expected integers without a scale factor, found a header that scales them by "
            f"{packing.factor:g} (offset {packing.offset:g}, {len(packing.missing)} values that mean missing); save "
            "the betas as NSD does, as int16 of 300 times the percent signal change"
        )


def _check_encoding(path: Path, shape: tuple[int, ...], dtype: np.dtype, expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise DataError(
            f"{path}: expected the shape {expected} (from the brain mask and the design), found {shape}; "
            "check that it is this subject's session, or download it again"
        )
    if dtype.newbyteorder("=") != np.int16:
        raise DataError(
            f"{path}: expected int16 (300 times the percent signal change), found {dtype}; use the betas of "
            "func1pt8mm as NSD distributes them"
        )
