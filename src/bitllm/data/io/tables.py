"""Tables in TSV, CSV or Parquet."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bitllm.config import nearest
from bitllm.errors import DataError
from bitllm.files import require_file


def read_table(path: Path, *, needed: Sequence[str], admitted: Sequence[str] | None = None) -> pd.DataFrame:
    """A table in TSV, CSV or Parquet.

    Parameters
    ----------
    path
        The file; its ending tells the kind.
    needed
        Columns that must be there.
    admitted
        Columns that may be there besides; any by default.

    Raises
    ------
    DataError
        If the file is missing or damaged, or a column lacks or is unknown.
    """
    require_file(path, "a table")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", encoding="utf-8")
    except (ValueError, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: expected a table (TSV in UTF-8, CSV or Parquet), found one that does not parse ({reason}); "
            "save it again"
        ) from None
    missing = [column for column in needed if column not in table]
    if missing:
        raise DataError(
            f"{path}: expected a column `{missing[0]}`, found {', '.join(map(str, table.columns))}; add or rename it"
        )
    unknown = [str(column) for column in table.columns if column not in {*needed, *(admitted or ())}]
    if admitted is not None and unknown:
        raise DataError(
            f"{path}: expected known columns, found `{unknown[0]}`; {nearest(unknown[0], [*needed, *admitted])}"
        )
    return table
