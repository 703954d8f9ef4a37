"""COCO's instances: the objects in a photograph, with their boxes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm.data.io.entries import Entries, is_text, is_whole
from bitllm.errors import DataError
from bitllm.files import parse_json, read_text

_WHAT = "COCO's instances"
_AGAIN = "download COCO's annotations_trainval2017.zip again"
_MARGIN_PX = 5.0
"""Tolerance for boxes that exceed their photograph by rounding; a box of another photograph or form exceeds it by more.
The real file could not be looked at."""


@dataclass(frozen=True)
class Instances:
    """A file of COCO's instances, read and checked.

    Parameters
    ----------
    path
        The file.
    photographs
        ``width`` and ``height`` in pixels, by ``coco_id``; also of photographs without any object.
    objects
        ``coco_id``, ``category``, ``supercategory``, ``is_crowd``, and in pixels of the photograph ``x``, ``y`` (top
        left), ``w``, ``h``, ``area``; in the order of the file.
    """

    path: Path
    photographs: pd.DataFrame
    objects: pd.DataFrame


def read_instances(path: Path) -> Instances:
    """Read ``instances_train2017.json`` or a file of the same structure; segmentations are dropped.

    Raises
    ------
    DataError
        If the file is missing, damaged, of another structure, or contradicts itself.

    References
    ----------
    cocodataset.org, "Data format", 1. Object Detection.
    """
    content = parse_json(read_text(path, _WHAT), path, without=("segmentation",))  # most of the 450 MB
    photographs = _photographs(_entries(path, content, "images"))
    categories = _categories(_entries(path, content, "categories"))
    entries = _entries(path, content, "annotations")
    if any("keypoints" in entry for entry in entries.rows[:1]):
        raise DataError(
            f"{path}: expected {_WHAT}, found keypoints; use instances_*.json of the same archive"
        )
    objects = _objects(entries)
    _require_known(path, objects["category_id"], categories.index, "category_id", "categories")
    _require_known(path, objects["coco_id"], photographs.index, "image_id", "images")
    _require_inside(path, objects, photographs.loc[objects["coco_id"]])
    named = categories.loc[objects.pop("category_id")].reset_index(drop=True)
    return Instances(path, photographs, pd.concat([objects, named], axis=1))


def _entries(path: Path, content: Any, key: str) -> Entries:
    return Entries.of(path, content, key, what=_WHAT, advice=_AGAIN)


def _photographs(images: Entries) -> pd.DataFrame:
    ids = images.unique("id", images.numbers("id"))
    sizes = {
        key: images.values(key, lambda v: is_whole(v) and v > 0, "pixels above 0")
        for key in ("width", "height")
    }
    return pd.DataFrame(sizes, index=pd.Index(ids, dtype="int64", name="coco_id"), dtype="float64")


def _categories(categories: Entries) -> pd.DataFrame:
    ids = categories.unique("id", categories.numbers("id"))
    names = categories.unique("name", categories.values("name", is_text, "a name"))
    above = categories.values("supercategory", is_text, "a name")
    return pd.DataFrame({"category": names, "supercategory": above}, index=pd.Index(ids), dtype=object)


def _objects(annotations: Entries) -> pd.DataFrame:
    annotations.unique("id", annotations.numbers("id"))
    table = pd.DataFrame(
        {
            "coco_id": annotations.numbers("image_id"),
            "category_id": annotations.numbers("category_id"),
            "is_crowd": annotations.values("iscrowd", lambda v: v in (0, 1), "0 or 1"),
            "area": annotations.values("area", _is_length, "a number from 0"),
        }
    ).astype({"coco_id": "int64", "category_id": "int64", "is_crowd": "bool", "area": "float64"})
    boxes = annotations.values("bbox", _is_box, "four numbers x, y, width, height")
    return table.join(pd.DataFrame(boxes, columns=list("xywh"), dtype="float64"))


def _require_known(path: Path, values: pd.Series, known: pd.Index, key: str, where: str) -> None:
    unknown = values[~values.isin(known)]
    if len(unknown):
        raise DataError(
            f"{path}: expected the `{key}` of every annotation among `{where}`, found {unknown.iloc[0]} "
            f"({len(unknown)} in all); {_AGAIN}"
        )


def _require_inside(path: Path, objects: pd.DataFrame, photographs: pd.DataFrame) -> None:
    x, y, w, h = (objects[column].to_numpy() for column in "xywh")
    width, height = photographs["width"].to_numpy(), photographs["height"].to_numpy()
    outside = np.maximum.reduce([-x, -y, x + w - width, y + h - height]) > _MARGIN_PX
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        box = [float(column[first]) for column in (x, y, w, h)]
        raise DataError(
            f"{path}: expected boxes inside of their photograph ({width[first]:.0f} × {height[first]:.0f} pixels), "
            f"found {box} in the image {objects['coco_id'].iloc[first]} ({outside.sum()} in all); {_AGAIN}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_length(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_box(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 4
        and all(map(_is_number, value))
        and min(value[2:]) >= 0
    )
