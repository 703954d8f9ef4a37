"""Tables of trials, captions and pictures as anybody holds them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from bitllm.config import nearest
from bitllm.errors import DataError
from bitllm.files import read_json, require_file

_PICTURES = (".png", ".jpg", ".jpeg", ".JPEG", ".bmp")


def read_table(path: Path, *, needed: Sequence[str], admitted: Sequence[str] | None = None) -> pd.DataFrame:
    """A table in TSV, CSV or Parquet.

    Parameters
    ----------
    path
        The file; its ending tells the kind.
    needed
        Columns that must be there.
    admitted
        Columns that may be there besides; any by default.

    Raises
    ------
    DataError
        If the file is missing or damaged, or a column lacks or is unknown.
    """
    require_file(path, "a table")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", encoding="utf-8")
    except (ValueError, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: expected a table (TSV in UTF-8, CSV or Parquet), found one that does not parse ({reason}); "
            "save it again"
        ) from None
    missing = [column for column in needed if column not in table]
    if missing:
        raise DataError(
            f"{path}: expected a column `{missing[0]}`, found {', '.join(map(str, table.columns))}; add or rename it"
        )
    unknown = [str(column) for column in table.columns if column not in {*needed, *(admitted or ())}]
    if admitted is not None and unknown:
        raise DataError(
            f"{path}: expected known columns, found `{unknown[0]}`; {nearest(unknown[0], [*needed, *admitted])}"
        )
    return table


def read_captions(paths: Sequence[Path]) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Captions by the id that the file uses, and whether that is the COCO id (COCO's own annotation files).

    Any number of captions per image is admitted, but no empty one.

    Raises
    ------
    DataError
        If a file is missing, or is neither ``{id: [captions]}`` nor COCO's, or a caption is empty.
    """
    captions: dict[str, list[str]] = {}
    is_coco = False
    for path in paths:
        require_file(path, "captions in JSON")
        content = read_json(path)
        is_coco = is_coco or (isinstance(content, dict) and isinstance(content.get("annotations"), list))
        for name, caption in _caption_rows(path, content):
            cleaned = " ".join(caption.split()) if isinstance(caption, str) else ""
            if not cleaned:
                raise DataError(
                    f"{path}: expected a text as caption of `{name}`, found {caption!r}; fill it in or take it away"
                )
            captions.setdefault(name, []).append(cleaned)
    return {name: tuple(found) for name, found in captions.items()}, is_coco


def captions_by_nsd_id(paths: Sequence[Path], stimuli: pd.DataFrame) -> dict[int, tuple[str, ...]]:
    """The captions of every image in ``stimuli`` (``nsd_id``, ``coco_id``, ``stimulus_id``).

    Raises
    ------
    DataError
        If an image has none, or the captions are COCO's and the COCO ids are unknown.
    """
    found, is_coco = read_captions(paths)
    where = ", ".join(map(str, paths)) or "--captions"
    if is_coco and (stimuli["coco_id"] < 0).any():
        raise DataError(
            f"{where}: expected captions by the stimuli's own ids, found COCO's annotations, and the COCO ids are "
            "unknown; add NSD's table with --stimulus-table nsd_stim_info_merged.csv"
        )
    column = "coco_id" if is_coco else "stimulus_id"
    captions = {}
    for nsd_id, name in zip(stimuli["nsd_id"].tolist(), stimuli[column].astype(str).tolist(), strict=True):
        if name not in found:
            raise DataError(
                f"{where}: expected captions of the image `{name}`, found none (the file has {len(found)} images); "
                "add them, or check that both files count the images alike (NSD ids are 0-based)"
            )
        captions[nsd_id] = found[name]
    return captions


def picture_reader(folder: Path | None, stimuli: pd.DataFrame) -> Callable[[int], np.ndarray]:
    """A function that reads the picture of an ``nsd_id`` out of a folder, by the name of the stimulus.

    The head of every file is looked at, its content when it is asked for.

    Raises
    ------
    DataError
        If there is no folder, or it lacks a picture, or a file is none.
    """
    if folder is None:
        raise DataError(
            "--pictures: expected the folder of the stimuli, found none; this format holds no pictures"
        )
    names = dict(zip(stimuli["nsd_id"].tolist(), _names(stimuli), strict=True))
    paths = {nsd_id: _picture(folder, candidates) for nsd_id, candidates in names.items()}
    for path in paths.values():
        with _damage_named(path), Image.open(path):
            pass
    return lambda nsd_id: decode_picture(paths[nsd_id], paths[nsd_id])


def decode_picture(file: Any, path: Path) -> np.ndarray:
    """RGB values of a picture.

    Raises
    ------
    DataError
        If it is not a picture.
    """
    with _damage_named(path), Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected a picture, found a file that does not decode ({error}); copy it again"
        ) from None


def _names(stimuli: pd.DataFrame) -> list[list[str]]:
    return [
        [str(stimulus), f"{coco:012d}", str(coco)]
        for stimulus, coco in zip(stimuli["stimulus_id"].tolist(), stimuli["coco_id"].tolist(), strict=True)
    ]


def _picture(folder: Path, candidates: list[str]) -> Path:
    for name in candidates:
        for path in (folder / name, *(folder / f"{name}{ending}" for ending in _PICTURES)):
            if path.is_file() and folder.resolve() in path.resolve().parents:
                return path
    raise DataError(
        f"{folder}: expected a picture of `{candidates[0]}` ({', '.join(_PICTURES)}), found none; add it"
    )


def _caption_rows(path: Path, content: Any) -> list[tuple[str, Any]]:
    try:
        if isinstance(content.get("annotations"), list):
            return [(str(row["image_id"]), row["caption"]) for row in content["annotations"]]
        if all(isinstance(texts, list) and texts for texts in content.values()):
            return [(str(name), text) for name, texts in content.items() for text in texts]
    except (AttributeError, KeyError, TypeError):
        pass
    raise DataError(
        f"{path}: expected {{image: [caption, …]}} or COCO's annotations, found another; write a list for each image"
    )
