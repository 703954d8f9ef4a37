"""Captions in JSON: every form that captioning tools write is read as the same captions."""

import json

import pytest

from bitllm.data.io.captions import read_caption_file
from bitllm.errors import DataError

CAPTIONS = {"139": ("a dog", "two dogs"), "7": ("a café",)}
ROWS = [{"image_id": int(image), "caption": text} for image, texts in CAPTIONS.items() for text in texts]
IMAGES = [{"id": 139, "file_name": "val2014/apple.jpg"}, {"id": 7, "file_name": "1.10.png"}]


def written(folder, content):
    path = folder / "captions.json"
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (CAPTIONS, "map"),
        ("\ufeff" + json.dumps(CAPTIONS), "map"),
        (json.dumps(CAPTIONS, indent=1).replace("\n", "\r"), "map"),
        (CAPTIONS | {"7": "a café"}, "map"),
        ({" 139": CAPTIONS["139"], "7 ": "a café"}, "map"),
        (ROWS, "rows"),
        (json.dumps(ROWS, indent=2), "rows"),
        ([row | {"image_id": str(row["image_id"]), "id": 3} for row in ROWS], "rows"),
        ([row | {"image_id": float(row["image_id"])} for row in ROWS], "rows"),
        ({"annotations": ROWS, "images": IMAGES, "info": {}}, "annotations"),
        ({"annotations": ROWS}, "annotations"),
        ("\n".join(map(json.dumps, ROWS)), "rows"),
        ("\ufeff" + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n", "rows"),
        ("\r".join(map(json.dumps, ROWS)) + "\r", "rows"),
        ("\n".join(json.dumps({image: texts}) for image, texts in CAPTIONS.items()), "map"),
    ],
)
def test_every_form_gives_the_same_captions(tmp_path, content, form):
    file = read_caption_file(written(tmp_path, content))
    assert (file.captions, file.form) == (CAPTIONS, form)
    assert file.is_coco == (form != "map")


def test_a_single_line_of_json_lines_is_a_row(tmp_path):
    path = written(tmp_path, '{"image_id": 5, "caption": "a bus"}\n')
    assert read_caption_file(path).captions == {"5": ("a bus",)}


def test_images_may_be_called_as_the_keys_of_coco(tmp_path):
    content = {"annotations": ["a pile of paper"], "caption": "a sign", "images": ["a wall"]}
    assert list(read_caption_file(written(tmp_path, content)).captions) == [
        "annotations",
        "caption",
        "images",
    ]


def test_ids_that_are_names_stay_text(tmp_path):
    rows = [{"image_id": name, "caption": name} for name in ("0007", "x0007", "1518879.010420", "1.10")]
    file = read_caption_file(written(tmp_path, rows))
    assert file.captions == {row["image_id"]: (row["image_id"],) for row in rows}
    assert not file.is_coco


def test_html_entities_are_replaced_and_counted(tmp_path):
    content = {
        "1": ["A man&#39;s dog &amp; cat", "AT&T, R&D; fish &amp chips"],
        "2": "&amp;quot;Hi&amp;quot;&nbsp;x",
    }
    file = read_caption_file(written(tmp_path, content))
    assert file.captions == {"1": ("A man's dog & cat", "AT&T, R&D; fish &amp chips"), "2": ('"Hi" x',)}
    (note,) = file.notes
    assert "2 captions" in note


def test_names_are_composed_and_without_spaces_and_a_note_counts_them(tmp_path):
    file = read_caption_file(written(tmp_path, {"cafe\u0301": ["x"], " p00 ": ["y"], "z": ["z"]}))
    assert file.captions == {"caf\u00e9": ("x",), "p00": ("y",), "z": ("z",)}
    assert "2 names" in file.notes[0]


def test_file_names_lead_to_captions_with_and_without_ending(tmp_path):
    content = {"annotations": ROWS, "images": [*IMAGES, {"id": 8}, {"id": 9, "file_name": "pic/b.PNG"}]}
    found = read_caption_file(written(tmp_path, content)).by_file_name
    assert found["apple"] == found["apple.jpg"] == CAPTIONS["139"]
    assert found["1.10"] == CAPTIONS["7"]
    assert "1" not in found
    assert found["b"] == ()


def test_a_file_name_of_two_images_has_no_captions(tmp_path):
    images = [{"id": 139, "file_name": "train/a.jpg"}, {"id": 7, "file_name": "val/a.png"}]
    found = read_caption_file(written(tmp_path, {"annotations": ROWS, "images": images})).by_file_name
    assert found == {"a": (), "a.jpg": CAPTIONS["139"], "a.png": CAPTIONS["7"]}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"1": ["a"], "1": ["b"]}', r"1 keys twice \('1'\)"),
        ('{"a": "x"}\n{"a": "y"}', r"1 twice \(a\)"),
        ('{"cafe\u0301": "x", "caf\u00e9": "y"}', r"1 twice \(caf"),
        ('{"1": ["half \\ud800"]}', "half of one"),
        ({"1": [3]}, "`1`, found 3"),
        ({"1": None}, "`1`, found None"),
        ({"1": {"caption": "x"}}, "`1`, found {'caption': 'x'}"),
        ({"": ["x"]}, "found ''"),
        ([{"image_id": 1518879.01042, "caption": "x"}], "found 1518879.01042"),
        ([{"image_id": True, "caption": "x"}], "found True"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], "image_id, bbox"),
        ({"annotations": [{"image_id": 1}]}, "number 1 without"),
        ('{"image_id": 1, "caption": "x"}\n{"image_id": 1}', "number 2 without"),
        ('{"a": "x"}\n{"b": ', "captions.json, line 2: expected JSON"),
        ('{"a": "x"}\n[1]', "line 2: expected a JSON object, found list"),
        ('{"1": "a"', "expected JSON"),
        ("[]", "found an empty list"),
        ("{}", "found none"),
        ("3", r"found another \(int\)"),
        (["a"], r"found another \(list\)"),
        (" \n", "found an empty file"),
    ],
)
def test_what_is_not_captions_is_refused_in_one_line(tmp_path, content, found):
    with pytest.raises(DataError, match=found) as caught:
        read_caption_file(written(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "captions.json"))


def test_ids_that_are_one_number_are_refused_where_they_are_compared_as_numbers(tmp_path):
    file = read_caption_file(written(tmp_path, {"7": "a", "007": "b"}))
    assert file.captions == {"7": ("a",), "007": ("b",)}
    with pytest.raises(DataError, match=r"1 twice \(7\)"):
        _ = file.by_coco_id
