"""Tables are read as text, in every way that programs write them, and only numbers by definition are numbers."""

import gzip

import numpy as np
import pandas as pd
import pytest

from bitllm.data.io.tables import is_table, read_table
from bitllm.errors import DataError

NEEDED = ("row", "name")
NAMES = [
    "000",
    "1.10",
    "NA",
    "null",
    "None",
    "1518879.010420",
    "1e5",
    "0x10",
    "TRUE",
    "2023-01-01",
    "",
    "a b",
    'q"q',
]


def read(path, **more) -> pd.DataFrame:
    return read_table(
        path, needed=NEEDED, optional=("flag", "mm"), numbers={"row": "int64", "mm": "float64"}, **more
    )


def written(path, text: str | bytes):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_name_that_pandas_would_change_is_the_text_in_the_file(tmp_path):
    quoted = [f'"{name}"'.replace('q"q', 'q""q') for name in NAMES]
    lines = "".join(f"{n}\t{name}\n" for n, name in enumerate(quoted))
    table = read(written(tmp_path / "t.tsv", "row\tname\n" + lines))
    assert table["name"].tolist() == NAMES
    assert table["row"].tolist() == list(range(len(NAMES)))
    assert table["row"].dtype == np.int64


def test_names_in_a_long_table_are_not_guessed_chunk_by_chunk(tmp_path):
    names = [f"{n % 500:04d}" if n < 100_000 else f"x{n % 500:04d}" for n in range(200_000)]
    lines = "".join(f"{n},{name}\n" for n, name in enumerate(names))
    assert read(written(tmp_path / "t.csv", "row,name\n" + lines))["name"].tolist() == names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "row\tname\n0\t01\n1\tb\n"),
        ("t.tsv", "\ufeffrow\tname\n0\t01\n1\tb\n"),
        ("t.tsv", "row\tname\r0\t01\r1\tb\r"),
        ("t.tsv", "row\tname\r\n0\t01\r\n1\tb"),
        ("t.tsv", '"row"\t"name"\n"0"\t"01"\n"1"\t"b"\n'),
        ("t.tsv", "row\tname\n0\t01\n1\tb\n\n\n\t\n"),
        ("t.tsv", "row\tname\t\n0\t01\t\n1\tb\t\n"),
        ("t.csv", ",row,name\n0,0,01\n1,1,b\n"),
        ("t.csv", "Unnamed: 0,row,name\n0,0,01\n1,1,b\n"),
        ("t.tsv", "row\tname\nr1\t0\t01\nr2\t1\tb\n"),
        ("t.tsv", "row,name\n0,01\n1,b\n"),
        ("t.tsv", "row;name\n0;01\n1;b\n"),
        ("t.csv", "row\tname\n0\t01\n1\tb\n"),
        ("t.tsv.gz", gzip.compress(b"row\tname\n0\t01\n1\tb\n", mtime=0)),
        ("t.csv.gz", gzip.compress(b"row,name\n0,01\n1,b\n", mtime=0)),
        ("t.TSV", " row \tname\u00a0\n 0 \t01 \n1\tb\n"),
    ],
)  # fmt: skip
def test_a_table_is_the_same_in_every_writing(tmp_path, name, content):
    table = read(written(tmp_path / name, content))
    assert table.to_dict("list") == {"row": [0, 1], "name": ["01", "b"]}
    assert is_table(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["01", "7"], ["01", "7"]),
        ([1, 7], ["1", "7"]),
        (np.array([1, 7], np.uint8), ["1", "7"]),
        ([1.0, None], ["1", ""]),
        (pd.Categorical(["01", "7"]), ["01", "7"]),
        (pd.array([1, None], dtype="Int64"), ["1", ""]),
        ([b"01", b"7"], ["01", "7"]),
        ([" 01", None], ["01", ""]),
        (pd.to_datetime(["2023-01-01", "2023-01-02"]), ["2023-01-01", "2023-01-02"]),
    ],
)  # fmt: skip
def test_names_in_parquet_are_text_and_whole_numbers_their_decimal_text(tmp_path, names, expected):
    pd.DataFrame({"row": [0, 1], "name": names}, index=[5, 9]).to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")["name"].tolist() == expected


def test_a_needed_column_may_be_the_index_of_parquet(tmp_path):
    pd.DataFrame({"row": [3, 4], "name": ["a", "b"]}).set_index("row").to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")["row"].tolist() == [3, 4]


def test_names_that_parquet_holds_with_decimals_are_refused(tmp_path):
    pd.DataFrame({"row": [0, 1], "name": [1.1, 2.5]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: .*`name`.*1\.1"):
        read(tmp_path / "t.parquet")


def test_notes_count_spaces_and_name_what_is_ignored(tmp_path):
    notes: list[str] = []
    text = "row,name ,onset,,trial_type\n0, a,1,0,x\n1,b ,1,1,x\n2,cafe\u0301,1,2,x\n"
    table = read(written(tmp_path / "t.csv", text), notes=notes)
    assert table["name"].tolist() == ["a", "b", "caf\u00e9"]
    for fragment in ("1 headings", "2 cells", "1 cells", "1 columns", "`onset`, `trial_type`"):
        assert sum(fragment in note for note in notes) == 1, (fragment, notes)
    assert all(str(tmp_path / "t.csv") in note for note in notes)


def test_a_plain_table_has_no_notes(tmp_path):
    notes: list[str] = []
    read(written(tmp_path / "t.csv", "row,name\n0,a\n"), notes=notes)
    assert notes == []


def test_another_separator_than_the_ending_says_is_noted(tmp_path):
    notes: list[str] = []
    read(written(tmp_path / "t.tsv", "row;name\n0;a\n"), notes=notes)
    assert len(notes) == 1
    assert "semicolons" in notes[0]
    assert "tabs" in notes[0]


def test_missing_numbers_are_nan_where_numbers_may_be_missing(tmp_path):
    table = read(written(tmp_path / "t.csv", "row,name,mm\n0,a,1.5\n1,b,\n2,c,n/a\n3,d,-2e1\n"))
    np.testing.assert_array_equal(table["mm"], [1.5, np.nan, np.nan, -20.0])


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.tsv", "row\tname\n0\ta\n".encode("utf-16"), "UTF-16"),
        ("t.tsv", "row\tname\n0\ta\n".encode("utf-16-le"), "UTF-16"),
        ("t.tsv", "row\tname\n0\té\n".encode("latin-1"), "byte 11"),
        ("t.tsv", b"PK\x03\x04\x00\x00\x00", "binary"),
        ("t.tsv", b"", "empty"),
        ("t.tsv", "row name\n0 a\n", "tabs"),
        ("t.tsv", "row|name\n0|a\n", r"`row`, found row\|name"),
        ("t.tsv", "row\tname\n0\ta\n1\n", "row 2"),
        ("t.tsv", 'row\tname\n0\t"a\n1\tb\n', "does not parse"),
        ("t.tsv", "row\tname\tname\n0\ta\tb\n", "`name` once"),
        ("t.tsv", "row\tname\nx\ta\n", "`row` .*`x` in row 1"),
        ("t.tsv", "row\tname\n\ta\n", "`row` .*nothing in row 1"),
        ("t.tsv", "row\tname\n1.5\ta\n", "`row` .*`1.5` in row 1"),
        ("t.tsv", "row\tname\tmm\n1\ta\t1,5\n", r"`mm` .*`1,5` in row 1.*1\.5"),
        ("t.tsv.gz", gzip.compress(b"row\tname\n0\ta\n", mtime=0)[:-9], "gzip"),
        ("t.parquet", b"PAR1 damaged PAR1", "does not parse"),
        ("t.tsv", "row\tname\tFlag\n0\ta\t1\n", "`Flag`; did you mean `flag`"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_right_is_refused_in_one_line(tmp_path, name, content, match):
    with pytest.raises(DataError, match=match) as caught:
        read(written(tmp_path / name, content))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
