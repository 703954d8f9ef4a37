"""Captions as people write them: different, true, short."""

import re

import numpy as np
import pytest

from bitllm.simulation import vocabulary
from bitllm.simulation.scenes import Scene, captions_of, make_scenes


@pytest.fixture(scope="module")
def described() -> list[tuple[Scene, tuple[str, ...]]]:
    scenes = make_scenes(1500, seed=7)
    return list(zip(scenes, captions_of(scenes, seed=7), strict=True))


def test_five_captions_differ_and_look_like_coco_s(described: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for _, captions in described:
        assert len(set(captions)) == 5
        assert all(re.fullmatch(r"[A-Z][a-z ]+\.", caption) for caption in captions)


def test_every_caption_names_the_main_object(described: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for scene, captions in described:
        names = {name for pair in vocabulary.THINGS[scene.object].names for name in pair}
        assert all(names & set(caption.lower().strip(".").split()) for caption in captions)


def test_captions_name_no_colour_that_is_not_there(described: list[tuple[Scene, tuple[str, ...]]]) -> None:
    for scene, captions in described:
        # "on the green grass" is a place
        text = " ".join(captions).lower().replace("green grass", "grass").replace(".", " ")
        assert set(text.split()) & set(vocabulary.COLOURS) <= {scene.colour}


def test_length_and_vocabulary_are_like_a_small_coco(described: list[tuple[Scene, tuple[str, ...]]]) -> None:
    words = [caption.lower().strip(".").split() for _, captions in described for caption in captions]
    assert 8 <= np.mean([len(caption) for caption in words]) <= 12
    assert 200 <= len({word for caption in words for word in caption}) <= 260


def test_captions_are_a_function_of_seed_and_image() -> None:
    scenes = make_scenes(30, seed=1)
    assert captions_of(scenes, seed=1)[:10] == captions_of(scenes[:10], seed=1)
    assert captions_of(scenes, seed=1) != captions_of(scenes, seed=2)
