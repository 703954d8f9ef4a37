"""Pictures show what the scene says."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bitllm.simulation import pictures as module
from bitllm.simulation.pictures import draw_pictures, object_boxes
from bitllm.simulation.scenes import Scene, make_scenes
from bitllm.simulation.vocabulary import COLOURS, OBJECTS, RELATIONS, SETTINGS


def scene(**changes: object) -> Scene:
    values = {"object": "car", "count": 1, "colour": "", "action": "parked", "partner": "", "relation": "",
              "setting": "office", "jitter": (0.0, 0.0)}  # fmt: skip
    return Scene(**(values | changes))


def draw(*scenes: Scene) -> np.ndarray:
    return np.stack(list(draw_pictures(list(scenes), 96))).astype(int)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_named_colour_is_in_the_picture(colour: str) -> None:
    plain, coloured = draw(scene(), scene(colour=colour))
    close = (np.abs(coloured - COLOURS[colour]).max(-1) <= 2) & (np.abs(plain - COLOURS[colour]).max(-1) > 2)
    if colour != "red":  # cars are a red of their own
        assert close.sum() > 100


def test_all_objects_and_all_settings_look_different() -> None:
    for pictures in (
        draw(*(scene(object=name) for name in OBJECTS)),
        draw(*(scene(setting=name) for name in SETTINGS)),
    ):
        flat = pictures.reshape(len(pictures), -1)[:, ::3]
        distance = np.abs(flat[:, None] - flat[None]).mean(-1)
        assert distance[~np.eye(len(flat), dtype=bool)].min() > 1


def test_more_objects_cover_more_of_the_picture() -> None:
    empty = draw(scene(colour="green"), scene(colour="green", count=2), scene(colour="green", count=4))
    green = (np.abs(empty - COLOURS["green"]).max(-1) < 3).sum((1, 2))
    assert green[0] < green[1] < green[2]


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_second_object_is_drawn_where_the_relation_says(relation: str) -> None:
    pair, swapped = draw(scene(colour="green", partner="bed", relation=relation), scene(colour="green"))
    assert np.abs(pair - swapped).mean() > 2


def test_on_is_above_and_under_is_below() -> None:
    on, under = draw(
        *(scene(object="ball", colour="green", partner="table", relation=name) for name in ("on", "under"))
    )
    height = [
        np.argwhere(np.abs(picture - COLOURS["green"]).max(-1) < 3)[:, 0].mean() for picture in (on, under)
    ]
    assert height[0] < height[1] - 10


def test_the_boxes_of_objects_are_those_of_the_pixels_that_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    side, room = (
        200,
        100,
    )  # of the canvas, which is drawn twice as large as the picture; and what lies beyond it
    drawn: list[tuple[str, np.ndarray]] = []
    draw_glyph = module.draw_glyph

    def caught(draw: ImageDraw.ImageDraw, name: str, *, left: float, top: float, **rest: object) -> None:
        alone = Image.new("RGBA", (side + 2 * room, side + 2 * room))
        draw_glyph(ImageDraw.Draw(alone), name, left=left + room, top=top + room, **rest)  # type: ignore[arg-type]
        drawn.append((name, np.array(alone.getbbox()) - room))
        draw_glyph(draw, name, left=left, top=top, **rest)  # type: ignore[arg-type]

    scenes = make_scenes(150, seed=3)
    expected = [object_boxes(one) for one in scenes]
    monkeypatch.setattr(module, "draw_glyph", caught)
    list(draw_pictures(scenes, side // 2))
    counts = [{4: 5}.get(one.count, one.count) + bool(one.partner) for one in scenes]
    assert [len(boxes) for boxes in expected] == counts
    assert [name for boxes in expected for name, _ in boxes] == [name for name, _ in drawn]
    found = np.array([box for _, box in drawn])
    np.testing.assert_allclose(
        np.array([box for boxes in expected for _, box in boxes]) * side, found, atol=1.6
    )
    assert found.min() < 0 and found.max() > side  # some objects lead out of the picture
