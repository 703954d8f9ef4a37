"""Our captions.jsonl, and captions and references in the forms that other tools write."""

import json
import re

import pytest

from bitllm.cli import main
from bitllm.errors import DataError
from bitllm.evaluation.scoring.captions_file import (
    CaptionPairs,
    CaptionRecord,
    in_order_of,
    is_json_lines,
    read_captions,
    read_input,
    read_references,
    write_captions,
)

CAPTIONS = {"7": 'a "dog" runs', "139": "two boats\u2028at sea", "25": "ein Bär 🐻", "9007199254740993": ""}
REFERENCES = {image: [f"first of {image}", "a second, with\ttab"] for image in [*CAPTIONS][::-1]}
ROWS = [{"image_id": int(image), "caption": text} for image, text in CAPTIONS.items()]
ANNOTATIONS = [
    {"id": n, "image_id": int(image), "caption": text, "extra": None}
    for n in (0, 1)
    for image, texts in REFERENCES.items()
    for text in [texts[n]]
]
OURS = [
    {"nsd_id": int(image), "subject": "subj01", "caption": text, "references": ["old"]}
    for image, text in CAPTIONS.items()
]
EXPECTED = (tuple(CAPTIONS), tuple(CAPTIONS.values()), tuple(tuple(REFERENCES[i]) for i in CAPTIONS))


def record(nsd_id=3, **changes):
    values = {"subject": "subj08", "caption": "a dög", "references": ("a dog", "dogs"), "n_repetitions": 3}
    return CaptionRecord(nsd_id=nsd_id, **(values | changes))


def files(folder, captions, references):
    """Paths of both files, each with a JSON value or with a text."""
    paths = folder / "captions", folder / "referências.JSON"
    for path, content in zip(paths, (captions, references), strict=True):
        path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode())
    return paths


def lines(rows: list, end: str = "\n", **how) -> str:
    return "".join(json.dumps(row, **how) + end for row in rows)


def windows(content) -> str:
    return json.dumps(content, ensure_ascii=False, indent="\t").replace("\n", "\r\n")


ODD = {
    "escaped letters": (CAPTIONS, REFERENCES),
    "plain letters, tabs and a line end of Windows": (windows(CAPTIONS), windows(REFERENCES)),
    "a byte order mark": ("\ufeff" + json.dumps(CAPTIONS), "\ufeff" + json.dumps(REFERENCES)),
    "lists of one": ({i: [t] for i, t in CAPTIONS.items()}, REFERENCES),
    "COCO's results and annotations": (ROWS, {"images": [], "annotations": ANNOTATIONS}),
    "COCO's annotations and a list": ({"annotations": ROWS}, ANNOTATIONS),
    "ids with zeros": (
        [row | {"image_id": f"{row['image_id']:012d}"} for row in ROWS],
        lines(ANNOTATIONS),
    ),
    "JSON lines with CR and LF": (lines(ROWS, "\r\n"), lines(ANNOTATIONS, "\r\n", ensure_ascii=False)),
    "JSON lines with CR alone": (lines(ROWS, "\r"), lines(ANNOTATIONS, "\r")),
    "JSON lines with empty lines": (lines(ROWS, "\n\n  \n"), "\n\n" + lines(ANNOTATIONS)),
    "JSON lines of one key each": (lines([{i: t} for i, t in CAPTIONS.items()]), REFERENCES),
    "our own lines with a mark": ("\ufeff" + lines(OURS, ensure_ascii=False), REFERENCES),
    "our own lines with line ends of Windows": (lines(OURS, "\r\n"), REFERENCES),
    "our own lines without the last end": (
        lines(OURS).rstrip("\n"),
        lines([{i: t} for i, t in REFERENCES.items()]),
    ),
}


@pytest.mark.parametrize("odd", list(ODD))
def test_captions_and_references_of_every_form_are_read_alike(tmp_path, odd):
    folder = tmp_path / "Überschriften (1)"
    folder.mkdir()
    assert read_input(*files(folder, *ODD[odd]))[:3] == EXPECTED


def test_ids_may_be_floats_and_a_reference_a_single_string(tmp_path):
    paths = files(tmp_path, [row | {"image_id": float(row["image_id"])} for row in ROWS[:2]], REFERENCES)
    with pytest.raises(DataError, match=r"found none for 2"):
        read_input(*paths)
    paths = files(tmp_path, [{"image_id": 7.0, "caption": "a"}], {"7": "x"})
    assert read_input(*paths)[:3] == (("7",), ("a",), (("x",),))


def test_records_come_back_as_they_were_written(tmp_path):
    records, path = [record(), record(4, caption=""), record(control="zero")], tmp_path / "captions.jsonl"
    write_captions(path, records)
    assert read_captions(path) == records
    assert list(tmp_path.iterdir()) == [path]
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert "dög" in first
    assert list(json.loads(first)) == [
        *("nsd_id", "subject", "caption", "references"),
        *("n_repetitions", "control"),
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


def test_the_two_kinds_of_file_are_told_apart(tmp_path):
    write_captions(tmp_path / "ours.jsonl", [record()])
    assert is_json_lines(tmp_path / "ours.jsonl")
    for other in ('{\n "9": "x"}', "3"):
        (tmp_path / "other").write_text(other)
        assert not is_json_lines(tmp_path / "other")


def test_our_captions_carry_their_references_unless_others_are_given(tmp_path):
    path, references = tmp_path / "c.jsonl", tmp_path / "r.json"
    write_captions(path, [record(n, caption=f"c{n}", references=(f"own {n}",)) for n in (7, 3)])
    assert read_input(path, None)[:3] == (("7", "3"), ("c7", "c3"), (("own 7",), ("own 3",)))
    references.write_text(json.dumps({"3": ["x"], "7": ["y", "z"]}))
    assert read_input(path, references).references == (("y", "z"), ("x",))
    references.write_text(json.dumps({"3": ["x"]}))
    with pytest.raises(DataError, match=r"found 1 of 2 without references \(7\)"):
        read_input(path, references)


def test_captions_of_several_controls_or_without_references_are_refused(tmp_path):
    write_captions(tmp_path / "c.jsonl", [record(), record(control="zero")])
    with pytest.raises(DataError, match=r"expected captions of one control, found 2 \(real, zero\)"):
        read_input(tmp_path / "c.jsonl", None)
    (tmp_path / "c.json").write_text('{"1": "a"}')
    with pytest.raises(DataError, match="give them with --references"):
        read_input(tmp_path / "c.json", None)


def test_captions_are_put_in_the_order_of_other_ones(tmp_path):
    pairs = CaptionPairs(("b", "a", "b"), ("1", "2", "3"), (("x",), ("y",), ("x",)))
    assert in_order_of(tmp_path, pairs, ["a", "b"]).captions == ("2", "1", "3")
    others = CaptionPairs(tuple("abcde"), tuple("vwxyz"), (("r",),) * 5)
    with pytest.raises(DataError, match=r"same 2 images, found 4 others \(b, c, d\); 1 missing \(q\)"):
        in_order_of(tmp_path, others, ["a", "q"])


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
        ([*ROWS, {"image_id": 25, "caption": "a car"}], REFERENCES, r"images with none or several \(25\)"),
        ([*ROWS, {"image_id": "025", "caption": "a car"}], REFERENCES, r"1 twice \(25\)"),
        ({"annotations": ANNOTATIONS}, REFERENCES, r"images with none or several \(9007199254740993, 25"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, captions, references, message):
    with pytest.raises(DataError, match=message) as caught:
        read_input(*files(tmp_path, captions, references))
    assert "\n" not in str(caught.value)


def test_names_find_their_references_by_the_file_names_of_coco(tmp_path):
    images = [{"id": int(image), "file_name": f"train/name{image}.jpg"} for image in REFERENCES]
    captions = {f"name{image}": text for image, text in CAPTIONS.items()}
    paths = files(tmp_path, captions, {"annotations": ANNOTATIONS, "images": images})
    assert read_input(*paths)[:3] == (tuple(captions), *EXPECTED[1:])


def test_images_of_annotations_without_a_caption_are_left_out_with_a_note(tmp_path):
    notes: list[str] = []
    pairs = read_input(*files(tmp_path, ROWS[:2], {"annotations": ANNOTATIONS}), notes)
    assert pairs[:3] == tuple(column[:2] for column in EXPECTED)
    assert len(notes) == 1 and "2 of 4 images" in notes[0]
    more = [*ROWS, {"image_id": 8, "caption": "x"}]
    with pytest.raises(DataError, match=r"found 1 of 5 without references \(8\)"):
        read_input(*files(tmp_path, more, {"annotations": ANNOTATIONS}))
    with pytest.raises(DataError, match=r"found 1 of 1 without references \(a\)"):
        read_input(*files(tmp_path, {"a": "x"}, {"annotations": ANNOTATIONS}))


def test_entities_are_replaced_and_counted_in_a_note(tmp_path):
    notes: list[str] = []
    pairs = read_input(*files(tmp_path, CAPTIONS | {"7": "a man&#39;s dog &amp; cat"}, REFERENCES), notes)
    assert pairs.captions[0] == "a man's dog & cat"
    assert len(notes) == 1 and "1 captions" in notes[0]


def test_coco_ids_are_not_taken_for_nsd_ids(tmp_path):
    write_captions(tmp_path / "c.jsonl", [record(int(i)) for i in REFERENCES])
    _, references = files(tmp_path, {}, {"annotations": ANNOTATIONS})
    with pytest.raises(DataError, match=r"JSON.*`image_id`"):
        read_input(tmp_path / "c.jsonl", references)
    assert read_references(references) == {image: tuple(texts) for image, texts in REFERENCES.items()}
