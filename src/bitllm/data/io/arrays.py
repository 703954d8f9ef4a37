"""Betas from files of several formats, none of which can execute code; headers first, values on demand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from bitllm.data.io.hdf5 import hdf5_dataset, open_hdf5, packing_of, read_dataset
from bitllm.data.io.values import require_real
from bitllm.data.io.volumes import (
    Grid,
    grid_of,
    open_volume,
    require_same_grid,
    volume_values,
    without_single_axes,
)
from bitllm.errors import DataError
from bitllm.files import require_file

_SUFFIXES = (".npy", ".h5", ".hdf5", ".dscalar.nii", ".nii", ".nii.gz", ".mgh", ".mgz")

Kind = Literal["npy", "hdf5", "volume", "cifti"]


@dataclass(frozen=True)
class BetasFile:
    """Header of a file of betas; ``read`` reads the values."""

    path: Path
    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype
    """Type of the values that ``read`` returns: floats if the file's own header scales them."""
    key: str = ""
    """Name of the dataset in HDF5."""
    grid: Grid | None = None
    """Grid of a volume."""

    def read(self, *, trial_axis: int = 0) -> np.ndarray:
        """The values (a memory map for ``.npy``); those of CIFTI are trials × grayordinates."""
        if self.kind == "npy":
            return read_npy(self.path, "betas")
        if self.kind == "hdf5":
            with open_hdf5(self.path, "betas") as file:
                return read_dataset(hdf5_dataset(file, self.key), trial_axis=trial_axis)
        return volume_values(open_volume(self.path, "betas"), self.path, "betas").reshape(self.shape)


def read_npy(path: Path, what: str) -> np.ndarray:
    """Memory-map a ``.npy`` file of real numbers; a pickle is refused."""
    require_file(path, what)
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise DataError(
                f"{path}: expected {what} as a plain array, found a pickle, which can run code; save it again "
                "as plain .npy or .h5"
            ) from None
        raise DataError(
            f"{path}: expected {what} as a whole .npy file, found a damaged one ({error}); copy it again"
        ) from None
    require_real(values.dtype, path, what)
    return values


def open_betas(path: Path, *, key: str = "betas") -> BetasFile:
    """A file of betas in any supported format, described by its header."""
    name = path.name.lower()
    if not name.endswith(_SUFFIXES):
        raise DataError(
            f"{path}: expected betas in {', '.join(_SUFFIXES)}, found another kind of file; convert it"
        )
    if name.endswith(".npy"):
        values = read_npy(path, "betas")
        return BetasFile(path, "npy", values.shape, values.dtype)
    if name.endswith((".h5", ".hdf5")):
        with open_hdf5(path, "betas") as file:
            dataset = hdf5_dataset(file, key)
            packing = packing_of(dataset)
            dtype = np.dtype(np.float64) if (packing.factor, packing.offset) != (1, 0) else dataset.dtype
            return BetasFile(path, "hdf5", dataset.shape, dtype, key)
    image = open_volume(path, "betas")
    if not isinstance(image, nib.Cifti2Image):
        shape = without_single_axes(tuple(map(int, image.shape)), 4)
        return BetasFile(path, "volume", shape, _scaled_dtype(image), grid=grid_of(image, path))
    axes = [image.header.get_axis(n) for n in range(image.ndim)]
    if not isinstance(axes[0], nib.cifti2.ScalarAxis):
        raise DataError(
            f"{path}: expected CIFTI with trials as its axis of scalars (dscalar), found "
            f"{type(axes[0]).__name__}; write one scalar map for each trial"
        )
    return BetasFile(path, "cifti", image.shape, _scaled_dtype(image))


def _scaled_dtype(image: nib.Nifti1Image | nib.MGHImage | nib.Cifti2Image) -> np.dtype:
    proxy = image.dataobj
    is_scaled = isinstance(proxy, ArrayProxy) and (proxy.slope, proxy.inter) != (1, 0)
    return np.dtype(np.float64) if is_scaled else image.get_data_dtype()


def cifti_places(path: Path) -> np.ndarray:
    """Voxel indices (i, j, k) of CIFTI's grayordinates; -1 for surface vertices."""
    return np.asarray(brain_models(path).voxel)


def cifti_order(path: Path, mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Columns of a CIFTI file in the C order of a mask's voxels."""
    models = brain_models(path)
    if models.volume_shape is not None:
        require_same_grid(_cifti_grid(path, models), grid, "grayordinates")
    places = np.asarray(models.voxel)
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


def require_same_grayordinates(path: Path, first: Path) -> None:
    """Refuse CIFTI files with different columns, which would be concatenated column by column."""
    found, expected = brain_models(path), brain_models(first)
    if found == expected:
        return
    n = min(len(found), len(expected))
    differs = (found.name[:n] != expected.name[:n]) | (found.vertex[:n] != expected.vertex[:n])
    differs |= (found.voxel[:n] != expected.voxel[:n]).any(axis=1)
    column = int(np.argmax(differs)) if differs.any() else n
    raise DataError(
        f"{path}: expected the grayordinates of {first} in the same order ({len(expected)}), found others "
        f"({len(found)}), from column {column + 1} on; write both files with the same brain models"
    )


def require_sides(path: Path, x_mm: np.ndarray, table: Path) -> None:
    """Refuse a table of coordinates in which CIFTI's left structures lie to the right of the right ones."""
    names = np.asarray(brain_models(path).name, str)
    left, right = (x_mm[np.char.endswith(names, ending)] for ending in ("_LEFT", "_RIGHT"))
    if left.size and right.size and left.mean() > right.mean():
        raise DataError(
            f"{table}: expected x_mm that grows from left to right, found a mean of {left.mean():.1f} mm for the left "
            f"structures of {path} and {right.mean():.1f} mm for the right ones; the hemispheres are swapped, or the "
            "rows are in another order"
        )


def _cifti_grid(path: Path, models: nib.cifti2.BrainModelAxis) -> Grid:
    image = open_volume(path, "betas")
    assert isinstance(image, nib.Cifti2Image), f"{path}: not CIFTI"
    volume = image.header.matrix.get_index_map(1).volume
    matrix = volume.transformation_matrix_voxel_indices_ijk_to_xyz
    affine = np.array(matrix.matrix, np.float64)
    affine[:3] *= 10.0 ** (matrix.meter_exponent + 3)  # nibabel's axis leaves the unit out
    return Grid(path, tuple(map(int, models.volume_shape)), affine)


def brain_models(path: Path) -> nib.cifti2.BrainModelAxis:
    """The grayordinates of a CIFTI file."""
    image = open_volume(path, "CIFTI")
    if not isinstance(image, nib.Cifti2Image):
        raise DataError(
            f"{path}: expected CIFTI, found {type(image).__name__}; name a file such as x.dscalar.nii"
        )
    axis = image.header.get_axis(1)
    if not isinstance(axis, nib.cifti2.BrainModelAxis):
        raise DataError(
            f"{path}: expected CIFTI whose columns are grayordinates, found {type(axis).__name__}; parcels have no "
            "coordinates, write the dense file"
        )
    return axis
