import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitllm.errors import DataError
from bitllm.metrics.rouge import longest_common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


def by_recursion(first, second):
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + by_recursion(first[:-1], second[:-1])
    return max(by_recursion(first[:-1], second), by_recursion(first, second[:-1]))


@given(WORDS.map(lambda words: words[:6]), WORDS.map(lambda words: words[:6]))
def test_common_subsequence_equals_its_definition(first, second):
    assert longest_common_subsequence(first, second) == by_recursion(first, second)


@given(WORDS, WORDS)
def test_common_subsequence_is_symmetric(first, second):
    assert longest_common_subsequence(first, second) == longest_common_subsequence(second, first)


def test_precision_and_recall_may_come_from_different_references():
    score = rouge_l(["a b"], [["a b c d", "a"]])[0]
    assert score == pytest.approx(100)  # precision 1 from the first, recall 1 from the second


def test_an_empty_caption_scores_zero():
    assert rouge_l([""], [["a b"]])[0] == 0


def test_captions_without_their_references_are_refused():
    with pytest.raises(DataError, match="found none for 1 of 1"):
        rouge_l(["a"], [[]])
