"""Names of images, subjects and sessions are text from the trials table to the store."""

import json

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.formats.custom import read_custom
from bitllm.data.formats.trials import read_trials, stimuli_of
from bitllm.data.store.read import open_store
from bitllm.errors import BitLlmError, DataError


def write(path, names, **columns) -> pd.DataFrame:
    """A trials table of the names, as the file holds it, and its text."""
    table = pd.DataFrame({"trial_row": range(len(names)), "subject": "s1", "session": "1", "run": "1"})
    table = table.assign(stimulus_id=list(names), **columns)
    table.astype(str).to_csv(path, sep="\t", index=False)
    return table


def stimuli(path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    return stimuli_of(read_trials(path, subjects=("s1",)).table, path)


@pytest.fixture(name="rename")
def _rename(table):
    """Give the images of the lab other names: in trials, captions and pictures."""

    def rename(name_of) -> dict[str, int]:
        path = table.root / "trials.tsv"
        trials = pd.read_csv(path, sep="\t", dtype=str)
        trials["stimulus_id"] = [name_of(int(n)) for n in trials["stimulus_id"]]
        trials.to_csv(path, sep="\t", index=False)
        named = {name_of(n): texts for n, texts in table.captions.items()}
        table.captions_file.write_text(json.dumps(named))
        for n in table.pictures:
            (table.root / f"pictures/{n}.png").rename(table.root / f"pictures/new-{n}.png")
        for n in table.pictures:
            (table.root / f"pictures/new-{n}.png").rename(table.root / f"pictures/{name_of(n)}.png")
        return {name_of(n): n for n in table.pictures}

    return rename


@pytest.mark.parametrize(
    "name_of",
    [
        lambda n: f"{n:03d}",
        lambda n: f"1.{n}0",
        lambda n: f"1518879.{n:05d}0",
        lambda n: ["NA", "null", "None", "nan", "n.a.", "NaN", "inf", "-", "1e5", "TRUE", "0x1", "<NA>"][n],
        lambda n: f"x{n}" if n % 2 else f"{n:04d}",
        str,
    ],
    ids=["000", "1.10", "1518879.010420", "missing", "mixed", "numbers"],
)  # fmt: skip
def test_captions_and_pictures_are_those_of_the_name_in_the_file(table, rename, prepared, name_of):
    names = rename(name_of)
    store = prepared(read_custom(table.root / "header.yaml"))
    shown = store.stimuli.get("stimulus_name", store.stimuli.index.to_series().astype(str))
    assert sorted(shown) == sorted(names)
    for nsd_id, name in shown.items():
        assert list(store.captions[nsd_id]) == table.captions[names[name]]
        np.testing.assert_array_equal(store.pictures([nsd_id])[0], table.pictures[names[name]])
    trials = store.subject("s1").trials["nsd_id"]
    assert [names[shown[n]] for n in trials] == table.nsd_id.tolist()


def test_decimal_names_and_zeros_at_the_front_are_twenty_images(tmp_path):
    decimals = [f"{a}.{b}" for a in (1, 2) for b in range(1, 11)]
    write(tmp_path / "a.tsv", decimals)
    assert stimuli(tmp_path / "a.tsv")[0]["stimulus_name"].tolist() == sorted(decimals)
    numbers = [*map(str, range(1, 20)), "01"]
    write(tmp_path / "b.tsv", numbers)
    found, notes = stimuli(tmp_path / "b.tsv")
    assert found["stimulus_id"].tolist() == sorted(numbers)
    assert found["nsd_id"].tolist() == list(range(20))
    assert [note for note in notes if "`1` and `01`" in note]


def test_a_long_table_with_mixed_names_has_its_1000_images(tmp_path):
    """Longer than the 131,072 rows in which pandas would guess the type of six columns at a time."""
    names = [f"{n % 500:04d}" if n < 70_000 else f"x{n % 500:04d}" for n in range(140_000)]
    write(tmp_path / "t.tsv", names)
    found, notes = stimuli(tmp_path / "t.tsv")
    assert found["stimulus_name"].tolist() == sorted({*names})
    assert len(notes) == 1  # of the missing column `split`
    write(tmp_path / "t.tsv", [*names[:500], "7"])
    with pytest.raises(DataError, match=r"t\.tsv: .*found `7` and `0007`"):
        stimuli(tmp_path / "t.tsv")


def test_names_that_differ_in_spaces_alone_are_refused_and_around_them_removed(tmp_path):
    write(tmp_path / "t.tsv", ["a b", "ab", "c"])
    with pytest.raises(DataError, match=r"t\.tsv: .*`a b` and `ab`"):
        stimuli(tmp_path / "t.tsv")
    write(tmp_path / "t.tsv", ["p00 ", "p00", " p01", "cafe\u0301", "caf\u00e9"])
    read = read_trials(tmp_path / "t.tsv", subjects=("s1",))
    assert read.table["stimulus_id"].tolist() == ["p00", "p00", "p01", "caf\u00e9", "caf\u00e9"]
    assert any("2 cells" in note for note in read.notes)


def test_a_number_that_no_integer_holds_is_a_name(tmp_path):
    write(tmp_path / "t.tsv", ["9" * 30, "1"])
    assert stimuli(tmp_path / "t.tsv")[0]["nsd_id"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("key", "cell"), [("01", "sub-01"), ('"01"', " 01"), ("sub-01", "01"), ("'sub-01'", "sub-01")]
)
def test_a_subject_is_the_same_in_header_and_table(table, prepared, key, cell):
    header = table.root / "header.yaml"
    header.write_text(header.read_text().replace("  s1:", f"  {key}:"))
    trials = pd.read_csv(table.root / "trials.tsv", sep="\t", dtype=str).assign(subject=cell)
    trials.to_csv(table.root / "trials.tsv", sep="\t", index=False)
    store = prepared(read_custom(header))
    assert store.subjects == (key.strip("\"'"),)


@pytest.mark.parametrize("name", ["../../out", "..", "a/b", "/out", "a\\\\b", ".x"])
def test_a_subject_that_would_be_written_elsewhere_is_refused(table, name, tmp_path):
    header = table.root / "header.yaml"
    header.write_text(header.read_text().replace("  s1:", f'  "{name}":'))
    with pytest.raises(BitLlmError, match=r"header\.yaml: .*a subject"):
        read_custom(header)


def test_one_subject_under_two_names_is_refused(table):
    header = table.root / "header.yaml"
    one = "{betas: betas.nii.gz, mask: mask.nii.gz}"
    header.write_text(header.read_text().replace("  s1:", f"  sub-s1: {one}\n  s1:"))
    with pytest.raises(DataError, match="`sub-s1` and `s1`"):
        read_custom(header)


def sessions_of(path, labels) -> tuple[pd.DataFrame, tuple[str, ...]]:
    write(path, [f"i{n}" for n in range(len(labels))], session=labels)
    read = read_trials(path, subjects=("s1",))
    return read.table, read.notes


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["1", "1", "2", "5"], [1, 1, 2, 5]),
        (["01", "01", "02"], [1, 1, 2]),
        (["ses-01", "ses-02", "ses-10"], [1, 2, 10]),
        (["session1", "1.0"], None),
        (["1.0", "2.0"], [1, 2]),
        (["1", "2", "1"], [1, 2, 1]),
    ],
)
def test_plain_sessions_stay_numbers(tmp_path, labels, numbers):
    if numbers is None:
        with pytest.raises(DataError, match=r"`session1` and `1\.0`"):
            sessions_of(tmp_path / "t.tsv", labels)
        return
    found, notes = sessions_of(tmp_path / "t.tsv", labels)
    assert found["session"].tolist() == numbers
    assert "session_name" not in found
    assert notes == ()


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["20230101", "20230101", "20230412"], [1, 1, 2]),
        (["ses-pre", "ses-post", "ses-pre"], [1, 2, 1]),
        (["pre", "01", "99999"], [1, 2, 3]),
        (["2", "1"], [1, 2]),
        (["2023-01-01", "NA"], [1, 2]),
        (["-1", "40000"], [1, 2]),
    ],
)
def test_other_sessions_are_labels_in_the_order_of_the_table(tmp_path, labels, numbers):
    found, notes = sessions_of(tmp_path / "t.tsv", labels)
    assert found["session"].tolist() == numbers
    assert found["session_name"].tolist() == labels
    assert [note for note in notes if "session_name" in note]


@pytest.mark.parametrize("labels", [["1", "1", "2", "3"], ["post", "pre", "late", "late"]])
def test_the_order_of_the_rows_in_the_file_changes_no_session(tmp_path, labels):
    path = tmp_path / "t.tsv"
    plain = sessions_of(path, labels)[0]
    pd.read_csv(path, sep="\t", dtype=str).iloc[::-1].to_csv(path, sep="\t", index=False)
    shuffled = read_trials(path, subjects=("s1",)).table.sort_values("trial_row", ignore_index=True)
    pd.testing.assert_frame_equal(shuffled, plain)


def test_labels_of_sessions_stay_in_the_store_and_betas_follow_them(table, prepared):
    path = table.root / "trials.tsv"
    plain = prepared(read_custom(table.root / "header.yaml"), "plain").subject("s1")
    trials = pd.read_csv(path, sep="\t", dtype=str)
    labels = {"1": "ses-pre", "2": "20230412"}
    trials["session"] = trials["session"].map(labels)
    trials.to_csv(path, sep="\t", index=False)
    named = prepared(read_custom(table.root / "header.yaml")).subject("s1")
    assert named.trials["session"].dtype == np.int16
    assert named.trials["session_name"].tolist() == [labels[str(n)] for n in plain.trials["session"]]
    pd.testing.assert_frame_equal(named.trials.drop(columns="session_name"), plain.trials)
    np.testing.assert_array_equal(np.asarray(named.betas), np.asarray(plain.betas))


def test_trials_without_an_image_are_left_out_and_their_betas_skipped(table, tmp_path, capsys):
    path = table.root / "trials.tsv"
    trials = pd.read_csv(path, sep="\t", dtype=str)
    blank = [0, 5, 12, 23]
    trials.loc[blank, "stimulus_id"] = ""
    trials.loc[5, "stimulus_id"] = "  "
    trials.to_csv(path, sep="\t", index=False)
    main(["prepare", "table", str(table.root / "header.yaml"), str(tmp_path / "store")])
    assert "4 trials without an image" in capsys.readouterr().out.replace("\n", " ")
    data = open_store(tmp_path / "store").subject("s1")
    left = np.setdiff1d(np.arange(24), blank)
    assert data.trials["nsd_id"].tolist() == table.nsd_id[left].tolist()
    expected = []
    for rows in (left[left < 12], left[left >= 12]):
        training = table.betas[rows][table.nsd_id[rows] < 8]
        expected.append((table.betas[rows] - training.mean(0)) / training.std(0))
    np.testing.assert_allclose(np.asarray(data.betas), np.concatenate(expected), rtol=2e-3, atol=2e-3)


def test_a_subject_of_blank_trials_alone_is_refused(tmp_path):
    write(tmp_path / "t.tsv", ["", ""])
    with pytest.raises(DataError, match=r"t\.tsv: .*`s1`"):
        read_trials(tmp_path / "t.tsv", subjects=("s1",))


def test_columns_of_bids_and_an_index_are_noted_and_ignored(table, tmp_path, capsys, prepared):
    plain = prepared(read_custom(table.root / "header.yaml"), "plain")
    trials = pd.read_csv(table.root / "trials.tsv", sep="\t", dtype=str)
    bids = trials.assign(onset="1.5", duration="2", trial_type="picture")
    bids.to_csv(table.root / "trials.tsv", sep="\t")  # with pandas's index
    main(["prepare", "table", str(table.root / "header.yaml"), str(tmp_path / "store")])
    out = capsys.readouterr().out
    assert "`onset`, `duration`, `trial_type`" in out
    assert "(an index)" in out
    store = open_store(tmp_path / "store")
    pd.testing.assert_frame_equal(store.subject("s1").trials, plain.subject("s1").trials)


def test_a_table_of_places_with_an_index_and_more_columns_is_read(table, change_header, prepared):
    n_voxels = table.betas.shape[1]
    places = pd.DataFrame({axis: np.arange(n_voxels) * 1.5 for axis in ("x_mm", "y_mm", "z_mm")})
    places.assign(area="V1").to_csv(table.root / "places.csv")
    reading = read_custom(change_header(voxels="places.csv"))
    assert [note for note in reading.notes if "`area`" in note]
    assert [note for note in reading.notes if "(an index)" in note]
    assert prepared(reading).subject("s1").voxels["y_mm"].tolist() == places["y_mm"].tolist()


def test_a_store_with_a_hostile_manifest_is_refused(table, prepared):
    store = prepared(read_custom(table.root / "header.yaml"))
    path = store.path / "manifest.json"
    content = json.loads(path.read_text())
    for change in (
        {"subjects": {"../../x": content["subjects"]["s1"]}},
        {"sha256": content["sha256"] | {"../../x": "0"}},
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(DataError, match=r"manifest\.json: .*\.\./\.\./x"):
            open_store(store.path)
