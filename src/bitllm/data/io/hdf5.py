"""HDF5 files, read with errors that name the file, the dataset and the trials.

The attributes of the CF conventions (``scale_factor``, ``add_offset``, ``_FillValue``, ``missing_value``), which
netCDF and xarray write, are applied. Other attributes that suggest a scale are refused, because no convention
defines them. ``units`` is ignored.
"""

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bitllm.data.io.values import require_real
from bitllm.errors import DataError
from bitllm.files import require_file

_SCALES = frozenset({"scale", "scaling", "slope", "gain", "factor", "scl_slope"})
_OFFSETS = frozenset({"offset", "intercept", "inter", "scl_inter"})


@dataclass(frozen=True)
class Packing:
    """Conversion of a dataset's stored numbers by the CF conventions: ``stored * factor + offset``."""

    factor: float = 1.0
    offset: float = 0.0
    missing: tuple[float, ...] = ()
    """Stored numbers that stand for a missing value and become NaN."""

    def unpacked(self, stored: np.ndarray) -> np.ndarray:
        """The values, as float64 unless nothing changes."""
        if self == Packing():
            return stored
        values = stored * np.float64(self.factor) + self.offset
        values[np.isin(stored, self.missing)] = np.nan
        return values


def packing_of(dataset: h5py.Dataset) -> Packing:
    """The packing in a dataset's attributes."""
    numbers: dict[str, tuple[float, ...]] = {}
    for name in dataset.attrs:
        key = name.lower()
        if key not in _SCALES | _OFFSETS | {"scale_factor", "add_offset", "_fillvalue", "missing_value"}:
            continue
        value = dataset.attrs[name]
        found = np.asarray(value).reshape(-1)
        is_neutral = found.dtype.kind in "biuf" and (found == (1 if key in _SCALES else 0)).all()
        is_cf = key not in _SCALES | _OFFSETS
        if (is_cf and (found.dtype.kind not in "iuf" or len(found) != 1)) or not (is_cf or is_neutral):
            raise DataError(
                f"{dataset.file.filename}: expected the scale of `{dataset.name.lstrip('/')}` as one number in "
                f"`scale_factor` and `add_offset` (CF conventions), found the attribute {name} = {value!r}; rename it "
                "if that is its meaning, else apply it to the values and remove it"
            )
        numbers[key] = tuple(map(float, found))
    missing = {*numbers.get("_fillvalue", ()), *numbers.get("missing_value", ())}
    (factor,), (offset,) = numbers.get("scale_factor", (1.0,)), numbers.get("add_offset", (0.0,))
    return Packing(factor, offset, tuple(sorted(number for number in missing if np.isfinite(number))))


def open_hdf5(path: Path, what: str, **options: Any) -> h5py.File:
    """Open an HDF5 file for reading."""
    require_file(path, what)
    try:
        return h5py.File(path, "r", **options)
    except OSError as error:
        if error.errno == errno.EAGAIN or "unable to lock file" in str(error):
            raise DataError(
                f"{path}: expected {what} as HDF5 that can be opened, found it locked by another program; close that "
                "program, or set HDF5_USE_FILE_LOCKING=FALSE if the disk does not support locks"
            ) from None
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{path}: expected {what} as whole HDF5, found a damaged file ({reason}); copy it again"
        ) from None


def hdf5_dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """A dataset of an open file; refused if this machine cannot decompress it."""
    found = file.get(key)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise DataError(
            f"{file.filename}: expected a dataset `{key}`, found {', '.join(sorted(file)) or 'nothing'}; "
            "name the right one, or copy the file again"
        )
    properties = found.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            label = f"{name.decode(errors='replace') or 'unnamed'} (number {code})"
            raise DataError(
                f"{file.filename}: expected `{key}` packed with a filter that is installed, found the filter {label}; "
                "install it (many are in the package hdf5plugin) or save the file again with gzip"
            )
    require_real(found.dtype, Path(file.filename), f"the dataset `{key}`")
    return found


def read_dataset(dataset: h5py.Dataset, where: Any = (), *, trial_axis: int | None = 0) -> np.ndarray:
    """Values of a dataset (by default all), scaled according to its attributes.

    Parameters
    ----------
    dataset
        A dataset of an open file.
    where
        Index of the values.
    trial_axis
        Axis of the trials, to name a damaged trial; ``None`` if there is none.
    """
    packing = packing_of(dataset)
    try:
        return packing.unpacked(np.asarray(dataset[where]))
    except (OSError, RuntimeError) as error:
        raise _damage(dataset, where, error, trial_axis) from None


def _damage(dataset: h5py.Dataset, where: Any, error: Exception, trial_axis: int | None) -> DataError:
    reason = str(error).replace("\n", " ")
    first = _first_damaged(dataset, where)
    which = ""
    if first is not None and trial_axis is not None:
        trials = first[trial_axis]
        which = f", trials {trials.start} to {trials.stop - 1}"
    return DataError(
        f"{dataset.file.filename}: expected whole HDF5, found damage in the dataset `{dataset.name.lstrip('/')}`"
        f"{which} ({reason}); copy the file again"
    )


def _first_damaged(dataset: h5py.Dataset, where: Any) -> tuple[slice, ...] | None:
    if dataset.chunks is None:
        return None
    wanted = where if isinstance(where, tuple) else (where,)
    if not all(isinstance(axis, slice) for axis in wanted):
        return None
    box = (*wanted, *[slice(None)] * (dataset.ndim - len(wanted)))
    for chunk in dataset.iter_chunks(
        tuple(slice(*axis.indices(n)) for axis, n in zip(box, dataset.shape, strict=True))
    ):
        try:
            dataset[chunk]
        except (OSError, RuntimeError):
            return tuple(chunk)
    return None
