"""COCO's instances on NSD's crop: the arithmetic against masks of pixels, and damaged files in one line."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.objects import read_objects
from bitllm.errors import DataError

CATEGORIES = [
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "person", "id": 1, "name": "person"},
]
SIZES = {139: (640, 480), 285: (480, 640), 632: (500, 500)}
CROPS = {139: (0, 0, 0.05, 0.2), 285: (0.25, 0.0, 0, 0), 632: (0, 0, 0, 0)}  # top, bottom, left, right
STIMULI = pd.DataFrame({"nsd_id": [2, 4, 9], "coco_id": [285, 139, 632], "coco_split": "train2017"})


def annotation(number: int, image: int, bbox: list[float], *, category: int = 18, iscrowd: int = 0) -> dict:
    # outlines are dropped without being looked at
    return {
        "segmentation": [[0.0, 1.0]], "area": bbox[2] * bbox[3] / 2, "iscrowd": iscrowd, "image_id": image,
        "bbox": bbox, "category_id": category, "id": number,
    }  # fmt: skip


CONTENT = {
    "info": {"year": 2017},
    "images": [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": w, "height": h} for i, (w, h) in SIZES.items()
    ],
    "annotations": [annotation(1, 139, [10.5, 20, 300, 400]), annotation(7, 632, [0, 0, 500, 500])],
    "categories": CATEGORIES,
}


@pytest.fixture
def release(tmp_path: Path) -> NsdRelease:
    release = NsdRelease(tmp_path)
    release.stimulus_table.parent.mkdir(parents=True)
    crops = [str(CROPS[coco_id]) for coco_id in STIMULI["coco_id"]]
    pd.DataFrame({"nsdId": STIMULI["nsd_id"], "cropBox": crops}).to_csv(release.stimulus_table)
    release.instances("train2017").parent.mkdir(parents=True)
    write(release, CONTENT)
    return release


def write(release: NsdRelease, content: object) -> None:
    release.instances("train2017").write_text(json.dumps(content))


def on_the_crop_by_pixels(image: int, bbox: list[int]) -> tuple[float, list[float]]:
    """Share of a box of whole pixels in the crop, and its box there, by painting it."""
    width, height = SIZES[image]
    top, bottom, left, right = CROPS[image]
    painted = np.zeros((height, width), dtype=bool)
    x, y, w, h = bbox
    painted[y : y + h, x : x + w] = True
    crop = painted[round(top * height) : height - round(bottom * height)]
    crop = crop[:, round(left * width) : width - round(right * width)]
    rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
    if not len(rows):
        return 0.0, []
    pixels = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return crop.sum() / painted.sum(), [
        float(n) / crop.shape[axis] for n, axis in zip(pixels, (1, 0, 1, 0), strict=True)
    ]


def test_boxes_on_the_crop_are_those_of_painted_pixels(release, rng):
    annotations, expected = [], []
    for number in range(600):
        image = int(rng.choice(list(SIZES)))
        corners = [np.sort(rng.choice(side + 1, 2, replace=False)) for side in SIZES[image]]
        (x, right), (y, bottom) = (pair.tolist() for pair in corners)
        bbox = [x, y, right - x, bottom - y]
        crowd, category = number % 7 == 0, (18, 1)[number % 2]
        annotations.append(annotation(number, image, bbox, category=category, iscrowd=int(crowd)))
        share, box = on_the_crop_by_pixels(image, bbox)
        if share >= 0.2:
            nsd_id = {139: 4, 285: 2, 632: 9}[image]
            area = bbox[2] * bbox[3] / 2 * share / min(SIZES[image]) ** 2
            expected.append((nsd_id, {18: "dog", 1: "person"}[category], crowd, *box, area))
    write(release, CONTENT | {"annotations": annotations})
    objects = read_objects(release, STIMULI)
    expected.sort(key=lambda row: row[0])
    assert 300 < len(expected) < 600
    assert objects[["nsd_id", "category", "is_crowd"]].to_numpy().tolist() == [list(r[:3]) for r in expected]
    np.testing.assert_allclose(objects[[*"xywh", "area"]], [row[3:] for row in expected], atol=1e-12)
    assert set(objects["supercategory"]) == {"animal", "person"}


def test_an_object_counts_from_a_fifth_of_its_box_and_one_without_length_where_it_starts(release):
    # of the photograph 139 the crop begins at 32 and ends at 512 of 640 pixels
    boxes = [
        [0, 0, 40, 10],
        [0, 0, 39.9, 10],
        [500, 0, 60, 9],
        [500, 0, 61, 9],
        [100, 5, 0, 8],
        [20, 5, 0, 8],
        [200, -2, 10, 9],
    ]
    write(release, CONTENT | {"annotations": [annotation(n, 139, box) for n, box in enumerate(boxes)]})
    objects = read_objects(release, STIMULI)
    np.testing.assert_allclose(objects["x"] * 480, [0, 468, 68, 168])
    np.testing.assert_allclose(objects["w"] * 480, [8, 12, 0, 10])
    np.testing.assert_allclose(objects["h"] * 480, [10, 9, 8, 7])  # the last one begins 2 pixels above
    np.testing.assert_allclose(objects["area"] * 480**2, [40, 54, 0, 35])


def test_a_release_without_instances_has_no_objects_and_a_note_says_so(release):
    release.instances("train2017").unlink()
    notes: list[str] = []
    assert read_objects(release, STIMULI, notes) is None
    assert len(notes) == 1 and "instances_train2017.json: not found" in notes[0] and "\n" not in notes[0]


def test_instances_of_one_split_alone_are_refused(release):
    with pytest.raises(DataError, match=r"instances_val2017\.json: expected .* found no file"):
        read_objects(release, STIMULI.assign(coco_split=["train2017", "val2017", "train2017"]))


def entry(key: str, place: int, **changes):
    def change(content: dict) -> dict:
        content[key][place] |= changes
        return content

    return change


def more(key: str, added: dict):
    return lambda content: content | {key: [*content[key], added]}


def without(key: str, place: int, name: str):
    def change(content: dict) -> dict:
        del content[key][place][name]
        return content

    return change


BROKEN = {
    "a list": (lambda c: [c], "with a list of objects `images`, found list"),
    "no annotations": (lambda c: {k: v for k, v in c.items() if k != "annotations"}, "`annotations`, found None"),
    "categories as a map": (lambda c: c | {"categories": {"1": "dog"}}, "`categories`, found dict"),
    "captions": (lambda c: c | {"annotations": [{"image_id": 139, "id": 1, "caption": "a"}]}, "`category_id`"),
    "keypoints": (entry("annotations", 0, keypoints=[1]), "found keypoints"),
    "unknown category": (entry("annotations", 1, category_id=90), r"`category_id` .* found 90 \(1 in all\)"),
    "unknown image": (entry("annotations", 1, image_id=5), "`image_id` .* among `images`, found 5"),
    "annotation twice": (more("annotations", annotation(7, 139, [0, 0, 1, 1])), "`id` of `annotations` once, found 7"),
    "image twice": (more("images", CONTENT["images"][0]), "`id` of `images` once, found 139"),
    "category twice": (more("categories", CATEGORIES[0]), "`id` of `categories` once, found 18"),
    "one name for two": (more("categories", CATEGORIES[0] | {"id": 3}), "`name` of `categories` once, found 'dog'"),
    "other split's file": (lambda c: c | {"images": c["images"][1:], "annotations": []},
                           r"image 139 \(nsdId 4\) among `images`, found none \(1 of 3 .* is that of train2017"),
    "box outside": (entry("annotations", 0, bbox=[600, 0, 50, 10]), r"inside .*640 × 480 .*\[600\.0.* image 139"),
    "box before": (entry("annotations", 0, bbox=[-30, 0, 50, 10]), "inside of their photograph"),
    "box of corners": (entry("annotations", 1, bbox=[300, 300, 480, 480]), "inside of their photograph"),
    "box of 3": (entry("annotations", 0, bbox=[1, 2, 3]), r"`bbox` .* found \[1, 2, 3\] in number 1"),
    "box of NaN": (entry("annotations", 0, bbox=[1, 2, 3, float("nan")]), "found .*nan"),
    "negative length": (entry("annotations", 1, bbox=[9, 9, -3, 2]), "`bbox` .* in number 2"),
    "box as text": (entry("annotations", 0, bbox="1234"), "`bbox`"),
    "no box": (without("annotations", 1, "bbox"), "`bbox` .* found nothing in number 2"),
    "area of NaN": (entry("annotations", 0, area=float("nan")), "`area` .* found nan"),
    "crowd of 2": (entry("annotations", 0, iscrowd=2), "0 or 1 as `iscrowd`"),
    "id as text": (entry("annotations", 0, id="1"), "`id` .* found '1' in number 1"),
    "no width": (without("images", 2, "width"), "`width` .* found nothing in number 3"),
    "height of 0": (entry("images", 0, height=0), "`height`"),
    "other photograph": (entry("images", 0, width=520), r"leaves a square, found 520 × 480 .* image 139 \(nsdId 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_damaged_instances_are_named_in_one_line(release, name):
    damage, message = BROKEN[name]
    write(release, damage(copy.deepcopy(CONTENT)))
    with pytest.raises(DataError, match=r"instances_train2017\.json: expected .*" + message) as error:
        read_objects(release, STIMULI)
    assert "\n" not in str(error.value) and "; " in str(error.value)


@pytest.mark.parametrize(
    "box", ["", "whole", "(0, 0, 0.1)", "(0, 0, nan, 0)", "(0.5, 0.6, 0, 0)", "(0, 0, -0.1, 0.1)"]
)
def test_a_crop_box_that_is_none_is_named(release, box):
    table = pd.read_csv(release.stimulus_table, index_col=0)
    table.loc[1, "cropBox"] = box
    table.to_csv(release.stimulus_table)
    with pytest.raises(
        DataError, match=r"merged\.csv: expected a `cropBox` of four .* at nsdId 4 \(1 in all"
    ):
        read_objects(release, STIMULI)
