"""Pictures of scenes: a place, and the objects in their colours, as many and where the scene says."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from bitllm.simulation.world.glyphs import Colour, draw_glyph
from bitllm.simulation.world.scenes import Scene
from bitllm.simulation.world.vocabulary import COLOURS

_FINER = 2
"""Pictures are drawn at twice their size and then averaged, for smooth edges."""

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
"""Of every setting: colour above and below the horizon, the horizon's height, and what decorates it."""

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
"""Shapes on the background: kind (rectangle, ellipse, polygon), colour, numbers in hundredths of the side."""


def draw_pictures(scenes: list[Scene], picture_px: int) -> Iterator[UInt8[np.ndarray, "side side 3"]]:
    """Draw the scenes one after the other, as RGB pictures of ``picture_px`` a side."""
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
    """Objects from far to near: what stands in front covers what stands behind."""
    size = side * (0.46 + 0.06 * scene.jitter[1])
    x = side * (0.5 + (0.08 if scene.partner else 0.14) * scene.jitter[0])
    y = side * (0.66 + 0.04 * scene.jitter[1]) - (0.16 * side if scene.action in {"jumping", "flying"} else 0)
    colour = COLOURS[scene.colour] if scene.colour else None
    if not scene.partner:
        _draw_group(draw, scene, (x, y), size, colour)
        return
    dx, dy, scale, main_first = {
        "next to": (0.27, 0.02, 0.80, True), "on": (0.0, 0.21, 0.86, False),
        "under": (0.0, -0.25, 0.80, True),
        "behind": (-0.12, 0.16, 0.80, True), "in front of": (0.14, -0.18, 0.92, False),
    }[scene.relation]  # fmt: skip
    shift = 0.5 if scene.relation == "next to" else 0.3
    side_of = -1 if scene.jitter[0] > 0 else 1  # the partner goes where there is room
    partner = (x + side_of * dx * side * (1 - shift / 2), y + dy * side * 0.8)
    main = (x - side_of * dx * side * shift, y - dy * side * 0.3)
    if main_first:
        _draw_group(draw, scene, main, size, colour)
    _draw_one(draw, scene.partner, partner, size * scale, None)
    if not main_first:
        _draw_group(draw, scene, main, size, colour)


def _draw_group(
    draw: ImageDraw.ImageDraw, scene: Scene, centre: tuple[float, float], size: float, colour: Colour | None
) -> None:
    places = {
        1: [(0.0, 0.0)], 2: [(-0.42, -0.04), (0.42, 0.06)], 3: [(0.0, -0.3), (-0.46, 0.14), (0.46, 0.16)],
        4: [(-0.5, -0.26), (0.0, -0.34), (0.5, -0.26), (-0.28, 0.18), (0.28, 0.2)],
    }[scene.count]  # fmt: skip
    smaller = size * {1: 1.0, 2: 0.78, 3: 0.68, 4: 0.56}[scene.count]
    for dx, dy in places:
        place = (centre[0] + dx * size, centre[1] + dy * size)
        _draw_marks(draw, scene.action, place, smaller)
        _draw_one(draw, scene.object, place, smaller, colour)


def _draw_one(
    draw: ImageDraw.ImageDraw, name: str, centre: tuple[float, float], size: float, colour: Colour | None
) -> None:
    draw_glyph(draw, name, left=centre[0] - size / 2, top=centre[1] - size / 2, size=size, colour=colour)


def _draw_marks(draw: ImageDraw.ImageDraw, action: str, centre: tuple[float, float], size: float) -> None:
    """What shows an action: a shadow under what flies, lines behind what moves, a dish before who eats."""
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
