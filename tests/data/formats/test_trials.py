"""The trials table of a lab: sessions and runs by name, empty names, images for validation where none are named."""

import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.formats.custom import read_custom
from bitllm.data.splits import make_split
from bitllm.data.store import open_store
from bitllm.data.store.complete import part_of_image, with_validation_images
from bitllm.errors import DataError


@pytest.fixture(name="change_trials")
def _change_trials(table):
    """Rewrite the trials table; its columns as text, as the file holds them."""

    def change(edit) -> None:
        path = table.root / "trials.tsv"
        edit(pd.read_csv(path, sep="\t", dtype=str)).to_csv(path, sep="\t", index=False)

    return change


def with_value(column: str, value: str, row: int = 4):
    """Another value in one row."""
    return lambda trials: trials.assign(**{column: trials[column].where(trials.index != row, value)})


def test_sessions_and_runs_may_be_written_as_in_bids(table, change_trials, prepared):
    plain = prepared(read_custom(table.root / "header.yaml"), "plain")
    change_trials(lambda t: t.assign(session="ses-0" + t["session"], run="run-0" + t["run"]))
    store = prepared(read_custom(table.root / "header.yaml"))
    pd.testing.assert_frame_equal(store.subject("s1").trials, plain.subject("s1").trials)
    assert store.manifest == plain.manifest


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("session", "", r"column `session` of the trials, found nothing in row 5"),
        ("run", "1.5", r"expected whole numbers .* column `run` of the trials, found `1.5` in row 5"),
        ("run", "", r"column `run` of the trials, found nothing in row 5"),
        ("trial_row", "four", r"column `trial_row` of the trials, found `four` in row 5"),
        ("subject", "", r"expected a name in the column `subject` of the trials, found nothing in row 5"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_number_or_no_name_is_named_with_its_row(
    table, change_trials, tmp_path, capsys, column, value, match
):
    change_trials(with_value(column, value))
    with pytest.raises(DataError, match=rf"trials\.tsv: .*{match}"):
        read_custom(table.root / "header.yaml")
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "table", str(table.root / "header.yaml"), str(tmp_path / "store")])
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_place_that_is_a_word_is_named_with_its_row(table, change_header, prepared):
    n_voxels = table.betas.shape[1]
    places = pd.DataFrame({axis: ["1.5"] * n_voxels for axis in ("x_mm", "y_mm", "z_mm")})
    places.loc[2, "y_mm"] = "left"
    places.to_csv(table.root / "places.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match=r"column `y_mm` of the table of voxels, found `left` in row 3"):
        prepared(read_custom(change_header(voxels="places.tsv")))


def test_without_val_some_training_images_are_for_validation_and_a_note_says_so(
    table, change_trials, tmp_path, capsys
):
    is_test = sorted(n for n in set(table.nsd_id.tolist()) if n >= 10)
    change_trials(lambda t: t.assign(split=t["split"].replace("val", "train")))
    main(["prepare", "table", str(table.root / "header.yaml"), str(tmp_path / "store")])
    assert "note: no image of the part val: 1 of 10 training images" in capsys.readouterr().out
    store = open_store(tmp_path / "store")
    part = store.stimuli["part"]
    assert part.value_counts().to_dict() == {"train": 9, "test": 2, "validation": 1}
    assert part.index[part == "test"].tolist() == is_test
    assert store.stimuli.index[store.stimuli["shared"]].tolist() == is_test


def test_images_for_validation_are_those_of_the_formats_without_parts():
    stimuli = pd.DataFrame({"nsd_id": range(2000), "shared": [n % 10 == 0 for n in range(2000)]})
    stimuli["part"] = ["test" if shared else "train" for shared in stimuli["shared"]]
    settings = {"validation_fraction": 0.08, "seed": 0}
    found, notes = with_validation_images(stimuli, **settings)
    by_hand = [part_of_image(n, is_shared=n % 10 == 0, **settings) for n in range(2000)]
    assert found["part"].tolist() == by_hand
    assert len(notes) == 1
    again, none = with_validation_images(found, **settings)
    assert again["part"].tolist() == by_hand
    assert none == ()


def test_a_shared_image_among_the_training_images_is_never_for_validation():
    stimuli = pd.DataFrame({"nsd_id": range(6), "shared": [True] * 4 + [False] * 2, "part": "train"})
    for seed in range(20):
        found, _ = with_validation_images(stimuli, validation_fraction=0.9, seed=seed)
        assert found["part"].tolist()[:4] == ["train"] * 4
        assert sorted(found["part"][4:]) == ["train", "validation"]


def test_a_split_of_two_subjects_without_val_has_images_to_choose_by(
    table, change_trials, change_header, prepared
):
    header = change_header()
    text = header.read_text()
    one = {"betas": "betas.nii.gz", "mask": "mask.nii.gz"}
    assert "s1" in text
    header.write_text(text.replace("  s1:", f"  s2: {one}\n  s1:"))
    change_trials(
        lambda t: pd.concat([t, t.assign(subject="s2")]).assign(
            split=lambda both: both["split"].replace("val", "train")
        )
    )
    assert make_split(prepared(read_custom(header)), "poster").validation_images
