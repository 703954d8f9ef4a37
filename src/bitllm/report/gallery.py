"""The gallery: test images, their references, and decoded captions."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image

from bitllm.data.store import Store
from bitllm.evaluation.table import CAPTION, Evaluation
from bitllm.evaluation.verdict import label

GROUPS = {
    "random": "Drawn at random: judge the system by these.",
    "best": "The highest CIDEr of the final system.",
    "median": "In the middle of the final system's CIDEr.",
    "worst": "The lowest CIDEr of the final system.",
}
MAX_SIDE_PX = 320  # a card is at most that wide on a screen; 24 photographs stay within a megabyte
LOSSLESS_SIDE_PX = 128  # up to here a PNG is small, and JPEG would blur the hard edges of simulated images
_INPUTS = ("permuted", "shuffle", "zero", "nearest")
_N_EACH = 4


class WordBits(NamedTuple):
    """A word of a caption, with log2 p(word | betas of this image) − the mean of the same for other images."""

    word: str
    bits: float

    @property
    def strength(self) -> int:
        """Strength of the color, 0 to 5; 5 from 6 bits."""
        return min(5, math.ceil(abs(self.bits) / 6 * 5 - 0.3)) if abs(self.bits) >= 0.36 else 0


class Decoded(NamedTuple):
    """A caption of an image; ``is_control`` if it was not decoded from the real betas."""

    name: str
    caption: str
    cider: float
    is_control: bool
    words: tuple[WordBits, ...] = ()


@dataclass(frozen=True)
class GalleryItem:
    """A test image with its captions; without pixels if the image must not be shown."""

    nsd_id: int
    pixels: UInt8[np.ndarray, "h w 3"] | None
    references: tuple[str, ...]
    decoded: tuple[Decoded, ...]
    group: str = "random"

    @property
    def alt(self) -> str:
        """Alternative text of the image."""
        said = f"; a person wrote: {self.references[0]}" if self.references else ""
        return f"Image {self.nsd_id}{said}"

    @property
    def picture_uri(self) -> str:
        """The image as a data URI: PNG if it is small, else a JPEG with at most 320 pixels a side."""
        if self.pixels is None:
            return ""
        image, buffer = Image.fromarray(self.pixels), io.BytesIO()
        kind = "png" if max(image.size) <= LOSSLESS_SIDE_PX else "jpeg"
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        image.save(buffer, format=kind, optimize=True, quality=85)
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def read_gallery(found: Evaluation, final: str, *, seed: int, store: Store | None) -> list[GalleryItem]:
    """Best, median, worst and random images by the final system's CIDEr, with captions from some inputs.

    Parameters
    ----------
    found
        The evaluation.
    final
        Name of the final system.
    seed
        Seed of the random choice.
    store
        Store with the images; without it none are shown.
    """
    shown = [
        (final, "real"),
        *([("sft", "real")] if final != "sft" else []),
        *((final, name) for name in _INPUTS),
    ]
    parts = {one: rows for one in shown if len(rows := _rows(found.rows, *one))}
    if (final, "real") not in parts:
        return []
    ids = parts[final, "real"]["nsd_id"].tolist()
    groups = chosen_rows(parts[final, "real"]["cider"].tolist(), seed=seed)
    return [
        GalleryItem(
            ids[row],
            None if store is None else store.pictures([ids[row]])[0],
            tuple(found.about.get("references", {}).get(str(ids[row]), ())),
            tuple(_decoded(found, system, name, rows, row) for (system, name), rows in parts.items()),
            group,
        )
        for group, chosen in groups.items()
        for row in chosen
    ]


def chosen_rows(cider: Sequence[float], *, seed: int, n_each: int = _N_EACH) -> dict[str, list[int]]:
    """Rows of the best, median and worst captions, and of some random ones."""
    order = np.argsort(cider, kind="stable")
    middle = max(0, len(order) // 2 - n_each // 2)
    random = np.random.default_rng(seed).choice(len(order), size=min(n_each, len(order)), replace=False)
    groups = {
        "random": np.sort(random),
        "best": order[::-1][:n_each],
        "median": order[middle : middle + n_each],
        "worst": order[:n_each],
    }
    return {name: [int(row) for row in rows] for name, rows in groups.items()}


def _rows(rows: pd.DataFrame, system: str, name: str) -> pd.DataFrame:
    chosen = (rows["system"] == system) & (rows["input"] == name) & (rows["trials"] == "averaged")
    chosen &= rows["task"] == CAPTION
    return rows[chosen].sort_values("row")


def _decoded(found: Evaluation, system: str, name: str, rows: pd.DataFrame, row: int) -> Decoded:
    words = found.about.get("words", {}).get(system, {}).get(name)
    one = rows.iloc[row]
    title = system if name == "real" else label(name) if name == "nearest" else f"{system}, {label(name)}"
    bits = tuple(WordBits(str(word), float(value)) for word, value in words[row]) if words else ()
    return Decoded(title, one["answer"], float(one["cider"]), name != "real", bits)
