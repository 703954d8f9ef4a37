import json

import pytest

from bitllm.errors import DataError
from bitllm.evaluation.scoring.captions_file import (
    CaptionPairs,
    CaptionRecord,
    in_order_of,
    read_input,
    write_captions,
)


def lines(path, *controls):
    records = [
        CaptionRecord(nsd_id=n, subject="subj08", caption=f"c{n}", references=(f"own {n}",), control=control)
        for control in controls
        for n in (7, 3)
    ]
    write_captions(path, records)
    return path


def test_our_captions_carry_their_references_unless_others_are_given(tmp_path):
    path, references = lines(tmp_path / "c.jsonl", "real"), tmp_path / "r.json"
    assert read_input(path, None)[:3] == (("7", "3"), ("c7", "c3"), (("own 7",), ("own 3",)))
    references.write_text(json.dumps({"3": ["x"], "7": ["y", "z"]}))
    assert read_input(path, references).references == (("y", "z"), ("x",))
    references.write_text(json.dumps({"3": ["x"]}))
    with pytest.raises(DataError, match=r"found 1 of 2 without references \(7\)"):
        read_input(path, references)


def test_captions_of_several_controls_are_not_mixed(tmp_path):
    path = lines(tmp_path / "c.jsonl", "real", "zero")
    with pytest.raises(DataError, match=r"expected captions of one control, found 2 \(real, zero\)"):
        read_input(path, None)


def test_plain_captions_without_references_are_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"1": "a"}')
    with pytest.raises(DataError, match=r"give them with --references"):
        read_input(tmp_path / "c.json", None)


def test_captions_are_put_in_the_order_of_other_ones(tmp_path):
    pairs = CaptionPairs(("b", "a", "b"), ("1", "2", "3"), (("x",), ("y",), ("x",)))
    assert in_order_of(tmp_path, pairs, ["a", "b"]).captions == ("2", "1", "3")


def test_captions_of_other_images_are_counted_and_named(tmp_path):
    pairs = CaptionPairs(tuple("abcde"), tuple("vwxyz"), (("r",),) * 5)
    with pytest.raises(
        DataError, match=r"same 2 images, found 4 others \(b, c, d\); 1 missing \(q\); score both"
    ):
        in_order_of(tmp_path, pairs, ["a", "q"])
