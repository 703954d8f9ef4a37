"""Betas of one subject (trials × voxels) from one or several files, at the voxels of a mask or of a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from bitllm.data.formats.sidecar import COORDINATES, read_voxel_table
from bitllm.data.io.arrays import (
    BetasFile,
    cifti_order,
    cifti_places,
    require_same_grayordinates,
    require_sides,
)
from bitllm.data.io.values import whole_labels
from bitllm.data.io.volumes import Grid, read_volume, require_same_grid
from bitllm.data.store.spaces import contradicts
from bitllm.errors import DataError

AxisOrder = Literal["trials-voxels", "voxels-trials", "xyz-trials", "trials-zyx"]
_ON_A_GRID = ("xyz-trials", "trials-zyx")


@dataclass(frozen=True)
class Axes:
    """Axes of the values in a file."""

    axis_order: AxisOrder | None = None
    """``None`` for the default of the file format."""
    voxel_order: Literal["C", "F"] = "C"


@dataclass(frozen=True)
class Series:
    """Betas of one subject, trials × voxels in C order of the mask; files are read on demand."""

    n_trials: tuple[int, ...]
    """Number of trials of each file."""
    n_voxels: int
    dtype: np.dtype
    read_file: Callable[[int], np.ndarray]
    """Reads trials × voxels of a file, given its index."""

    def rows(self, trials: np.ndarray) -> np.ndarray:
        """Betas of some trials, counted over all files; only one file at a time is in memory."""
        first = np.concatenate([[0], np.cumsum(self.n_trials)])
        file = np.searchsorted(first, trials, side="right") - 1
        found = np.empty((len(trials), self.n_voxels), np.float32)
        for number in np.unique(file).tolist():
            here = file == number
            found[here] = self.read_file(number)[trials[here] - first[number]]
        return found


@dataclass(frozen=True)
class Voxels:
    """Voxels of the betas: a mask on their grid, a table of coordinates, or both."""

    mask: np.ndarray | None
    grid: Grid | None
    """Grid of the mask."""
    table: pd.DataFrame | None

    @property
    def count(self) -> int | None:
        """Number of voxels; ``None`` without mask and table."""
        if self.table is not None:
            return len(self.table)
        return None if self.mask is None else int(self.mask.sum())


def read_mask(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels of a mask or atlas (labels above 0), and its grid."""
    values, grid = read_volume(path, "a mask")
    mask = whole_labels(values, path, "a mask") > 0
    if mask.ndim != 3 or not mask.any():
        raise DataError(
            f"{path}: expected a mask of three axes with values above 0, found the shape {mask.shape} with "
            f"{mask.sum()} such voxels; name the right file"
        )
    return mask, grid


def resampled_mask(path: Path, target: Grid) -> np.ndarray:
    """A mask resampled to another grid by nearest neighbor."""
    try:
        import nibabel as nib
        from nilearn.image import resample_img
    except ImportError:
        raise DataError(
            f"{path}: expected nilearn to resample the mask, found it is not installed; install it with "
            "`pip install 'bitllm[maps]'`"
        ) from None
    mask, grid = read_mask(path)
    for one in (grid, target):
        if one.affine is None:
            raise _no_place(one.path)
    image = nib.Nifti1Image(mask.astype(np.int16), grid.affine)
    made = resample_img(
        image,
        target_affine=target.affine,
        target_shape=target.shape,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    on_target = np.asanyarray(made.dataobj) > 0
    if not on_target.any():
        raise DataError(
            f"{path}: expected voxels of the mask on the grid of {target.path}, found none after resampling; check "
            "that both are of one space"
        )
    return on_target


def read_series(
    files: Sequence[BetasFile],
    axes: Axes,
    *,
    n_trials: int,
    notes: list[str],
    mask: Path | None = None,
    table: Path | None = None,
    resample: bool = False,
    space: str = "unknown",
) -> tuple[Series, pd.DataFrame]:
    """The betas and the table of their voxels.

    Parameters
    ----------
    files
        One or more; their trials are concatenated.
    axes
        Axes of the values.
    n_trials
        Number of trials in the trials table, which determines the axes of a plain array if the header does not.
    notes
        Receives a line about each peculiarity of the table of coordinates that is not an error.
    mask
        A volume; voxels are its labels above 0.
    table
        A table of coordinates, one row per voxel in the order of the betas; it replaces the coordinates of the mask.
    resample
        Whether to resample a mask on another grid to that of the betas.
    space
        The stated space of the coordinates.
    """
    grid = files[0].grid
    for file in files[1:]:
        if file.grid is not None and grid is not None and file.shape[1:3] != (1, 1):
            require_same_grid(file.grid, grid, "betas")
        if file.kind == files[0].kind == "cifti" and mask is None:
            require_same_grayordinates(file.path, files[0].path)
    voxels = _read_voxels(
        files[0], mask, None if table is None else read_voxel_table(table, notes), resample=resample
    )
    _require_places(files[0], voxels)
    orders = [_axis_order(file, axes.axis_order, voxels, len(files), n_trials) for file in files]
    for file, order in zip(files, orders, strict=True):
        _require_axes(file, order, voxels)
    shapes = [_flat_shape(file, order, voxels) for file, order in zip(files, orders, strict=True)]
    assert voxels.count is not None, "places are known"
    kept: dict[int, np.ndarray] = {}

    def read_file(number: int) -> np.ndarray:
        if number not in kept:
            kept.clear()  # one file in memory, however many there are
            kept[number] = _flattened(files[number], orders[number], axes.voxel_order, voxels)
        return kept[number]

    if len(files) == 1:  # it is read anyway and stays in memory; a damaged file is named before other work
        read_file(0)
    dtype = np.result_type(*[file.dtype for file in files])
    series = Series(tuple(n for n, _ in shapes), voxels.count, dtype, read_file)
    return series, _place_table(files[0], voxels, table, space, notes)


def _read_voxels(
    file: BetasFile, mask: Path | None, places: pd.DataFrame | None, *, resample: bool
) -> Voxels:
    if mask is None:
        return Voxels(None, None, places)
    is_volume = file.grid is not None and file.shape[1:3] != (1, 1)
    if resample and is_volume:
        assert file.grid is not None, "a volume"
        return Voxels(resampled_mask(mask, file.grid), file.grid, places)
    inside, grid = read_mask(mask)
    return Voxels(inside, grid, places)


def _require_places(file: BetasFile, voxels: Voxels) -> None:
    if voxels.count is None:
        surface = file.kind == "cifti" and (cifti_places(file.path) < 0).any()
        raise DataError(
            f"{file.path}: expected coordinates of the voxels, found neither `mask` nor `voxels` in the header"
            f"{' (CIFTI does not hold the coordinates of surface vertices)' if surface else ''}; add one"
        )


def _place_table(
    file: BetasFile, voxels: Voxels, path: Path | None, space: str, notes: list[str]
) -> pd.DataFrame:
    if voxels.table is not None:
        assert path is not None, "of the table"
        if voxels.mask is not None and {"i", "j", "k"} <= set(voxels.table):
            _require_order_of_mask(voxels.table, voxels.mask, path)
        if voxels.mask is None and file.kind == "cifti":
            require_sides(file.path, voxels.table["x_mm"].to_numpy(), path)
        return voxels.table
    assert voxels.mask is not None and voxels.grid is not None, "a table or a mask"
    grid = voxels.grid
    if grid.affine is None:
        if file.grid is None or file.grid.affine is None or file.grid.shape != grid.shape:
            raise _no_place(grid.path)
        grid = file.grid
    notes.extend(grid.notes)
    if contradicts(space, grid.space):
        notes.append(
            f"{grid.path}: the space is `{space}` by the header and `{grid.space}` by the NIfTI code of the affine; "
            "the coordinates are used as they are, correct the one that is wrong"
        )
    ijk = np.argwhere(voxels.mask)
    places = pd.DataFrame(ijk, columns=["i", "j", "k"])
    places[list(COORDINATES)] = grid.mm(ijk)
    return places


def _require_order_of_mask(table: pd.DataFrame, mask: np.ndarray, path: Path) -> None:
    listed, expected = table[["i", "j", "k"]].to_numpy(), np.argwhere(mask)
    if len(listed) != len(expected):
        raise DataError(
            f"{path}: expected {len(expected)} voxels, as in the mask, found {len(listed)} rows; leave one of mask and "
            "voxels out, or check that both are of one region"
        )
    differs = np.flatnonzero((listed != expected).any(axis=1))
    if len(differs):
        row = int(differs[0])
        raise DataError(
            f"{path}: expected i, j, k {expected[row].tolist()} in row {row + 1}, as in the mask in C order, found "
            f"{listed[row].tolist()} ({len(differs)} rows differ); sort the table by i, j, k, which count from 0"
        )


def _no_place(path: Path) -> DataError:
    return DataError(
        f"{path}: expected a header that says where the voxels lie, found neither a qform nor an sform that is whole "
        "(codes above 0, no row of zeros); write the affine into the file, or name a table of places (`voxels`)"
    )


def _axis_order(
    file: BetasFile, given: AxisOrder | None, voxels: Voxels, n_files: int, n_trials: int
) -> AxisOrder:
    if given is not None:
        return given
    if file.kind == "cifti":
        return "trials-voxels"
    if file.kind == "volume":
        is_surface = len(file.shape) == 2 or file.shape[1:3] == (1, 1)
        return "voxels-trials" if is_surface else "xyz-trials"
    fitting = [order for order, n in _possible(file, voxels).items() if n_files > 1 or n == n_trials]
    if len(fitting) != 1:
        raise DataError(
            f"{file.path}: expected `axis_order` in the header, found none, and the shape {file.shape} fits "
            f"{' and '.join(fitting) or 'no order'} for {voxels.count} voxels and {n_trials} trials; write the right "
            "one of trials-voxels, voxels-trials, xyz-trials, trials-zyx"
        )
    return fitting[0]


def _possible(file: BetasFile, voxels: Voxels) -> dict[AxisOrder, int]:
    """Axis orders that are possible for a plain array, given the voxels, with the number of trials under each."""
    possible: dict[AxisOrder, int] = {}
    shape = file.shape
    if len(shape) == 2:
        if shape[1] == voxels.count:
            possible["trials-voxels"] = shape[0]
        if shape[0] == voxels.count:
            possible["voxels-trials"] = shape[1]
    if len(shape) == 4 and voxels.mask is not None:
        if shape[:3] == voxels.mask.shape:
            possible["xyz-trials"] = shape[3]
        # If x and z have the same length, the shape does not distinguish trials-zyx from trials, x, y, z.
        if shape[1:] == voxels.mask.shape[::-1] and voxels.mask.shape[0] != voxels.mask.shape[2]:
            possible["trials-zyx"] = shape[0]
    return possible


def _require_axes(file: BetasFile, order: AxisOrder, voxels: Voxels) -> None:
    if order in _ON_A_GRID:
        on_grid = file.shape[:3] if order == "xyz-trials" else file.shape[:0:-1]
        shape = voxels.mask.shape if voxels.mask is not None else "a mask"
        if len(file.shape) != 4 or on_grid != shape:
            raise DataError(
                f"{file.path}: expected axes {order} on the mask's grid {shape}, found the shape {file.shape}; "
                "check axis_order (h5py shows MATLAB's and NSD's HDF5 with reversed axes) and mask"
            )
        if file.grid is not None and voxels.grid is not None:
            require_same_grid(file.grid, voxels.grid, "betas")
    elif len(_two_axes(file.shape)) != 2:
        raise DataError(
            f"{file.path}: expected two axes ({order}), found the shape {file.shape}; a volume has the "
            "axis_order xyz-trials or trials-zyx"
        )


def _two_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of length 1, as in surfaces in MGH and in GLMsingle's V × 1 × 1 × trials."""
    return (shape[0], shape[3]) if len(shape) == 4 and shape[1:3] == (1, 1) else shape


def _flat_shape(file: BetasFile, order: AxisOrder, voxels: Voxels) -> tuple[int, int]:
    """Numbers of trials and voxels of a file, from its header."""
    if order in _ON_A_GRID:
        assert voxels.mask is not None, "required above"
        n_voxels = int(voxels.mask.sum())
        n_trials = file.shape[3] if order == "xyz-trials" else file.shape[0]
    else:
        is_last = order == "voxels-trials" and file.kind != "cifti"
        n_trials, n_voxels = _two_axes(file.shape)[:: -1 if is_last else 1]
    if n_voxels != voxels.count:
        raise DataError(
            f"{file.path}: expected {voxels.count} voxels, as in mask or voxels, found {n_voxels} (array of "
            f"{n_trials} × {n_voxels}); check axis_order, and that both are of one region"
        )
    return n_trials, n_voxels


def _flattened(
    file: BetasFile, order: AxisOrder, voxel_order: Literal["C", "F"], voxels: Voxels
) -> np.ndarray:
    mask = voxels.mask
    values = file.read(trial_axis=0 if order.startswith("trials") else len(file.shape) - 1)
    if order in _ON_A_GRID:
        return (values.transpose(3, 2, 1, 0) if order == "trials-zyx" else values)[mask].T
    flat = values.reshape(_two_axes(values.shape))
    if file.kind == "cifti":
        if mask is None:
            return flat
        assert voxels.grid is not None, "of the mask"
        return flat[:, cifti_order(file.path, mask, voxels.grid)]  # CIFTI states the voxel of each column
    flat = flat.T if order == "voxels-trials" else flat
    if voxel_order == "F" and mask is not None and flat.shape[1] == mask.sum():
        place = np.zeros(mask.shape, np.int64)
        place.T[mask.T] = np.arange(mask.sum())
        flat = flat[:, place[mask]]
    return flat
