"""Pictures show what the scene says."""

import numpy as np
import pytest

from bitllm.simulation.pictures import draw_pictures
from bitllm.simulation.scenes import Scene
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
