"""Objects that a subject saw: COCO instances within NSD's square crop of each photograph."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from bitllm.data.io.instances import Instances, read_instances
from bitllm.data.io.tables import read_table
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.store.contents import OBJECT_COLUMNS
from bitllm.errors import DataError

LEAST_SHARE = 0.2
"""Share of its box that must lie in the crop for an object to be kept; our choice."""

_SQUARE_TOLERANCE = 0.05
"""NSD's fractions are rounded to pixels: 427 × 640 gives a crop of 427 × 426."""


def read_objects(
    release: NsdRelease, stimuli: pd.DataFrame, notes: list[str] | None = None
) -> pd.DataFrame | None:
    """The objects in the images of ``stimuli``, or ``None`` for a release without COCO's instances.

    Parameters
    ----------
    release
        The release; its stimulus table must have ``cropBox``.
    stimuli
        ``nsd_id``, ``coco_id`` and ``coco_split`` of each image.
    notes
        Receives a line if there are no instances.

    Returns
    -------
    pandas.DataFrame
        ``OBJECT_COLUMNS``, sorted by ``nsd_id``. Boxes are clipped to the crop and in fractions of it. An object is
        kept if at least ``LEAST_SHARE`` of its box is in the crop. ``area`` assumes that the area of COCO's
        segmentation is spread evenly over the box.

    References
    ----------
    NSD Data Manual: ``cropBox`` contains the fractions of the photograph that are cut from top, bottom, left and right.
    """
    paths = {str(split): release.instances(str(split)) for split in sorted(stimuli["coco_split"].unique())}
    missing = [path for path in paths.values() if not path.is_file()]
    if len(missing) == len(paths):
        if notes is not None:
            notes.append(
                f"{missing[0]}: not found, so the store has no objects; COCO's annotations_trainval2017.zip has it"
            )
        return None
    if missing:
        raise DataError(
            f"{missing[0]}: expected {missing[0].name} as well as the other split's instances, found no file; take "
            "both from COCO's annotations_trainval2017.zip, or none"
        )
    stimuli = stimuli.assign(**_crops(release.stimulus_table, stimuli["nsd_id"].to_numpy()))
    of_splits = [
        _on_the_crop(read_instances(path), stimuli[stimuli["coco_split"] == split])
        for split, path in paths.items()
    ]
    return pd.concat(of_splits).sort_values("nsd_id", kind="stable", ignore_index=True)


_SIDES = ("top", "bottom", "left", "right")


def _crops(path: Path, nsd_ids: np.ndarray) -> dict[str, Float[np.ndarray, " images"]]:
    """The fractions that are cut from the sides of each image's photograph."""
    table = read_table(
        path, needed=("nsdId", "cropBox"), numbers={"nsdId": "int64"}, what="NSD's table of stimuli"
    )
    texts = table.set_index("nsdId")["cropBox"].loc[nsd_ids].tolist()
    cut = np.empty((len(texts), len(_SIDES)))
    for row, text in enumerate(texts):
        try:
            cut[row] = [float(part) for part in text.strip("()[] ").split(",")]
        except ValueError:
            cut[row] = np.nan
    top, bottom, left, right = cut.T
    is_right = (cut >= 0).all(axis=1) & (top + bottom < 1) & (left + right < 1)  # NaN is not
    if not is_right.all():
        first = int(np.flatnonzero(~is_right)[0])
        raise DataError(
            f"{path}: expected a `cropBox` of four fractions (top, bottom, left, right), found `{texts[first]}` at "
            f"nsdId {nsd_ids[first]} ({(~is_right).sum()} in all); download it again"
        )
    return dict(zip(_SIDES, cut.T, strict=True))


def _on_the_crop(instances: Instances, stimuli: pd.DataFrame) -> pd.DataFrame:
    stimuli = stimuli.join(instances.photographs, on="coco_id")
    _require_photographs(instances.path, stimuli)
    seen = stimuli.merge(instances.objects, on="coco_id")
    columns = ("left", "right", "width", "x", "w")
    x, right, share_x, width = _on_one_axis(*(seen[column].to_numpy(float) for column in columns))
    columns = ("top", "bottom", "height", "y", "h")
    y, bottom, share_y, height = _on_one_axis(*(seen[column].to_numpy(float) for column in columns))
    share = share_x * share_y
    w, h = right - x, bottom - y
    area = np.minimum(seen["area"].to_numpy(float) * share / (width * height), w * h)
    seen = seen.assign(x=x, y=y, w=w, h=h, area=area)
    return seen.loc[share >= LEAST_SHARE - 1e-9, list(OBJECT_COLUMNS)]


def _on_one_axis(
    cut_before: np.ndarray, cut_after: np.ndarray, side: np.ndarray, start: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """On one axis: start and end of each box as fractions of the crop, the share of its length in the crop, and the
    side of the crop in pixels.
    """
    crop_start, crop_side = cut_before * side, (1 - cut_before - cut_after) * side
    first, last = ((end - crop_start) / crop_side for end in (start, start + length))
    clipped_first, clipped_last = first.clip(0, 1), last.clip(0, 1)
    # COCO has a few boxes of length 0; their position is that of their start
    is_in = (first >= 0) & (first <= 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(last > first, (clipped_last - clipped_first) / (last - first), is_in)
    return clipped_first, clipped_last, share, crop_side


def _require_photographs(path: Path, stimuli: pd.DataFrame) -> None:
    unknown = stimuli[stimuli["width"].isna()]
    if len(unknown):
        raise DataError(
            f"{path}: expected the COCO image {unknown['coco_id'].iloc[0]} (nsdId {unknown['nsd_id'].iloc[0]}) among "
            f"`images`, found none ({len(unknown)} of {len(stimuli)} images missing); check that the file is that of "
            f"{unknown['coco_split'].iloc[0]}"
        )
    across = stimuli["width"] * (1 - stimuli["left"] - stimuli["right"])
    down = stimuli["height"] * (1 - stimuli["top"] - stimuli["bottom"])
    odd = stimuli[(across - down).abs() > _SQUARE_TOLERANCE * np.minimum(across, down)]
    if len(odd):
        first = odd.iloc[0]
        raise DataError(
            f"{path}: expected photographs of which NSD's `cropBox` leaves a square, found {first['width']:.0f} × "
            f"{first['height']:.0f} pixels for the COCO image {first['coco_id']} (nsdId {first['nsd_id']}; "
            f"{len(odd)} in all); check that table and instances belong together"
        )
