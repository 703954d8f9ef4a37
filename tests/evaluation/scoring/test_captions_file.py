import json
import re

import pytest

from bitllm.cli import main
from bitllm.errors import DataError
from bitllm.evaluation.scoring.captions_file import (
    CaptionRecord,
    is_json_lines,
    read_caption_pairs,
    read_captions,
    write_captions,
)


def record(nsd_id=3, **changes):
    values = {"subject": "subj08", "caption": "a dög", "references": ("a dog", "dogs"), "n_repetitions": 3}
    return CaptionRecord(nsd_id=nsd_id, **(values | changes))


def write_pair(folder, captions, references):
    paths = folder / "captions.json", folder / "references.json"
    for path, content in zip(paths, (captions, references), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return paths


def test_records_come_back_as_they_were_written(tmp_path):
    records = [record(), record(4, caption=""), record(control="zero")]
    write_captions(tmp_path / "captions.jsonl", records)
    assert read_captions(tmp_path / "captions.jsonl") == records
    assert list(tmp_path.iterdir()) == [tmp_path / "captions.jsonl"]


def test_a_line_is_plain_json_with_the_documented_keys(tmp_path):
    write_captions(tmp_path / "captions.jsonl", [record()])
    text = (tmp_path / "captions.jsonl").read_text(encoding="utf-8")
    assert "dög" in text
    assert list(json.loads(text)) == [
        "nsd_id",
        "subject",
        "caption",
        "references",
        "n_repetitions",
        "control",
    ]


def test_single_trials_may_repeat_an_image_but_averages_may_not(tmp_path):
    path = tmp_path / "captions.jsonl"
    write_captions(path, [record(n_repetitions=1), record(n_repetitions=1)])
    assert len(read_captions(path)) == 2
    write_captions(path, [record(), record(4), record()])
    with pytest.raises(DataError, match=r"found 1 duplicates \(subj08 real nsd_id 3\)"):
        read_captions(path)


def test_a_record_without_references_is_refused(tmp_path):
    write_captions(tmp_path / "c.jsonl", [record(n, references=()) for n in range(5)])
    with pytest.raises(DataError, match=r"found 5 images without any \(nsd_id 0, nsd_id 1, nsd_id 2, …\)"):
        read_captions(tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    "line", ["{", '{"nsd_id": "three"}', '{"nsd_id": 1, "id": 2}', "[]", '{"nsd_id": 1, "nsd_id": 2}']
)
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / "c.jsonl").write_text(record().model_dump_json() + "\n" + line, encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.jsonl, line 2: expected"):
        read_captions(tmp_path / "c.jsonl")


def test_the_command_that_an_error_names_exists(tmp_path, capsys):
    (tmp_path / "c.jsonl").write_text('{"nsd_id": 1}')
    with pytest.raises(DataError) as caught:
        read_captions(tmp_path / "c.jsonl")
    (command,) = re.findall(r"`bitllm (\w+)`", str(caught.value))
    with pytest.raises(SystemExit) as status:
        main([command, "--help"])
    assert status.value.code == 0
    assert command in capsys.readouterr().out


def test_missing_empty_and_wrongly_encoded_files_are_refused(tmp_path):
    path = tmp_path / "captions.jsonl"
    with pytest.raises(DataError, match="a file of captions, found no file"):
        read_captions(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="expected captions, found an empty file"):
        read_captions(path)
    path.write_bytes('{"0": "a café"}'.encode("latin-1"))
    with pytest.raises(DataError, match="at byte 12"):
        read_captions(path)


def test_plain_json_gives_captions_in_their_order_with_their_references(tmp_path):
    pairs = read_caption_pairs(*write_pair(tmp_path, {"9": "x", "1": ""}, {"1": ["a"], "9": ["b", "c"]}))
    assert pairs[:3] == (("9", "1"), ("x", ""), (("b", "c"), ("a",)))


def test_the_two_kinds_of_file_are_told_apart(tmp_path):
    write_captions(tmp_path / "ours.jsonl", [record()])
    plain, _ = write_pair(tmp_path, '{\n "9": "x"}', {})
    assert is_json_lines(tmp_path / "ours.jsonl")
    assert not is_json_lines(plain)
    (tmp_path / "number").write_text("3")
    assert not is_json_lines(tmp_path / "number")


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        ({"1": "a", "2": "b"}, {"1": ["a"]}, r"found 1 of 2 without references \(2\)"),
        ({"1": "a"}, {str(n): ["a"] for n in range(6)}, r"each of 6 ids .*found none for 5 \(0, 2, 3, …\)"),
        ({"1": "a"}, {"1": []}, r"expected references of every image, found 1 ids without any \(1\)"),
        ('{"1": "a", "1": "b"}', {"1": ["a"]}, r"1 keys twice \('1'\)"),
        ({"1": ["a", "b"], "2": []}, {"1": ["a"]}, r"images with none or several \(1, 2\)"),
        ({"1": 3}, {"1": ["a"]}, r"`1`, found 3"),
        ('{"1": "a"', {"1": ["a"]}, "expected JSON, found text that does not parse"),
        ({}, {"1": ["a"]}, "found none"),
        (["a"], {"1": ["a"]}, r"found another \(list\)"),
    ],
)
def test_plain_json_that_does_not_fit_is_refused_in_one_line(tmp_path, captions, references, message):
    with pytest.raises(DataError, match=message) as caught:
        read_caption_pairs(*write_pair(tmp_path, captions, references))
    assert "\n" not in str(caught.value)
