"""`bitllm tasks`: questions are added, listed with their license, and an error is one line."""

import json
import shutil

import pytest

from bitllm.cli import main


@pytest.fixture
def store(easy_release, tmp_path):
    """A copy of a store with derived and simulated questions."""
    return shutil.copytree(easy_release / "store", tmp_path / "store")


def test_questions_are_added_and_listed_with_their_license(store, tmp_path, capsys):
    main(["tasks", str(store), "--json"])
    before = json.loads(capsys.readouterr().out)
    assert {one["task"] for one in before} >= {"presence", "vqa-v2", "visdial"}
    rows = "".join(f"{n},What is it?,a thing\n" for n in (0, 1, 24))
    (tmp_path / "mine.csv").write_text(f"image,question,answers\n{rows}")
    main(["tasks", str(store), "table", str(tmp_path / "mine.csv"), "--license", "CC0", "--json"])
    after = {one["task"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(after) == {one["task"] for one in before} | {"mine"}
    assert after["mine"]["license"] == "CC0" and sum(after["mine"]["n_exchanges"].values()) == 3
    main(["tasks", str(store), "--derive", "--seed", "5"])
    shown = capsys.readouterr().out
    assert "CC0" in shown and "presence" in shown


def test_an_error_is_one_line_with_status_2(store, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("image,question,answers\n99999,What is it?,a thing\n")
    with pytest.raises(SystemExit) as end:
        main(["tasks", str(store), "table", str(tmp_path / "mine.csv")])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1 and "`99999`" in said
