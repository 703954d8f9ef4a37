"""Scenes: rich, with habits, and the same for the same seed."""

import re

import numpy as np
import pytest

from bitllm.simulation import vocabulary
from bitllm.simulation.pictures import GLYPHS
from bitllm.simulation.responses import standardised
from bitllm.simulation.scenes import (
    FEATURE_GROUPS,
    FEATURES,
    Scene,
    captions_of,
    make_scenes,
    scene_features,
    scene_table,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return make_scenes(3000, seed=5)


def test_the_vocabulary_is_as_large_as_promised_and_everything_can_be_drawn() -> None:
    assert 45 <= len(vocabulary.OBJECTS) <= 60 and len(vocabulary.CATEGORIES) == 10
    assert len(vocabulary.SETTINGS) == 12
    assert set(GLYPHS) == set(vocabulary.OBJECTS)


def test_every_habit_names_things_that_exist() -> None:
    for habits in vocabulary.HABITS.values():
        assert set(habits.settings.split()) <= set(vocabulary.SETTINGS)
        assert set(habits.actions.split()) <= set(vocabulary.ACTIONS)
        assert set(habits.colours.split()) <= set(vocabulary.COLOURS)
        assert set(habits.partners.split()) <= set(vocabulary.CATEGORIES)


def test_few_test_scenes_have_a_twin_among_training_scenes(scenes: list[Scene]) -> None:
    def gist(scene: Scene) -> tuple[str, ...]:
        values = (
            scene.object,
            scene.count,
            scene.colour,
            scene.action,
            scene.partner,
            scene.relation,
            scene.setting,
        )
        return tuple(str(value) for value in values)

    known = {gist(scene) for scene in scenes[:2700]}
    assert np.mean([gist(scene) in known for scene in scenes[2700:]]) < 0.1


def test_a_category_tells_much_about_the_place_but_not_all(scenes: list[Scene]) -> None:
    at_sea = [scene.setting for scene in scenes if scene.object == "boat"]
    assert at_sea.count("harbor") > len(at_sea) / 3
    assert len({scene.setting for scene in scenes if scene.category == "people"}) == 12


def test_features_hold_what_the_scene_holds(scenes: list[Scene]) -> None:
    values = scene_features(scenes)
    column = {feature: index for index, feature in enumerate(FEATURES)}
    for row, scene in zip(values[:200], scenes[:200], strict=True):
        assert row[column["object", scene.object]] == 1 == row[column["setting", scene.setting]]
        groups = {
            group: row[[column[group, value] for value in names]].sum()
            for group, names in FEATURE_GROUPS.items()
        }
        assert groups["object"] == groups["category"] == groups["count"] == groups["action"] == 1
        assert groups["partner"] == groups["relation"] == bool(scene.partner)
        assert groups["colour"] == bool(scene.colour)
        assert (groups["face"] == 1) == (scene.category == "people")


def test_standardised_groups_have_mean_zero_and_total_variance_one(scenes: list[Scene]) -> None:
    values = standardised(scene_features(scenes))
    groups = np.array([group for group, _ in FEATURES])
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-12)
    for group in FEATURE_GROUPS:
        assert values[:, groups == group].var(0).sum() == pytest.approx(1)


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others() -> None:
    assert make_scenes(20, seed=1) == make_scenes(20, seed=1) != make_scenes(20, seed=2)
    assert scene_table(make_scenes(20, seed=1)).index.tolist() == list(range(20))


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
