"""The stimuli: NSD's table of images, their human captions, and the images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8
from PIL import Image

from bitllm.data.io.captions import read_caption_file
from bitllm.data.io.hdf5 import hdf5_dataset, open_hdf5, read_dataset
from bitllm.data.io.tables import read_table
from bitllm.data.nsd.layout import NsdRelease
from bitllm.errors import DataError

_COLUMNS = ("nsdId", "cocoId", "cocoSplit", "shared1000")
_NUMBERS = {"nsdId": "int64", "cocoId": "int64", "shared1000": "bool"}
_BLOCK = 256


def read_stimuli(
    path: Path,
    nsd_ids: Int[np.ndarray, " images"],
    shared_ids: Int[np.ndarray, " shared"],
    notes: list[str] | None = None,
) -> pd.DataFrame:
    """Rows of NSD's stimulus table for some images.

    Parameters
    ----------
    path
        ``nsd_stim_info_merged.csv``; its ``nsdId`` is 0-based.
    nsd_ids
        Images to read.
    shared_ids
        The shared images according to the design, with which the table must agree.
    notes
        Receives a line about each peculiarity of the file that is not an error.

    Returns
    -------
    pandas.DataFrame
        ``nsd_id``, ``coco_id``, ``coco_split``, ``shared``, in the order of ``nsd_ids``.
    """
    what, advice = "NSD's table of stimuli", "download it again"
    table = read_table(path, needed=_COLUMNS, numbers=_NUMBERS, notes=notes, what=what, advice=advice)
    twice = table["nsdId"][table["nsdId"].duplicated()]
    if len(twice):
        raise DataError(
            f"{path}: expected every nsdId once, found {twice.iloc[0]} twice ({len(twice)} in all); {advice}"
        )
    table = table.set_index("nsdId")[list(_COLUMNS[1:])]
    missing = np.setdiff1d(nsd_ids, table.index)
    if missing.size:
        raise DataError(
            f"{path}: expected a row for each image that was shown, found none for nsdId {missing[0]} ({missing.size} "
            "images without); check that table and design are of one release"
        )
    stimuli = table.loc[nsd_ids].reset_index()
    stimuli.columns = pd.Index(["nsd_id", "coco_id", "coco_split", "shared"])
    stimuli["shared"] = stimuli["shared"].astype(bool)
    wrong = np.flatnonzero(stimuli["shared"] != np.isin(nsd_ids, shared_ids))
    if wrong.size:
        raise DataError(
            f"{path}: expected `shared1000` to be {not stimuli['shared'][wrong[0]]} for nsdId "
            f"{nsd_ids[wrong[0]]}, as in the design, found the opposite ({wrong.size} images differ); check "
            "that both are of one release"
        )
    return stimuli


def read_captions(release: NsdRelease, stimuli: pd.DataFrame, notes: list[str] | None = None) -> pd.DataFrame:
    """All captions of the images in ``stimuli`` (``nsd_id``, ``caption``), in the order of COCO's files.

    Captions describe the whole COCO photograph; the subject saw a square crop of it.
    """
    rows: list[tuple[int, str]] = []
    for coco_split, images in stimuli.groupby("coco_split", sort=True):
        path = release.captions(str(coco_split))
        by_image = _read_annotations(path, images["coco_id"].tolist(), notes)
        for nsd_id, coco_id in zip(images["nsd_id"].tolist(), images["coco_id"].tolist(), strict=True):
            if not by_image[coco_id]:
                raise DataError(
                    f"{path}: expected captions of the COCO image {coco_id} (nsdId {nsd_id}), found none; "
                    "download COCO's annotations_trainval2017.zip again"
                )
            rows.extend((nsd_id, caption) for caption in by_image[coco_id])
    captions = pd.DataFrame(rows, columns=["nsd_id", "caption"])
    return captions.sort_values("nsd_id", kind="stable", ignore_index=True)


def read_pictures(path: Path, nsd_ids: Int[np.ndarray, " images"]) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """The images with these ids (0-based ``nsd_id``, ascending), in blocks."""
    with open_hdf5(path, "NSD's pictures", rdcc_nbytes=64 * 2**20) as file:
        brick = hdf5_dataset(file, "imgBrick")
        if brick.dtype != np.uint8 or brick.shape[3:] != (3,):
            raise DataError(
                f"{path}: expected a dataset `imgBrick` of uint8 pictures [images, height, width, 3], "
                f"found {brick.dtype} of the shape {brick.shape}; download it again"
            )
        if len(brick) <= nsd_ids.max():
            raise DataError(
                f"{path}: expected at least {nsd_ids.max() + 1} pictures, found {len(brick)}; download "
                "it again"
            )
        for first, last in _consecutive(nsd_ids):
            where = slice(nsd_ids[first], nsd_ids[last - 1] + 1)
            yield read_dataset(brick, where, trial_axis=None)


def resized(
    blocks: Iterator[UInt8[np.ndarray, "n h w 3"]], side_px: int
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """The same images resized to squares of ``side_px``: all 73,000 at 425 pixels would take 39 GB."""
    for block in blocks:
        squares = (Image.fromarray(one).resize((side_px, side_px), Image.Resampling.BICUBIC) for one in block)
        yield np.stack([np.asarray(square) for square in squares])


def _read_annotations(path: Path, coco_ids: Sequence[int], notes: list[str] | None) -> dict[int, list[str]]:
    file = read_caption_file(path, "COCO's captions")
    if file.form != "annotations" or not file.is_coco:
        raise DataError(
            f"{path}: expected COCO's captions under `annotations` with numbers as ids, found another form; download "
            "it again"
        )
    if notes is not None:
        notes.extend(file.notes)
    cleaned = {i: [" ".join(text.split()) for text in file.by_coco_id.get(str(i), ())] for i in coco_ids}
    return {i: [text for text in texts if text] for i, texts in cleaned.items()}


def _consecutive(nsd_ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of positions with consecutive ids, at most ``_BLOCK`` long."""
    # Slices of consecutive images are much faster in HDF5 than a list of indices.
    breaks = np.flatnonzero(np.diff(nsd_ids) != 1) + 1
    for run in np.split(np.arange(len(nsd_ids)), breaks):
        for first in range(int(run[0]), int(run[-1]) + 1, _BLOCK):
            yield first, min(first + _BLOCK, int(run[-1]) + 1)
