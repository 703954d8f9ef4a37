"""Objects in captions: hand-made cases, an independent loop, and the simulation's own captions."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.data.store import Store
from bitllm.metrics.objects import (
    ObjectVocabulary,
    categories_by_image,
    coco_vocabulary,
    object_scores,
    object_vocabulary,
    simulated_vocabulary,
)
from bitllm.simulation.scenes import captions_of, make_scenes

COCO = coco_vocabulary()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man eating a hot dog next to his dog.", "person, hot dog, dog"),
        ("Two hot-dogs on a table", "hot dog, dining table"),
        ("A teddy bear sits on a bear rug", "teddy bear, bear"),
        ("Women and children wait at a train station.", "person"),
        ("People on a TRAIN; the train tracks curve", "person, train"),
        ("A baby elephant and its mother", "elephant"),
        ("A baby sleeps in a bed of flowers", "person"),
        ("An orange cat lies on a couch", "cat, couch"),
        ("Two oranges and an orange", "orange"),
        ("A bus that is orange and white", "bus"),
        ("An orange and a banana in a bowl", "orange, banana, bowl"),
        ("A man's cell phone and a pair of scissors", "person, cell phone, scissors"),
        ("A glass of wine beside wine glasses", "wine glass"),
        ("A microwave oven above a stove top oven", "microwave, oven"),
        ("Buses, mice, knives, geese and puppies", "bus, mouse, knife, bird, dog"),
        ("A passenger train passes a passenger", "train, person"),
        ("Steam rises over a grassy hillside", ""),
        ("", ""),
    ],
)
def test_captions_mention_the_categories_that_a_reader_finds(caption, expected):
    assert COCO.mentioned(caption) == set(filter(None, expected.split(", ")))


def test_cocos_categories_are_80_and_each_is_named_by_itself_and_by_no_other():
    assert len(COCO.categories) == len(set(COCO.categories)) == 80
    for category in COCO.categories:
        article = "an" if category[0] in "aeiou" else "a"
        assert COCO.mentioned(f"There is {article} {category}.") == {category}
    claimed = [(phrase, category) for phrase, category in COCO._category.items() if category is not None]
    assert len(claimed) > 600
    for phrase, category in claimed:
        assert COCO.mentioned(" ".join(word for word in phrase if word != "<end>")) == {category}, phrase


@given(st.sets(st.sampled_from(COCO.categories), max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_caption_that_lists_the_objects_scores_1(categories):
    caption = " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in sorted(categories))
    scores = object_scores([caption], [categories], COCO)
    expected = 1.0 if categories else math.nan
    np.testing.assert_equal([float(values[0]) for values in scores], [expected] * 3)


def test_scores_equal_an_explicit_loop():
    words = {
        "dog": ["dog", "dogs"],
        "hot dog": ["hot dog"],
        "cat": ["cat", "tabby cat", "cats"],
        "cup": ["cup"],
    }
    vocabulary = ObjectVocabulary(words, ["cat food"])
    rng = np.random.default_rng(0)
    pieces = ["a", "hot", "dog", "dogs", "tabby", "cat", "food", "cup", "and", "cats"]
    captions = [" ".join(rng.choice(pieces, rng.integers(0, 9))) for _ in range(300)]
    shown = [rng.choice([*words], rng.integers(0, 5), replace=False).tolist() for _ in captions]
    scores = object_scores(captions, shown, vocabulary)
    for row, (caption, present) in enumerate(zip(captions, shown, strict=True)):
        text, mentioned = f" {caption} ", set()
        # two words before one, by erasing them from the text
        for phrase in ["cat food", "hot dog", "tabby cat", "dogs", "dog", "cats", "cat", "cup"]:
            if re.search(rf"\b{phrase}\b", text):
                text = re.sub(rf"\b{phrase}\b", "#", text)
                mentioned |= {name for name, names in words.items() if phrase in names}
        right = [name for name in mentioned if name in present]
        precision = len(right) / len(mentioned) if mentioned else math.nan
        recall = len(right) / len(present) if present else math.nan
        f1 = 2 / (1 / precision + 1 / recall) if right else 0.0
        expected = [precision, recall, f1 if present else math.nan]
        np.testing.assert_allclose([values[row] for values in scores], expected)


def test_nothing_in_common_is_0_and_an_image_without_objects_is_not_scored():
    captions = ["a dog", "blue sky", "a dog", "blue sky"]
    scores = object_scores(captions, [{"cat"}, {"cat"}, set(), set()], COCO)
    nan = math.nan
    np.testing.assert_equal(scores.precision, [0, nan, 0, nan])
    np.testing.assert_equal(scores.recall, [0, 0, nan, nan])
    np.testing.assert_equal(scores.f1, [0, 0, nan, nan])
    assert len(object_scores([], [], COCO).f1) == 0


def test_captions_of_simulated_scenes_mention_their_objects_and_nothing_else():
    vocabulary, scenes = simulated_vocabulary(), make_scenes(200, seed=4)
    shown = [{scene.object, scene.partner} - {""} for scene in scenes]
    for place, captions in enumerate(zip(*captions_of(scenes, seed=4), strict=True)):
        scores = object_scores(captions, shown, vocabulary)
        assert (scores.precision == 1).all() and (scores.recall >= 0.5).all(), place
        assert (object_scores(captions, shown[1:] + shown[:1], vocabulary).f1 < 0.5).mean() > 0.8


def test_a_store_brings_its_own_categories_and_crowds_count_as_present():
    objects = pd.DataFrame({"category": ["dog", "wind turbine", "dog"], "is_crowd": [False, False, True]})
    store = object.__new__(Store)
    store.manifest = SimpleNamespace(source="nsd", sha256={"objects.parquet": "0"})
    store.objects = objects.set_index(pd.Index([3, 3, 8], name="nsd_id"))
    store.stimuli = pd.DataFrame(index=pd.Index([3, 5, 8], name="nsd_id"))
    assert categories_by_image(store) == {3: {"dog", "wind turbine"}, 5: set(), 8: {"dog"}}
    assert object_vocabulary(store).mentioned("Wind turbines and puppies") == {"wind turbine", "dog"}
    store.manifest.source = "simulated"
    assert object_vocabulary(store).mentioned("two guys and a kitten") == {"man", "cat"}
