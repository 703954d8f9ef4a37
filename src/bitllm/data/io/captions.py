"""Captions in JSON: `{image: [caption, ...]}`, or COCO's annotations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bitllm.errors import DataError
from bitllm.files import read_json, require_file


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
