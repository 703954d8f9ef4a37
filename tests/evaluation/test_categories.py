"""The category task: captions that name the category, and the classifier without an LLM."""

import numpy as np
import pytest

from bitllm.evaluation.categories import category_numbers, names_category, nearest_class_mean
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer, score_estimates


@pytest.mark.parametrize(
    ("caption", "is_right"),
    [
        ("a photo of a cat", True),
        ("two cats .", True),
        ("a cat and a house", False),
        ("a house", False),
        ("a photo", False),
        ("", False),
    ],
)
def test_a_caption_is_right_if_it_names_its_category_and_no_other(caption, is_right):
    others = ["a pair of scissors", "a scrambled picture", "the face", "a shoe", "a house"]
    categories = ["cat", "scissors", "scrambled picture", "face", "shoe", "house"]
    assert names_category([caption, *others], categories).tolist() == [is_right] + [True] * 5


def test_the_share_is_a_metric_with_an_interval():
    captions, categories = ["a cat", "a shoe", "a face", "a cat"], ["cat", "shoe", "house", "cat"]
    numbers = CaptionScorer([[text] for text in captions]).per_caption(captions)
    found = score_estimates(
        type(numbers)(**{**vars(numbers), "extras": (category_numbers(captions, categories),)})
    )["Category"]
    assert found.value == 75
    assert found.low < 75 < found.high


def test_the_nearest_class_mean_is_that_of_an_explicit_loop(rng):
    train, test = rng.standard_normal((20, 9)), rng.standard_normal((7, 9))
    labels = np.array(["a", "b", "c", "d"] * 5)
    expected = []
    for pattern in test:
        r = {
            one: np.corrcoef(
                pattern, np.mean([x for x, y in zip(train, labels, strict=True) if y == one], 0)
            )[0, 1]
            for one in "abcd"
        }
        expected.append(max(r, key=r.get))
    assert nearest_class_mean(train, labels, test).tolist() == expected
