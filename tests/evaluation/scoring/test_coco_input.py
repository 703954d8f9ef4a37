"""Captions and references in the forms that captioning tools write are scored as those in our own."""

import json

import pytest

from bitllm.errors import DataError
from bitllm.evaluation.scoring.captions_file import CaptionRecord, read_input, read_references, write_captions
from bitllm.evaluation.scoring.score_file import ScoreOptions, score_file

CAPTIONS = {"3": "a dog runs", "139": "two boats", "25": "a red bus"}
REFERENCES = {"25": ["a bus", "a red bus stops"], "3": ["a dog", "the dog"], "139": ["two boats", "boats"]}
RESULTS = [{"image_id": int(image), "caption": text} for image, text in CAPTIONS.items()]
ANNOTATIONS = [
    {"id": n, "image_id": int(image), "caption": text}
    for image, texts in REFERENCES.items()
    for n, text in enumerate(texts)
]
EXPECTED = (tuple(CAPTIONS), tuple(CAPTIONS.values()), tuple(tuple(REFERENCES[i]) for i in CAPTIONS))


def files(folder, captions, references):
    paths = folder / "captions.json", folder / "references.json"
    for path, content in zip(paths, (captions, references), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return paths


@pytest.mark.parametrize(
    "captions",
    [
        CAPTIONS,
        "\ufeff" + json.dumps(CAPTIONS),
        {image: [text] for image, text in CAPTIONS.items()},
        RESULTS,
        [row | {"image_id": f"{row['image_id']:012d}"} for row in RESULTS],
        {"annotations": RESULTS},
        "\n".join(map(json.dumps, RESULTS)),
    ],
)
@pytest.mark.parametrize(
    "references",
    [REFERENCES, {"annotations": ANNOTATIONS}, ANNOTATIONS, "\n".join(map(json.dumps, ANNOTATIONS))],
)
def test_every_form_gives_the_same_pairs(tmp_path, captions, references):
    assert read_input(*files(tmp_path, captions, references))[:3] == EXPECTED


def test_the_scores_are_the_same_too(tmp_path):
    plain = score_file(*files(tmp_path, CAPTIONS, REFERENCES))
    coco = score_file(*files(tmp_path, RESULTS, {"annotations": ANNOTATIONS, "images": []}))
    assert coco.metrics == plain.metrics
    assert coco.floors == plain.floors


def test_one_string_as_reference_is_a_list_of_one(tmp_path):
    assert read_input(*files(tmp_path, {"a": "x"}, {"a": "y"})).references == (("y",),)


@pytest.mark.parametrize(
    ("captions", "found"),
    [
        ([*RESULTS, {"image_id": 25, "caption": "a car"}], r"images with none or several \(25\)"),
        ([*RESULTS, {"image_id": "025", "caption": "a car"}], r"1 twice \(25\)"),
        (CAPTIONS | {"25": ["a bus", "a car"]}, r"images with none or several \(25\)"),
        ({"annotations": ANNOTATIONS}, r"images with none or several \(25, 3, 139\)"),
    ],
)
def test_several_captions_of_an_image_are_refused(tmp_path, captions, found):
    with pytest.raises(DataError, match=found):
        read_input(*files(tmp_path, captions, REFERENCES))


def test_names_find_their_references_by_the_file_names_of_coco(tmp_path):
    images = [{"id": int(image), "file_name": f"train/name{image}.jpg"} for image in REFERENCES]
    captions = {f"name{image}": text for image, text in CAPTIONS.items()}
    paths = files(tmp_path, captions, {"annotations": ANNOTATIONS, "images": images})
    assert read_input(*paths)[:3] == (tuple(captions), *EXPECTED[1:])


def test_images_of_annotations_without_a_caption_are_left_out_with_a_note(tmp_path):
    notes: list[str] = []
    pairs = read_input(*files(tmp_path, RESULTS[:2], {"annotations": ANNOTATIONS}), notes)
    assert pairs[:3] == tuple(column[:2] for column in EXPECTED)
    assert len(notes) == 1 and "1 of 3 images" in notes[0]
    with pytest.raises(DataError, match=r"found none for 1 \(25\)"):
        read_input(*files(tmp_path, RESULTS[:2], REFERENCES))
    with pytest.raises(DataError, match=r"found 1 of 4 without references \(8\)"):
        read_input(
            *files(tmp_path, [*RESULTS, {"image_id": 8, "caption": "x"}], {"annotations": ANNOTATIONS})
        )
    with pytest.raises(DataError, match=r"found 1 of 1 without references \(a\)"):
        read_input(*files(tmp_path, {"a": "x"}, {"annotations": ANNOTATIONS}))


def test_entities_are_replaced_and_counted_in_the_notes_of_the_result(tmp_path):
    captions = CAPTIONS | {"3": "a man&#39;s dog &amp; cat"}
    scores = score_file(*files(tmp_path, captions, REFERENCES))
    assert (
        scores.metrics
        == score_file(*files(tmp_path, CAPTIONS | {"3": "a man's dog & cat"}, REFERENCES)).metrics
    )
    assert len(scores.notes) == 1 and "1 captions" in scores.notes[0]


def test_coco_ids_are_not_taken_for_nsd_ids(tmp_path):
    write_captions(
        tmp_path / "c.jsonl",
        [CaptionRecord(nsd_id=int(i), subject="s", caption="x", references=("y",)) for i in REFERENCES],
    )
    _, references = files(tmp_path, {}, {"annotations": ANNOTATIONS})
    with pytest.raises(DataError, match=r"references\.json.*`image_id`"):
        read_input(tmp_path / "c.jsonl", references)


def test_pictures_of_a_store_are_not_looked_up_by_coco_ids(tmp_path):
    """A store counts its pictures by nsd_id: the COCO id 25 is another picture than the NSD id 25."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    options = ScoreOptions(clip="clip", images=tmp_path / "store")
    with pytest.raises(DataError, match=r"store: .*nsd_id"):
        score_file(*files(tmp_path, RESULTS, REFERENCES), options=options)


def test_training_references_may_be_of_any_form(tmp_path):
    _, references = files(tmp_path, {}, {"annotations": ANNOTATIONS})
    assert read_references(references) == {image: tuple(texts) for image, texts in REFERENCES.items()}


def test_the_note_on_thousands_of_references_stands_in_the_result(tmp_path):
    references = {
        image: [f"{text} {n}" for n in range(30) for text in texts] for image, texts in REFERENCES.items()
    }
    scores = score_file(*files(tmp_path, CAPTIONS, references))
    assert "20 of 60 references" in scores.floors["human"]["drawn"] and not scores.notes
