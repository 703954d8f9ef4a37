"""Images of scenes: a setting, and its objects with their colors, numbers and positions.

An object (`GLYPHS`) is a few shapes in a box of 100 × 100, drawn with Pillow. A shape is ``kind color numbers``:
``e`` ellipse and ``r`` rectangle (left, top, right, bottom), ``o`` rounded rectangle, ``p`` polygon (x, y, …), ``l``
line (width, x, y, …). Colors: ``B`` the object's own, ``D`` and ``L`` a darker and a lighter one, ``K`` dark, ``W``
white, ``S`` skin, ``G`` gray, ``N`` brown, ``R`` red, ``Y`` yellow, ``E`` green, ``U`` light blue, ``T`` tan.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from bitllm.simulation.scenes import Scene
from bitllm.simulation.vocabulary import COLOURS

Colour = tuple[int, int, int]

_FIXED: dict[str, Colour] = {
    "K": (34, 34, 38), "W": (246, 246, 244), "S": (226, 176, 140), "G": (140, 144, 150), "N": (120, 76, 44),
    "R": (206, 50, 46), "Y": (242, 208, 60), "E": (60, 150, 70), "U": (170, 214, 240), "T": (224, 178, 110),
}  # fmt: skip

GLYPHS: dict[str, tuple[Colour, str]] = {
    "man": ((60, 90, 140),
        "r D 38 64 48 96; r D 52 64 62 96; r K 35 93 48 98; r K 52 93 65 98; o B 32 28 68 68; r S 24 30 32 "
        "60; r S 68 30 76 60; e S 38 2 62 28; e K 44 12 47 16; e K 53 12 56 16; l K 1 46 21 54 21; r N 38 1 "
        "62 8"),
    "woman": ((170, 60, 120),
        "e N 32 0 68 40; p B 42 28 58 28 76 78 24 78; r S 40 78 46 96; r S 54 78 60 96; l S 6 40 34 24 58; l "
        "S 6 60 34 76 58; e S 38 2 62 28; e K 44 12 47 16; e K 53 12 56 16; l K 1 46 21 54 21; "
        "e N 36 0 64 10"),
    "boy": ((70, 150, 90),
        "r D 38 74 48 98; r D 52 74 62 98; o B 32 46 68 78; r S 24 48 32 70; r S 68 48 76 70; e S 34 14 66 "
        "48; e K 42 28 46 33; e K 54 28 58 33; p R 32 24 66 24 80 28 66 18 50 10 36 16"),
    "girl": ((220, 110, 160),
        "e N 22 22 40 50; e N 60 22 78 50; p B 42 46 58 46 76 84 24 84; r S 40 84 46 98; r S 54 84 60 98; e S"
        " 34 14 66 48; e N 34 10 66 26; e K 42 30 46 35; e K 54 30 58 35"),
    "baby": ((180, 205, 235),
        "e B 22 52 78 98; e S 26 12 74 60; e K 38 32 43 38; e K 57 32 62 38; e R 45 44 55 51; e S 14 60 28 "
        "76; e S 72 60 86 76; l N 3 50 12 54 6"),
    "dog": ((150, 100, 60),
        "o B 16 42 70 68; r B 18 60 27 94; r B 58 60 67 94; r D 30 62 37 92; r D 48 62 55 92; l B 7 18 46 4 "
        "26; e B 60 22 92 54; e L 80 38 99 54; e K 93 40 99 46; e D 60 24 70 52; e K 78 31 82 36"),
    "cat": ((230, 150, 70),
        "e B 28 42 72 96; l B 7 70 88 90 80 88 56; e B 30 16 70 52; p B 30 30 32 4 48 20; p B 70 30 68 4 52 "
        "20; e E 38 28 45 36; e E 55 28 62 36; e R 47 38 53 42; l K 1 30 40 12 36; l K 1 70 40 88 36; e L 40 "
        "60 60 92"),
    "horse": ((130, 80, 45),
        "o B 18 40 70 64; r B 20 56 27 98; r B 60 56 67 98; r D 32 58 38 96; r D 50 58 56 96; p B 56 48 70 8 "
        "82 10 74 54; e B 70 4 98 26; p K 58 44 66 4 72 6 64 46; l K 7 20 42 8 72; e K 80 10 84 14"),
    "cow": ((240, 240, 236),
        "o B 14 34 74 66; e K 24 36 44 58; e K 52 44 68 64; r B 18 60 27 94; r B 60 60 69 94; r G 32 62 39 "
        "92; e S 44 62 58 74; e B 66 22 96 52; e S 78 40 98 54; l T 4 68 24 64 12; l T 4 88 24 94 12; e K 78 "
        "30 82 35"),
    "sheep": ((244, 242, 234),
        "e B 12 34 44 74; e B 30 26 64 64; e B 46 34 78 74; e B 24 44 66 80; r K 28 74 34 96; r K 58 74 64 "
        "96; e K 68 30 92 62; e B 66 24 84 42; e W 78 40 83 46"),
    "elephant": ((140, 145, 158),
        "e B 10 24 74 78; r B 16 62 30 96; r B 48 62 62 96; e B 56 18 92 60; e D 54 24 74 58; l B 9 88 44 92 "
        "70 86 88; p W 78 56 84 54 98 70; e K 80 34 84 39; l D 4 12 44 4 66"),
    "giraffe": ((228, 180, 80),
        "o B 18 52 60 72; r B 20 66 26 99; r B 50 66 56 99; r B 30 66 35 97; p B 46 56 64 8 76 10 62 58; e B "
        "64 2 94 18; l N 3 68 6 66 0; l N 3 76 4 78 0; e N 24 54 33 63; e N 38 58 46 67; e N 56 34 63 44; e N"
        " 62 20 68 28; e N 48 54 55 61; e K 78 6 82 10"),
    "zebra": ((244, 244, 244),
        "o B 16 40 70 66; r B 18 58 25 96; r B 60 58 67 96; p B 56 50 68 14 80 16 74 56; e B 68 10 96 30; l K"
        " 4 26 42 24 66; l K 4 36 42 35 66; l K 4 46 42 46 66; l K 4 56 42 57 66; l K 3 58 38 74 44; l K 3 62"
        " 26 77 32; l K 4 66 8 56 44; e K 88 18 96 28; l K 3 18 76 25 76; l K 3 60 78 67 78"),
    "bird": ((70, 130, 200),
        "e B 24 34 72 72; e B 58 20 84 46; p Y 82 30 98 34 82 40; p D 34 44 60 46 20 66; p D 26 54 4 44 8 66;"
        " l K 3 44 70 44 90; l K 3 54 70 54 90; e K 72 28 76 33; e L 44 54 68 70"),
    "car": ((200, 50, 50),
        "p B 22 48 34 28 68 28 80 48; o B 4 46 96 74; p U 28 47 37 32 49 32 49 47; p U 53 47 53 32 66 32 74 "
        "47; e K 14 62 36 84; e K 64 62 86 84; e G 20 68 30 78; e G 70 68 80 78; e Y 90 52 97 60"),
    "bus": ((240, 190, 40),
        "o B 2 22 98 80; r U 8 30 22 48; r U 26 30 40 48; r U 44 30 58 48; r U 62 30 76 48; r U 80 30 94 66; "
        "r D 2 58 78 63; e K 12 70 32 90; e K 66 70 86 90; e G 18 76 26 84; e G 72 76 80 84"),
    "train": ((50, 120, 90),
        "o B 20 10 80 82; r U 28 20 48 44; r U 52 20 72 44; r D 20 52 80 60; e Y 26 64 38 76; e Y 62 64 74 "
        "76; l N 4 26 84 8 99; l N 4 74 84 92 99; l N 3 16 92 84 92; r K 28 82 72 87"),
    "truck": ((60, 110, 180),
        "r L 2 24 62 70; l G 2 22 26 22 68; l G 2 42 26 42 68; p B 64 36 84 36 97 54 97 74 64 74; p U 70 40 "
        "82 40 90 54 70 54; r K 2 70 97 76; e K 10 66 30 88; e K 36 66 56 88; e K 72 66 92 88"),
    "bicycle": ((40, 130, 170),
        "e K 2 44 44 88; e W 7 49 39 83; e K 56 44 98 88; e W 61 49 93 83; l B 5 23 66 38 34 66 34 77 66; l B"
        " 5 38 34 50 66 23 66; l B 5 50 66 66 34; l K 4 66 34 64 22 76 20; l K 5 30 32 46 32"),
    "motorcycle": ((190, 40, 50),
        "e K 2 50 36 88; e G 10 58 28 80; e K 62 50 97 88; e G 71 58 89 80; p B 28 42 62 34 72 48 60 66 34 "
        "66; l G 5 70 40 80 68; l K 5 62 24 76 30; o K 14 38 44 48; e Y 74 34 84 44; l G 5 30 72 58 72"),
    "boat": ((190, 70, 50),
        "p B 4 62 96 62 80 88 20 88; r W 4 60 96 66; l N 4 48 8 48 62; p W 52 10 52 56 88 56; p L 44 18 44 56"
        " 16 56"),
    "airplane": ((225, 230, 236),
        "p B 2 50 12 42 84 42 97 50 84 58 12 58; p D 40 50 58 50 34 88 24 88; p D 44 44 58 44 40 20 32 20; p "
        "R 4 46 2 20 12 20 22 44; e U 80 44 90 50; l K 2 26 48 72 48"),
    "pizza": ((240, 200, 90),
        "e T 6 18 94 88; e B 14 24 86 82; e R 26 34 40 46; e R 52 30 66 42; e R 58 56 72 68; e R 32 60 46 72;"
        " e E 46 48 54 55; e E 70 44 77 50; l T 2 14 53 86 53; l T 2 50 24 50 82"),
    "sandwich": ((226, 186, 120),
        "o B 10 24 90 46; p E 4 50 20 44 36 50 52 44 68 50 84 44 96 52 90 56 10 56; r R 10 54 90 61; r Y 8 60"
        " 92 66; o B 10 66 90 82"),
    "cake": ((240, 190, 205),
        "r B 16 48 84 86; r L 16 62 84 68; r W 16 44 84 54; e W 16 36 84 54; l U 5 50 18 50 42; p Y 50 4 56 "
        "14 50 20 44 14; e R 24 40 32 48; e R 68 40 76 48; r G 6 86 94 92"),
    "banana": ((245, 215, 60),
        "p B 10 26 20 24 30 50 54 66 86 62 92 72 62 88 30 78 14 52; l D 3 18 34 32 62 60 76 86 68; r N 10 18 "
        "18 28"),
    "apple": ((205, 45, 45),
        "e B 14 28 58 92; e B 42 28 86 92; l N 5 50 36 54 12; p E 56 20 72 8 80 20 66 26; e L 24 38 36 54"),
    "donut": ((225, 130, 170),
        "e T 6 20 94 90; e B 10 18 90 80; e T 36 42 64 66; e W 38 46 62 62; l Y 3 24 38 30 34; l U 3 60 30 66"
        " 34; l W 3 74 52 80 50; l E 3 26 60 32 64; l R 3 56 70 62 74"),
    "chair": ((150, 95, 55),
        "r B 26 6 34 60; r B 66 6 74 60; r B 26 10 74 20; r B 26 28 74 38; p L 22 54 78 54 86 66 14 66; r D "
        "16 66 23 98; r D 77 66 84 98"),
    "couch": ((90, 110, 160),
        "o B 14 24 86 66; o L 16 48 50 68; o L 50 48 84 68; o D 2 40 18 82; o D 82 40 98 82; r D 14 68 86 82;"
        " r K 8 82 14 90; r K 86 82 92 90"),
    "bed": ((90, 140, 190),
        "r N 2 22 10 90; r N 90 46 97 90; r B 10 52 92 78; o W 12 40 36 56; r L 36 50 92 60; r N 6 76 94 82"),
    "table": ((160, 110, 65),
        "p B 8 40 92 40 99 52 1 52; r D 1 52 99 57; r D 8 57 16 96; r D 84 57 92 96; r D 28 57 33 82; r D 67 "
        "57 72 82"),
    "bench": ((130, 90, 55),
        "r B 4 30 96 38; r B 4 42 96 50; r L 2 58 98 68; r K 12 28 17 92; r K 83 28 88 92"),
    "skateboard": ((60, 170, 150),
        "p B 2 46 14 54 86 54 98 46 98 53 88 64 12 64 2 53; e W 18 62 34 80; e W 66 62 82 80; e K 23 67 29 "
        "75; e K 71 67 77 75; l Y 3 30 58 70 58"),
    "surfboard": ((240, 130, 60),
        "p B 50 1 62 14 68 40 66 74 50 99 34 74 32 40 38 14; l W 4 50 4 50 96; l D 3 35 34 65 34; l D 3 34 62"
        " 66 62"),
    "kite": ((220, 60, 90),
        "p B 50 4 82 36 50 72 18 36; p L 50 4 82 36 50 36; p D 50 72 18 36 50 36; l K 2 50 72 42 82 56 90 48 "
        "99; p Y 38 80 46 84 38 88; p Y 50 88 60 86 58 94"),
    "ball": ((250, 250, 250),
        "e K 12 12 88 88; e B 15 15 85 85; p K 50 34 64 44 59 60 41 60 36 44; l K 3 50 34 50 16; l K 3 64 44 "
        "82 38; l K 3 59 60 70 78; l K 3 41 60 30 78; l K 3 36 44 18 38"),
    "racket": ((60, 90, 200),
        "e B 26 2 80 62; e W 33 9 73 55; l G 2 42 10 42 54; l G 2 53 8 53 56; l G 2 64 10 64 54; l G 2 34 24 "
        "72 24; l G 2 34 40 72 40; l B 9 42 58 24 97; e Y 76 66 96 86"),
    "cup": ((70, 130, 190),
        "e B 58 38 94 76; e W 66 47 86 68; p B 14 28 72 28 66 90 20 90; e D 14 22 72 34; e N 18 24 68 33; l G"
        " 3 34 16 38 6 34 0; l G 3 52 16 56 6 52 0"),
    "bottle": ((50, 130, 80),
        "o B 32 38 68 98; r B 42 12 58 44; r D 41 4 59 14; r W 32 54 68 78; r L 36 60 64 64; l L 3 38 44 38 "
        "52"),
    "bowl": ((200, 80, 60),
        "p B 4 46 96 46 80 84 62 92 38 92 20 84; e D 4 38 96 56; e L 10 40 90 53; e Y 34 36 66 52"),
    "plate": ((240, 240, 245),
        "e G 2 26 98 82; e B 4 26 96 78; e L 20 36 80 68; l G 2 20 52 28 40"),
    "laptop": ((130, 135, 145),
        "o B 14 14 86 66; r U 19 19 81 61; l W 3 26 30 60 30; l W 3 26 40 70 40; p L 2 82 14 66 86 66 98 82; "
        "p D 2 82 98 82 98 87 2 87; l G 3 24 74 76 74"),
    "phone": ((50, 55, 65),
        "o B 28 2 72 98; r U 33 12 67 84; e W 46 87 54 95; r R 37 18 46 28; r E 54 18 63 28; r Y 37 34 46 44;"
        " r W 54 34 63 44"),
    "television": ((45, 45, 52),
        "r B 2 14 98 74; r U 7 19 93 69; p E 7 69 36 40 58 69; p E 44 69 70 48 93 69; e Y 70 24 84 38; r B 44"
        " 74 56 86; r B 28 86 72 92"),
    "clock": ((190, 150, 70),
        "e B 6 6 94 94; e W 14 14 86 86; l K 5 50 50 50 24; l K 5 50 50 70 60; r K 48 15 52 22; r K 48 78 52 "
        "85; r K 15 48 22 52; r K 78 48 85 52"),
    "umbrella": ((120, 70, 160),
        "l N 4 50 30 50 88 58 94 64 86; p B 2 50 10 28 30 12 50 6 70 12 90 28 98 50 82 42 66 50 50 42 34 50 "
        "18 42; p L 50 6 34 50 50 42 66 50; l N 3 50 2 50 8"),
    "suitcase": ((150, 90, 60),
        "l K 5 36 28 36 12 64 12 64 28; o B 8 28 92 88; r D 22 28 28 88; r D 72 28 78 88; r Y 44 52 56 60; e "
        "K 14 86 24 95; e K 76 86 86 95"),
    "vase": ((80, 120, 170),
        "l E 4 50 50 50 22; l E 4 46 50 28 24; l E 4 54 50 72 24; e R 40 4 60 24; e Y 18 10 38 30; e R 62 10 "
        "82 30; p B 38 48 62 48 60 56 76 74 64 96 36 96 24 74 40 56; l L 4 30 74 70 74"),
    "hydrant": ((205, 50, 45),
        "r B 34 32 66 86; e B 32 12 68 46; e D 44 4 56 18; r D 28 38 72 44; e D 12 46 36 68; e D 64 46 88 68;"
        " e G 40 48 60 68; r D 26 84 74 96"),
    "book": ((60, 90, 160),
        "p B 2 22 50 30 98 22 98 84 50 92 2 84; p W 6 18 50 28 50 86 6 78; p W 94 18 50 28 50 86 94 78; l K 3"
        " 14 34 42 40; l K 3 14 48 42 54; l K 3 14 62 42 68; l K 3 86 34 58 40; l K 3 86 48 58 54; l K 3 86 "
        "62 58 68"),
    "newspaper": ((236, 234, 224),
        "r G 12 6 92 98; r B 8 4 88 95; r K 14 10 82 20; r G 14 28 44 54; l K 3 50 30 82 30; l K 3 50 40 82 "
        "40; l K 3 50 50 82 50; l K 3 14 62 82 62; l K 3 14 72 82 72; l K 3 14 82 66 82"),
    "sign": ((200, 40, 40),
        "r G 46 60 54 99; p B 32 2 68 2 92 26 92 44 68 68 32 68 8 44 8 26; l W 5 28 26 20 28 28 40 20 44; l W"
        " 5 34 26 46 26; l W 5 40 26 40 44; e W 48 25 62 45; e B 53 30 57 40; l W 5 68 44 68 26 78 30 68 36"),
    "poster": ((70, 150, 160),
        "r K 10 2 90 98; r B 14 6 86 94; e L 32 16 68 48; r W 20 58 80 68; l W 4 22 76 78 76; l W 4 22 85 60 "
        "85; r K 24 61 34 65; r K 40 61 54 65; r K 60 61 74 65"),
}  # fmt: skip
"""Usual color and shapes of every object in the vocabulary."""


@cache
def _shapes(name: str) -> tuple[tuple[str, str, tuple[float, ...]], ...]:
    parts = (shape.split() for shape in GLYPHS[name][1].split(";"))
    return tuple(
        (kind, colour, tuple(float(number) for number in numbers)) for kind, colour, *numbers in parts
    )


def draw_glyph(
    draw: ImageDraw.ImageDraw, name: str, *, left: float, top: float, size: float, colour: Colour | None
) -> None:
    """Draw an object in the square of ``size`` pixels at (left, top), in ``colour`` or its usual color."""
    palette = _palette(colour or GLYPHS[name][0])
    for kind, key, numbers in _shapes(name):
        fill = palette[key]
        width, points = (numbers[0], numbers[1:]) if kind == "l" else (0.0, numbers)
        xy = [(left if index % 2 == 0 else top) + value * size / 100 for index, value in enumerate(points)]
        if kind == "e":
            draw.ellipse(xy, fill=fill)
        elif kind == "r":
            draw.rectangle(xy, fill=fill)
        elif kind == "o":
            draw.rounded_rectangle(xy, radius=size * 0.06, fill=fill)
        elif kind == "p":
            draw.polygon(xy, fill=fill)
        else:
            draw.line(xy, fill=fill, width=max(1, round(width * size / 100)), joint="curve")


@cache
def _palette(colour: Colour) -> dict[str, Colour]:
    return {**_FIXED, "B": colour, "D": _toward(colour, 0, 0.3), "L": _toward(colour, 255, 0.4)}


def _toward(colour: Colour, end: int, share: float) -> Colour:
    red, green, blue = (round(channel + (end - channel) * share) for channel in colour)
    return red, green, blue


_FINER = 2
"""Images are drawn at twice their size and averaged, for smooth edges."""

_BACKDROPS: dict[str, tuple[Colour, Colour, float, str]] = {
    "street": ((196, 208, 220), (112, 114, 120), 0.50, "houses dashes"),
    "park": ((168, 212, 240), (112, 178, 92), 0.48, "trees"),
    "beach": ((150, 214, 242), (236, 216, 160), 0.58, "sea sun"),
    "field": ((190, 222, 244), (188, 184, 92), 0.42, "fence"),
    "snow": ((198, 214, 234), (240, 244, 250), 0.46, "peaks flakes"),
    "station": ((206, 200, 192), (150, 146, 142), 0.62, "pillars stripe"),
    "harbor": ((182, 206, 228), (64, 122, 168), 0.50, "waves pier"),
    "kitchen": ((246, 232, 206), (196, 150, 112), 0.66, "tiles shelf"),
    "lounge": ((214, 190, 168), (142, 98, 78), 0.66, "frame rug"),
    "bedroom": ((196, 188, 220), (150, 128, 150), 0.66, "window"),
    "restaurant": ((122, 52, 50), (92, 62, 48), 0.66, "lamps"),
    "office": ((222, 228, 230), (128, 142, 154), 0.66, "blinds"),
}
"""Color above and below the horizon, height of the horizon, and decoration of every setting."""

_DECOR: dict[str, str] = {
    "houses": (
        "r #a87868 0 12 20 50; r #8e94a4 24 22 40 50; r #baa482 74 8 98 50; r #f0e8aa 4 18 8 24; r "
        "#f0e8aa 12 30 16 36; r #f0e8aa 80 16 84 22; r #f0e8aa 90 28 94 34"
    ),
    "dashes": "r #f6f6f6 4 84 24 87; r #f6f6f6 40 84 60 87; r #f6f6f6 76 84 96 87",
    "trees": "r #6e4c30 9 34 13 52; e #2e763e 0 8 24 40; r #6e4c30 85 36 89 54; e #3a8646 74 10 99 42",
    "sea": "r #3696c4 0 40 100 58; r #f0fafc 0 56 100 59",
    "sun": "e #fcde6e 78 4 96 22",
    "fence": "r #92704c 0 34 100 37; r #92704c 10 28 13 46; r #92704c 48 28 51 46; r #92704c 86 28 89 46",
    "peaks": (
        "p #96a6be 0 47 24 10 50 47; p #fafafe 17 22 24 10 32 22; p #8698b4 44 47 74 6 100 47; p "
        "#fafafe 65 19 74 6 83 19"
    ),
    "flakes": (
        "e #ffffff 8 8 11 11; e #ffffff 36 4 39 7; e #ffffff 58 16 61 19; e #ffffff 92 26 95 29; e "
        "#ffffff 42 30 45 33; e #ffffff 4 34 7 37"
    ),
    "pillars": "r #968c84 8 0 15 62; r #968c84 85 0 92 62; r #786e6a 0 0 100 8",
    "stripe": "r #eec832 0 92 100 96",
    "waves": (
        "r #70a8ce 4 60 18 62; r #70a8ce 40 66 54 68; r #70a8ce 74 58 88 60; r #70a8ce 14 78 28 80; r"
        " #70a8ce 60 84 74 86; r #70a8ce 84 74 98 76; r #70a8ce 32 92 46 94"
    ),
    "pier": "r #785a40 0 46 26 52; r #644a34 4 50 8 70; r #644a34 18 50 22 70",
    "tiles": (
        "r #e2ceb0 16 0 17 66; r #e2ceb0 33 0 34 66; r #e2ceb0 50 0 51 66; r #e2ceb0 67 0 68 66; r "
        "#e2ceb0 84 0 85 66; r #e2ceb0 0 16 100 17; r #e2ceb0 0 33 100 34; r #e2ceb0 0 50 100 51"
    ),
    "shelf": "r #966846 60 18 98 22; e #ce543c 66 8 74 18; r #5a8cb4 80 6 88 18",
    "frame": "r #785432 66 8 94 34; r #96c4be 69 11 91 31",
    "rug": "e #be544a 8 72 92 98; e #dea078 18 76 82 94",
    "window": "r #fafafa 6 6 38 44; r #96ccf4 9 9 21 41; r #96ccf4 24 9 35 41; p #aa6ea0 2 4 10 4 4 50 0 50",
    "lamps": (
        "p #f6ce78 16 6 22 6 28 18 10 18; p #f6ce78 46 6 52 6 58 18 40 18; p #f6ce78 76 6 82 6 88 18 "
        "70 18; r #faf0e2 0 63 100 67"
    ),
    "blinds": (
        "r #b0bec8 4 6 34 9; r #b0bec8 4 12 34 15; r #b0bec8 4 18 34 21; r #b0bec8 4 24 34 27; r "
        "#b0bec8 4 30 34 33; r #b0bec8 4 36 34 39; r #96a0a6 70 10 96 40; r #fafafa 72 12 94 38"
    ),
}
"""Shapes on the background: kind (rectangle, ellipse, polygon), color, numbers in hundredths of the side."""


def draw_pictures(scenes: list[Scene], picture_px: int) -> Iterator[UInt8[np.ndarray, "side side 3"]]:
    """Draw scenes as RGB images with a side of ``picture_px``."""
    side = picture_px * _FINER
    backdrops = {setting: _backdrop(setting, side) for setting in _BACKDROPS}
    for scene in scenes:
        picture = backdrops[scene.setting].copy()
        _draw_scene(ImageDraw.Draw(picture), scene, side)
        yield np.asarray(picture.reduce(_FINER))


def _backdrop(setting: str, side: int) -> Image.Image:
    above, below, horizon, decor = _BACKDROPS[setting]
    picture = Image.new("RGB", (side, side), above)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, horizon * side, side, side], fill=below)
    methods = {"r": draw.rectangle, "e": draw.ellipse, "p": draw.polygon}
    for name in decor.split():
        for shape in _DECOR[name].split(";"):
            kind, colour, *numbers = shape.split()
            methods[kind]([float(number) * side / 100 for number in numbers], fill=colour)
    return picture


def _draw_scene(draw: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    for placed in place_objects(scene, float(side)):
        (x, y), size = placed.centre, placed.size
        _draw_marks(draw, placed.action, placed.centre, size)
        draw_glyph(draw, placed.name, left=x - size / 2, top=y - size / 2, size=size, colour=placed.colour)


class PlacedObject(NamedTuple):
    """One object and its place in an image."""

    name: str
    centre: tuple[float, float]
    size: float
    """Side of the square in which the glyph is drawn."""
    colour: Colour | None
    action: str
    """The action to mark; ``""`` for the second object."""


def place_objects(scene: Scene, side: float) -> list[PlacedObject]:
    """Every object of an image of ``side``, from far to near, so that near ones cover far ones."""
    size = side * (0.46 + 0.06 * scene.jitter[1])
    x = side * (0.5 + (0.08 if scene.partner else 0.14) * scene.jitter[0])
    y = side * (0.66 + 0.04 * scene.jitter[1]) - (0.16 * side if scene.action in {"jumping", "flying"} else 0)
    if not scene.partner:
        return _place_group(scene, (x, y), size)
    dx, dy, scale, main_first = {
        "next to": (0.27, 0.02, 0.80, True), "on": (0.0, 0.21, 0.86, False),
        "under": (0.0, -0.25, 0.80, True),
        "behind": (-0.12, 0.16, 0.80, True), "in front of": (0.14, -0.18, 0.92, False),
    }[scene.relation]  # fmt: skip
    shift = 0.5 if scene.relation == "next to" else 0.3
    side_of = -1 if scene.jitter[0] > 0 else 1  # the partner is drawn on the side with more room
    partner = (x + side_of * dx * side * (1 - shift / 2), y + dy * side * 0.8)
    main = (x - side_of * dx * side * shift, y - dy * side * 0.3)
    group = _place_group(scene, main, size)
    second = [PlacedObject(scene.partner, partner, size * scale, None, "")]
    return group + second if main_first else second + group


def _place_group(scene: Scene, centre: tuple[float, float], size: float) -> list[PlacedObject]:
    places = {
        1: [(0.0, 0.0)], 2: [(-0.42, -0.04), (0.42, 0.06)], 3: [(0.0, -0.3), (-0.46, 0.14), (0.46, 0.16)],
        4: [(-0.5, -0.26), (0.0, -0.34), (0.5, -0.26), (-0.28, 0.18), (0.28, 0.2)],
    }[scene.count]  # fmt: skip
    smaller = size * {1: 1.0, 2: 0.78, 3: 0.68, 4: 0.56}[scene.count]
    colour = COLOURS[scene.colour] if scene.colour else None
    return [
        PlacedObject(
            scene.object, (centre[0] + dx * size, centre[1] + dy * size), smaller, colour, scene.action
        )
        for dx, dy in places
    ]


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_EXTENT_PX = 400


def object_boxes(scene: Scene) -> list[tuple[str, Box]]:
    """Name and box of every object, in fractions of the image's side.

    A box contains the whole object, including parts that another one covers or that lie outside of the image.
    """
    boxes = []
    for name, (x, y), size, _, _ in place_objects(scene, 1.0):
        left, top, right, bottom = (size * (part - 0.5) for part in _extent(name))
        boxes.append((name, (x + left, y + top, x + right, y + bottom)))
    return boxes


@cache
def _extent(name: str) -> Box:
    """The box of a glyph's pixels, in fractions of the square that it is drawn in."""
    # with a margin: wide lines and rounding can exceed the square
    picture = Image.new("RGBA", (2 * _EXTENT_PX, 2 * _EXTENT_PX))
    start, size = _EXTENT_PX / 2, float(_EXTENT_PX)
    draw_glyph(ImageDraw.Draw(picture), name, left=start, top=start, size=size, colour=None)
    left, top, right, bottom = ((end - start) / size for end in picture.getbbox() or (0, 0, 0, 0))
    return left, top, right, bottom


def _draw_marks(draw: ImageDraw.ImageDraw, action: str, centre: tuple[float, float], size: float) -> None:
    """Marks of an action: a shadow below flying objects, lines behind moving ones, a dish in front of eating ones."""
    x, y = centre
    width = max(1, round(size * 0.03))
    if action in {"jumping", "flying"}:
        low = y + size * (0.75 if action == "jumping" else 0.95)
        draw.ellipse(
            [x - size * 0.34, low - size * 0.06, x + size * 0.34, low + size * 0.06], fill=(84, 88, 92)
        )
    elif action in {"running", "moving", "walking"}:
        for height in (-0.2, 0.0, 0.2)[: 1 if action == "walking" else 3]:
            start = x - size * 0.72
            draw.line(
                [start, y + height * size, start + size * 0.2, y + height * size],
                fill=(250, 250, 250),
                width=width,
            )
    elif action == "sleeping":
        z = (x + size * 0.34, y - size * 0.52)
        end = (z[0] + size * 0.14, z[1] + size * 0.14)
        draw.line([z, (end[0], z[1]), (z[0], end[1]), end], fill=(60, 60, 110), width=2 * width)
    elif action == "eating":
        draw.ellipse([x + size * 0.4, y + size * 0.3, x + size * 0.66, y + size * 0.46], fill=(214, 120, 60))
    elif action == "sitting":
        draw.rectangle([x - size * 0.4, y + size * 0.4, x + size * 0.4, y + size * 0.52], fill=(96, 84, 90))
    elif action == "displayed":
        draw.rectangle(
            [x - size * 0.5, y + size * 0.46, x + size * 0.5, y + size * 0.56], fill=(232, 228, 220)
        )
