"""Columns of numbers, checked before they are cast: a cast wraps what is too large and tells no place."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bitllm.errors import DataError


def require_numbers(
    table: pd.DataFrame, types: Mapping[str, str], where: str, what: str, *, advice: str = "mend that row"
) -> None:
    """Refuse a table that cannot be cast.

    Parameters
    ----------
    table
        Its rows are counted from 1 in errors, the heading not counted.
    types
        Column to numpy's type; whole numbers must be whole and fit, other numbers may be missing.
    where, what
        The file, and what the table is: errors name both.
    advice
        What to do.

    Raises
    ------
    DataError
        If a value is no number of the type; the first one is named with its column and row.
    """
    for column, dtype in types.items():
        values = table[column]
        numbers = pd.to_numeric(values, errors="coerce")
        if np.dtype(dtype).kind == "f":
            kind = "numbers"
            is_wrong = numbers.isna() & values.notna()
        else:
            low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
            kind = f"whole numbers from {low} to {high}"
            is_wrong = numbers.isna() | (numbers % 1 != 0) | (numbers < low) | (numbers > high)
        wrong = np.flatnonzero(is_wrong.to_numpy(bool))
        if wrong.size:
            found = values.iloc[int(wrong[0])]
            shown = "nothing" if pd.isna(found) else f"`{found}`"
            raise DataError(
                f"{where}: expected {kind} in the column `{column}` of {what}, found {shown} in row {wrong[0] + 1} "
                f"({wrong.size} in all, the heading not counted); {advice}"
            )
