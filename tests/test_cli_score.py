"""The command ``bitllm score`` from the outside: what it prints, what it writes, what it refuses."""

import json

import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.errors import DataError

CAPTIONS = {"1": 'He said "go", what?!', "2": "two boats", "3": "a red bus", "4": ""}
REFERENCES = {"1": ["he said go", "a man"], "2": ["boats", "a boat"], "3": ["bus", "a bus"], "4": ["a", "b"]}
FAST = ["--tokenizer", "python", "--no-meteor", "--no-spice"]


@pytest.fixture
def files(tmp_path):
    """Captions, others in another order, and references; the first with a byte order mark."""
    (tmp_path / "ours.json").write_text(json.dumps(CAPTIONS), encoding="utf-8-sig")
    (tmp_path / "other.json").write_text(json.dumps(dict.fromkeys("4321", "a bus")))
    (tmp_path / "references.json").write_text(json.dumps(REFERENCES))
    return tmp_path


def run(files, *words, captions="ours.json"):
    main(
        [
            "score",
            str(files / captions),
            "--references",
            str(files / "references.json"),
            *map(str, words),
            *FAST,
        ]
    )


def refused(files, capsys, *words, **options):
    """The one line of a command that must fail."""
    with pytest.raises(SystemExit) as stopped:
        run(files, *words, **options)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_json_has_the_documented_fields(files, capsys):
    run(files, "--json")
    found = json.loads(capsys.readouterr().out)
    documented = {"metrics", "intervals", "floors", "not_run", "n_images", "references_sha256", "tokenizer"}
    assert documented | {"versions", "differences", "notes", "summary"} <= set(found)
    assert set(found["floors"]) == {"constant", "permuted", "human"}
    assert found["not_run"]["METEOR"] == "left out (--no-meteor)"
    assert found["tokenizer"] == "ptb-python"
    assert found["notes"] == ["1 of 4 captions are empty; they are scored as they are"]
    assert len(found["intervals"]["CIDEr"]) == 2


def test_one_sentence_for_all_images_is_called_out_by_name(files, capsys):
    run(files, captions="other.json")
    said = " ".join(capsys.readouterr().out.split())
    assert "No evidence that the captions of other.json depend on the betas" in said
    assert "all captions are one sentence" in said
    assert "not run: METEOR: left out (--no-meteor)" in said


def test_another_system_is_compared_and_every_caption_is_written(files, capsys):
    run(files, "--compare", files / "other.json", "--per-image", files / "each.parquet", "--json")
    found = json.loads(capsys.readouterr().out)
    assert set(found["differences"]["ours.json - other.json"]["BLEU-4"]) == {"value", "low", "high", "p"}
    table = pd.read_parquet(files / "each.parquet")
    assert table["caption"].tolist() == list(CAPTIONS.values())
    assert table["CIDEr"].mean() == pytest.approx(found["metrics"]["CIDEr"])


def test_the_constant_caption_comes_from_training_references_where_given(files, capsys):
    run(files, "--training-references", files / "references.json", "--json")
    assert json.loads(capsys.readouterr().out)["floors"]["constant"]["chosen_on"] == "training references"


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (
            dict.fromkeys("56789", "a"),
            REFERENCES,
            "5, 6, 7, …",
        ),
        (CAPTIONS, REFERENCES | {"2": []}, "(2)"),
        (CAPTIONS, REFERENCES | {"2": [3]}, "`2`, found 3"),
        ('{"1": "a", "1": "b"}', REFERENCES, "('1')"),
        ({"1": "a"}, {"1": ["a"]}, "2 images, found 1"),
        (b'{"1": "caf\xe9"}', REFERENCES, "UTF-8"),
        (CAPTIONS | {"2": "half \ud83d"}, REFERENCES, "`2`"),
        ({"1": 3}, REFERENCES, "`1`, found 3"),
    ],
)
def test_input_that_cannot_be_scored_is_one_line(files, capsys, captions, references, message):
    for name, content in (("ours", captions), ("references", references)):
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (files / f"{name}.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(files, capsys)


def test_files_and_models_that_are_missing_are_one_line(files, capsys):
    assert "none.json" in refused(files, capsys, captions="none.json")
    assert "none.json" in refused(files, capsys, "--compare", files / "none.json")
    nowhere = files / "nowhere"
    assert "found none; check the path" in refused(files, capsys, "--bertscore", nowhere)
    words = ["--clip", nowhere, "--images", files]
    assert "found none; check the path" in refused(files, capsys, *words)
    assert "give them with --images FOLDER" in refused(files, capsys, "--clip", nowhere)
    with pytest.raises(DataError):
        run(files, "--compare", files / "none.json", "--debug")


def test_scores_are_not_written_where_there_is_no_place(files, capsys):
    (files / "file").write_text("")
    line = refused(files, capsys, "--per-image", files / "file" / "each.parquet")
    assert f"expected a place for a file, found the file {files / 'file'} in its way" in line
    assert "found a folder; name another file" in refused(files, capsys, "--per-image", files)
