"""Pictures of the stimuli, found by name in a folder and decoded to RGB."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from bitllm.errors import DataError

_PICTURES = (".png", ".jpg", ".jpeg", ".JPEG", ".bmp")


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
