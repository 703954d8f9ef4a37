"""Checks of the numbers in an array, for all formats."""

from pathlib import Path

import numpy as np

from bitllm.errors import DataError

_LABEL_TOLERANCE = 1e-3
"""Largest distance of a label from a whole number: saving as scaled int16 turns 3 into 2.9999999991."""

_REAL = "biuf"


def require_real(dtype: np.dtype, path: Path, what: str) -> None:
    """Refuse values that are not real numbers; numpy would drop an imaginary part with only a warning."""
    if dtype.kind not in _REAL:
        advice = "save the real part or the magnitude" if dtype.kind == "c" else "save them as numbers"
        raise DataError(f"{path}: expected {what} as real numbers, found {dtype}; {advice}")


def whole_numbers(values: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Numbers of images, trials or sessions as int64, from any stored type."""
    require_real(values.dtype, path, what)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            is_wrong = ~(np.abs(values - np.round(values)) <= _LABEL_TOLERANCE)
        if is_wrong.any():
            raise DataError(
                f"{path}: expected {what} as whole numbers, found {values[is_wrong][0]:g}; download the file again"
            )
        values = np.round(values)
    return values.astype(np.int64)


def whole_labels(values: np.ndarray, path: Path, what: str, *, largest: int = 2**31 - 1) -> np.ndarray:
    """Labels as int32; each value must be within 0.001 of a whole number, and NaN counts as 0.

    ``largest`` is the largest label (and minus the smallest one) that the reader can store.
    """
    require_real(values.dtype, path, what)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
        rounded = np.round(values)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            is_wrong = ~(np.abs(values - rounded) <= _LABEL_TOLERANCE)
        if is_wrong.any():
            raise DataError(
                f"{path}: expected {what} as whole numbers (labels), found {values[is_wrong][0]:g} "
                f"({int(is_wrong.sum())} such values in all); threshold a map of probabilities first, or save the "
                "labels again as integers"
            )
        values = rounded
    if values.size and max(abs(int(values.min())), abs(int(values.max()))) > largest:
        raise DataError(
            f"{path}: expected {what} between -{largest} and {largest}, found {values.min():g} to {values.max():g}; "
            "check that the file holds labels"
        )
    return values.astype(np.int32)
