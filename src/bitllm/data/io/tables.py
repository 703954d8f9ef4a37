"""Tables in TSV, CSV or Parquet, read as text; only columns that are numeric by definition become numbers.

Nothing is inferred from the cells: `007`, `1.10` and `NA` remain names.
"""

import csv
import gzip
import io
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm.config import nearest
from bitllm.data.store.complete import require_numbers
from bitllm.errors import DataError
from bitllm.files import decoded_text, normalized_name, require_file

TABLE_ENDINGS = (".parquet", ".tsv", ".csv", ".tsv.gz", ".csv.gz")
_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""Cells that mean a missing number; in a column of names they are names, except the empty one."""
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_UNNAMED = re.compile(r"(Unnamed: \d+|__index_level_\d+__)?")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


def read_table(
    path: Path,
    *,
    needed: Sequence[str],
    optional: Sequence[str] | None = None,
    numbers: Mapping[str, str],
    lists: Sequence[str] = (),
    notes: list[str] | None = None,
    what: str = "the table",
    advice: str = "correct that row",
) -> pd.DataFrame:
    """Read the known columns of a table.

    TSV and CSV may be gzip-compressed and may have quoted cells, any line ending, and a byte order mark. Spaces
    around headings and cells are removed; text is composed (NFC).

    Parameters
    ----------
    path
        The file. Parquet and gzip are recognized by content; the extension determines the separator, if the heading
        agrees.
    needed
        Required columns.
    optional
        Optional columns. If given, a note names the columns that are ignored.
    numbers
        Numpy type of each numeric column. A missing number is NaN in a column of floats. All other columns are text,
        with ``""`` for an empty cell.
    lists
        Columns of lists of text, which only Parquet has; they become tuples.
    notes
        Receives a line about each peculiarity of the file that is not an error.
    what
        Name of the table in errors.
    advice
        What to do about a cell that is not a number.
    """
    require_file(path, what)
    said: list[str] = []
    with Path(path).open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    table = _from_parquet(path) if is_parquet else _from_text(path, needed, said)
    table = _known_columns(path, table, needed, optional, said)
    of_lists = {column: _text_lists(path, table[column]) for column in lists}
    table = table.drop(columns=list(of_lists))
    _clean(table, said, path)
    table = _converted(table, {c: t for c, t in numbers.items() if c in table}, str(path), what, advice)
    if notes is not None:
        notes.extend(f"{path}: {line}" for line in said)
    return table.assign(**of_lists)


def is_table(path: Path) -> bool:
    """Whether a file has the extension of a table."""
    return path.name.lower().endswith(TABLE_ENDINGS)


def _from_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise _unreadable(path, str(error).splitlines()[0]) from None
    named = [name for name in table.index.names if name is not None]
    return table.reset_index(level=named) if named else table  # an index may hold a column that is needed


def _from_text(path: Path, needed: Sequence[str], notes: list[str]) -> pd.DataFrame:
    text = decoded_text(_decompressed(path), path, "a table")
    expected = "," if path.name.lower().endswith((".csv", ".csv.gz")) else "\t"
    separator = max(
        [expected, *_SEPARATORS], key=lambda s: len(set(needed) & _names(_heading(path, text, s)))
    )
    heading = _heading(path, text, separator)
    if separator != expected:
        notes.append(
            f"separated by {_SEPARATORS[separator]}, not by {_SEPARATORS[expected]} as its name says; read so"
        )
    elif len(heading) == 1 and len(set(needed) & set(heading[0].split())) > 1:
        raise DataError(
            f"{path}: expected columns separated by {_SEPARATORS[expected]}, found a heading that seems to have "
            f"spaces for them; save it with {_SEPARATORS[expected]}"
        )
    rows = [row for row in _rows(path, text, separator) if row][1:]
    while rows and not any(cell.strip() for cell in rows[-1]):
        rows.pop()
    longer = rows and all(len(row) == len(heading) + 1 for row in rows)
    if longer and not any(row[-1].strip() for row in rows):  # a separator at the end of every row
        rows = [row[:-1] for row in rows]
    elif longer:  # R writes the names of rows without a heading for them
        heading = ["", *heading]
    odd = next((n for n, row in enumerate(rows) if len(row) != len(heading)), None)
    if odd is not None:
        raise DataError(
            f"{path}: expected {len(heading)} cells in every row, as in the heading, found {len(rows[odd])} in row "
            f"{odd + 1} (the heading not counted); correct that row"
        )
    return pd.DataFrame(rows, columns=pd.Index(heading, dtype=object), dtype=object)


def _decompressed(path: Path) -> bytes:
    content = Path(path).read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, f"damaged gzip: {error}") from None


def _rows(path: Path, text: str, separator: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except csv.Error as error:
        raise _unreadable(path, str(error)) from None


def _heading(path: Path, text: str, separator: str) -> list[str]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)  # not strict: separators are tried
    heading = next((row for row in rows if row), None)
    if heading is None:
        raise DataError(f"{path}: expected a table with a heading, found an empty file; save it again")
    return heading


def _names(heading: Sequence[str]) -> set[str]:
    return {normalized_name(cell) for cell in heading}


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: expected a table (TSV in UTF-8, CSV or Parquet), found one that does not parse ({reason}); "
        "save it again"
    )


def _known_columns(
    path: Path, table: pd.DataFrame, needed: Sequence[str], optional: Sequence[str] | None, notes: list[str]
) -> pd.DataFrame:
    written = [str(column) for column in table.columns]
    names = [normalized_name(name) for name in written]
    table.columns = pd.Index(names, dtype=object)
    known = [*needed, *(optional or ())]
    twice = next((name for name in names if name in known and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path}: expected the column `{twice}` once, found it {names.count(twice)} times; remove one"
        )
    missing = [name for name in needed if name not in names]
    if missing:
        raise DataError(
            f"{path}: expected a column `{missing[0]}`, found {', '.join(names)}; add or rename it"
        )
    others = [name for name in names if name not in known]
    if optional is not None and others:
        _note_others(path, others, [name for name in known if name not in names], notes)
    if written != names:
        n = sum(one != other for one, other in zip(written, names, strict=True))
        notes.append(f"spaces around {n} headings are removed")
    return table[[name for name in names if name in known]].reset_index(drop=True)


def _note_others(path: Path, others: list[str], absent: list[str], notes: list[str]) -> None:
    for name in others:  # a misspelled `split` would otherwise be ignored silently
        if name.casefold() in {one.casefold() for one in absent}:
            raise DataError(
                f"{path}: expected known columns, found `{name}`; {nearest(name.casefold(), absent)}"
            )
    index = [name for name in others if _UNNAMED.fullmatch(name)]
    if index:
        notes.append(f"ignored {len(index)} columns without a name (an index)")
    if len(others) > len(index):
        notes.append(f"ignored the columns {', '.join(f'`{o}`' for o in others if o not in index)}")


def _clean(table: pd.DataFrame, notes: list[str], where: Path) -> None:
    """Turn every column that is not numeric into text, composed (NFC) and without surrounding spaces."""
    n_spaces = n_composed = 0
    for column in table.columns:
        values = table[column]
        if pd.api.types.is_numeric_dtype(values.dtype):
            continue
        written = [_text(value, where) for value in values.tolist()]
        names = {one: normalized_name(one) for one in set(written)}
        changed = {one for one, name in names.items() if name != one}
        spaced = {one for one in changed if unicodedata.normalize("NFC", one) != names[one]}
        n_spaces += sum(one in spaced for one in written)
        n_composed += sum(one in changed - spaced for one in written)
        table[column] = pd.Series([names[one] for one in written], dtype=object, index=table.index)
    if n_spaces:
        notes.append(f"spaces around {n_spaces} cells are removed")
    if n_composed:
        notes.append(f"{n_composed} cells are brought to Unicode's composed form (NFC)")


def _text(value: Any, where: Path) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return decoded_text(value, where, "text")
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, pd.Timestamp) and value == value.normalize():
        return value.date().isoformat()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text_lists(path: Path, values: pd.Series) -> pd.Series:
    cells = [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in values.tolist()]
    for row, cell in enumerate(cells, start=1):
        if not isinstance(cell, list) or not all(isinstance(text, str) for text in cell):
            raise DataError(
                f"{path}: expected lists of text in the column `{values.name}`, found {repr(cell)[:60]} in row {row}; "
                "save the column as lists"
            )
    return pd.Series([tuple(map(normalized_name, cell)) for cell in cells], dtype=object, index=values.index)


def _converted(
    table: pd.DataFrame, numbers: Mapping[str, str], where: str, what: str, advice: str
) -> pd.DataFrame:
    comma = None
    for column in table.columns:
        values = table[column]
        if column not in numbers:
            if pd.api.types.is_numeric_dtype(values.dtype):
                table[column] = _decimal_text(values, Path(where))
        elif values.dtype == object:
            blank = values.map(lambda cell: cell.casefold() in _MISSING)
            is_float = np.dtype(numbers[column]).kind == "f"
            table[column] = values.mask(blank if is_float else values == "", None)
            comma = comma or next((cell for cell in values if _DECIMAL_COMMA.fullmatch(cell)), None)
            if numbers[column] == "bool":
                table[column] = values.map(lambda cell: _FLAGS.get(cell.casefold(), cell))
    flags = {column for column, dtype in numbers.items() if dtype == "bool"}
    for column in flags:
        wrong = table[column].map(lambda value: value not in (True, False))
        if wrong.any():
            raise DataError(
                f"{where}: expected True or False in the column `{column}` of {what}, found "
                f"`{table[column][wrong].iloc[0]}` in row {int(np.flatnonzero(wrong)[0]) + 1} ({wrong.sum()} in all); "
                f"{advice}"
            )
    types = {column: dtype for column, dtype in numbers.items() if column not in flags}
    advice = f"write {comma.replace(',', '.')} for {comma}" if comma else advice
    require_numbers(table, types, where, what, advice=advice)
    made = {column: pd.to_numeric(table[column]).astype(np.dtype(dtype)) for column, dtype in types.items()}
    return table.assign(**made, **{column: table[column].astype(bool) for column in flags})


def _decimal_text(values: pd.Series, where: Path) -> pd.Series:
    """Names that Parquet stores as numbers, as plain decimal text."""
    if pd.api.types.is_float_dtype(values.dtype):
        present = values.dropna()
        odd = present[present % 1 != 0]
        if len(odd):
            raise DataError(
                f"{where}: expected text in the column `{values.name}`, found numbers with decimals such as "
                f"{odd.iloc[0]}, which have lost their last zeros; save the column as text"
            )
    return pd.Series([_text(value, where) for value in values.tolist()], dtype=object, index=values.index)
