"""The gallery: pictures that were seen, what people said of them, and what was decoded."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bitllm.report.values import number, plain
from bitllm.report.wording import GALLERY_GROUPS, in_known_order

MAX_SIDE_PX = 320  # a card is at most that wide on a screen; keeps 24 photographs within a megabyte
LOSSLESS_SIDE_PX = (
    128  # up to here a PNG is small, and simulated pictures have hard edges that JPEG would blur
)


class WordBits(NamedTuple):
    """A word of a caption with its brain evidence: log2 p under its own betas less that under other images'."""

    word: str
    bits: float

    @property
    def strength(self) -> int:
        """How strongly it is coloured, 0 to 5; from 6 bits on the colour does not grow."""
        return min(5, math.ceil(abs(self.bits) / 6 * 5 - 0.3)) if abs(self.bits) >= 0.36 else 0


@dataclass(frozen=True)
class GalleryItem:
    """One image of the test set with its captions.

    Parameters
    ----------
    nsd_id
        The image's number in NSD, 0-based.
    picture
        Its pixels, or None where the picture must not be shown.
    references
        What people said of it.
    captions
        Name of a system, or of a system under a control → the caption.
    cider
        The same names → that caption's CIDEr, in points.
    words
        The same names → that caption's words with their bits, where they are known.
    label
        Why it is shown: ``best``, ``median``, ``worst`` or ``random``.
    """

    nsd_id: int
    picture: UInt8[np.ndarray, "h w 3"] | None
    references: tuple[str, ...]
    captions: dict[str, str]
    cider: dict[str, float] = field(default_factory=dict)
    label: str = "random"
    words: dict[str, tuple[WordBits, ...]] = field(default_factory=dict)


class Decoded(NamedTuple):
    """One caption of a card; ``is_control`` if its input was no genuine one."""

    name: str
    caption: str
    cider: str
    is_control: bool
    words: tuple[WordBits, ...] = ()


class Card(NamedTuple):
    """A gallery item as the page shows it."""

    nsd_id: int
    picture_uri: str
    alt: str
    references: tuple[str, ...]
    decoded: list[Decoded]


class CardGroup(NamedTuple):
    """The cards of one label, with how they were chosen."""

    label: str
    explanation: str
    cards: list[Card]


def card_groups(gallery: Sequence[GalleryItem], systems: Sequence[str]) -> list[CardGroup]:
    """The gallery's cards by label, those drawn at random first.

    Parameters
    ----------
    gallery
        The items in any order.
    systems
        Names of the systems: a caption under any other name was made from a control.
    """
    labels = in_known_order(list(dict.fromkeys(item.label for item in gallery)), GALLERY_GROUPS)
    return [
        CardGroup(
            label,
            GALLERY_GROUPS.get(label, ""),
            [_card(item, systems) for item in gallery if item.label == label],
        )
        for label in labels
    ]


def picture_uri(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as a data URI: PNG if it is small, else a JPEG of at most 320 pixels a side."""
    image = Image.fromarray(picture)
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_SIDE_PX:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        image.save(buffer, format="JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _card(item: GalleryItem, systems: Sequence[str]) -> Card:
    said = f", of which a person said: {item.references[0]}" if item.references else ""
    decoded = [
        Decoded(
            name,
            caption,
            plain(number(item.cider, name)) if name in item.cider else "",
            name not in systems,
            item.words.get(name, ()),
        )
        for name, caption in item.captions.items()
    ]
    uri = picture_uri(item.picture) if item.picture is not None else ""
    return Card(item.nsd_id, uri, f"Image {item.nsd_id}{said}", item.references, decoded)
