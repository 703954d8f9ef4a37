"""Accuracy of answers against independent loops and cases with known results."""

import re

import pytest

from bitllm.errors import DataError
from bitllm.metrics.answers import (
    answer_accuracy,
    count_error,
    count_of,
    direct_answer_accuracy,
    exact_match,
    is_yes,
    list_f1,
    most_frequent,
    normalized_answer,
    vqa_accuracy,
)

OTHERS = [f"other{n}" for n in "abcdefghij"]

NORMALIZED = {
    "The Dog": "dog",
    "a red bus": "red bus",
    "two": "2",
    "None": "0",
    "Ten.": "10",
    "eleven": "eleven",
    "dont": "don't",
    "don't": "don't",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "its": "its",
    "twas": "'twas",
    "oclock": "o'clock",
    "yes!": "yes",
    "black/white": "black white",
    "black/ white": "black white",
    "t-shirt": "t shirt",
    "t -shirt": "t shirt",
    "1,000 cars": "1000 cars",
    "1,000-1": "10001",
    "2.5 m.": "2.5 m",
    "u.s.a.": "usa",
    "10:30": "10:30",
    "what?\n": "what",
    "in\tthe  street": "in street",
}


@pytest.mark.parametrize(("text", "expected"), NORMALIZED.items())
def test_answers_are_normalized_by_the_official_rules(text, expected):
    assert normalized_answer(text) == expected


def official_loop(prediction, answers):
    """The official rule written out: for each of ten annotators, the nine others."""
    found = []
    for left_out in range(10):
        equal = 0
        for place, answer in enumerate(answers):
            if place != left_out and answer == prediction:
                equal += 1
        found.append(1.0 if equal >= 3 else equal / 3)
    return sum(found) / 10


@pytest.mark.parametrize(("n", "expected"), enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]))
def test_vqa_accuracy_of_every_number_of_equal_answers(n, expected):
    answers = ["cat"] * n + OTHERS[n:]
    assert vqa_accuracy("cat", answers) == pytest.approx(expected)
    assert vqa_accuracy("cat", answers) == pytest.approx(official_loop("cat", answers))
    assert answer_accuracy("cat", answers) == vqa_accuracy("cat", answers)


def test_answers_are_normalized_only_where_they_differ():
    """The official code leaves ten equal answers, and a prediction for them, as they are."""
    assert vqa_accuracy("A cat", ["a cat"] * 10) == 0
    assert vqa_accuracy("a cat", ["a cat"] * 10) == 1
    assert vqa_accuracy("A cat", [*["a cat"] * 9, "cat"]) == 1
    assert vqa_accuracy("2", [*["two"] * 2, *OTHERS[:8]]) == pytest.approx(0.6)


def test_vqa_accuracy_needs_ten_answers():
    with pytest.raises(DataError, match="10 answers"):
        vqa_accuracy("cat", ["cat"] * 9)


@pytest.mark.parametrize(
    ("said", "accepted", "expected"),
    [
        ("dog, cat", "cat, dog", 1),
        ("dog , dog , a cat .", "cat, dog", 1),
        ("dog and cat", "dog, cat, sandwich", 2 * (1 * 2 / 3) / (1 + 2 / 3)),
        ("dog, tree, car, bus", "dog", 2 * (1 / 4 * 1) / (1 / 4 + 1)),
        ("hot dog", "dog, hot dog", 2 * (1 * 1 / 2) / (1 + 1 / 2)),
        ("tree", "dog", 0),
        ("", "dog", 0),
    ],
)
def test_lists_are_scored_by_precision_and_recall_of_their_items(said, accepted, expected):
    assert list_f1(said, accepted) == pytest.approx(expected)


def test_exact_match_accepts_any_answer_in_whole():
    assert exact_match("The cat.", ["dog", "a cat"]) == 1
    assert exact_match("", ["cat"]) == 0
    assert exact_match("snow", ["no"]) == exact_match("no", ["snow"]) == 0
    assert answer_accuracy("2", ["two"]) == 1


@pytest.mark.parametrize("n", range(11))
def test_direct_answers_count_all_annotators(n):
    expected = {0: 0.0, 1: 1 / 3, 2: 2 / 3}.get(n, 1.0)
    assert direct_answer_accuracy("cat", ["cat"] * n + OTHERS[n:]) == pytest.approx(expected)


def test_direct_answers_are_not_normalized():
    assert direct_answer_accuracy("a cat", ["cat"] * 10) == 0


def test_counts_are_read_from_words_and_digits():
    texts = ["two dogs", "there are 12", "none", "many", "", "1,200", "second"]
    by_hand = [2, 12, 0, None, None, 1200, None]
    assert [count_of(text) for text in texts] == by_hand
    assert [int(re.sub(r"\D", "", text) or 0) for text in ("12", "1,200")] == [12, 1200]


def test_the_error_of_counts_is_squared_and_needs_a_number():
    found = [count_error(text, ["3"]) for text in ("three", "5", "many", "1 cat")]
    assert found == [0, 4, 9, 4]
    with pytest.raises(DataError, match="many"):
        count_error("3", ["many"])


def test_the_most_frequent_answer_is_one_after_normalization():
    assert most_frequent(["2", "yes", "two", "Yes.", "the yes"]) == "yes"
    assert most_frequent(["dog", "cat"]) == "cat"


def test_yes_is_a_whole_answer():
    assert [is_yes(text) for text in ("Yes.", "yes", "yes it is", "no", "eyes")] == [
        True,
        True,
        False,
        False,
        False,
    ]
