import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.metrics.cider import Cider, DocumentFrequencies, cider_d, mean_cider

TRAINING = [["a man on a wave", "a surfer"], ["a dog on grass"], ["two cats"], ["a red bus"]]


def test_one_image_alone_scores_zero_unless_frequencies_are_frozen():
    assert cider_d(["a dog on grass"], [["a dog on grass"]])[0] == 0
    frozen = cider_d(["a dog on grass"], [["a dog on grass"]], DocumentFrequencies.fit(TRAINING))
    assert frozen[0] == pytest.approx(1000)  # all four orders match: 10 of 10, in points


def test_frozen_frequencies_make_a_score_independent_of_its_batch():
    df = DocumentFrequencies.fit(TRAINING)
    together = cider_d(["a man", "a dog"], [["a man on a wave"], ["a dog on grass"]], df)
    alone = cider_d(["a dog"], [["a dog on grass"]], df)
    assert together[1] == alone[0]


def test_the_length_penalty_counts_bigrams():
    df = DocumentFrequencies.fit(TRAINING)
    # "cats" and "cats cats" share direction; one word and none have the same number of bigrams: 0
    one = cider_d(["two"], [["two"]], df)[0]
    longer = cider_d(["two two"], [["two"]], df)[0]
    # clipping halves the product while the norm doubles; one bigram more costs exp(-1 / 72)
    assert longer == pytest.approx(one / 2 * np.exp(-1 / 72))


def test_keys_may_be_names_and_a_second_call_gives_the_same():
    scorer = Cider({73: ["a man on a wave"], "x": ["two cats"]}, DocumentFrequencies.fit(TRAINING))
    first = scorer.score(["x", 73, "x"], ["two cats", "a wave", ""])
    assert first[0] > 0
    assert first[2] == 0
    assert np.array_equal(first, scorer.score(["x", 73, "x"], ["two cats", "a wave", ""]))


def test_a_caption_much_longer_than_its_references_scores_without_error():
    df = DocumentFrequencies.fit(TRAINING)
    assert 0 <= cider_d([" ".join(["two cats"] * 200)], [["two cats"]], df)[0] < 1e-6


def test_the_mean_over_all_images_is_highest_for_what_is_said_of_them():
    means = mean_cider(["two cats", "", "a man on a wave"], TRAINING, DocumentFrequencies.fit(TRAINING))
    assert means.shape == (3,)
    assert means[1] == 0
    assert means.argmax() == 2


def test_a_reference_is_scored_against_the_others_of_its_image():
    sets = [["a man on a wave", "a surfer on a wave"], ["a dog", "dogs"]]
    df = DocumentFrequencies.fit(TRAINING)
    expected = [cider_d([own], [[other]], df)[0] for own, other in sets]
    assert Cider(sets, df).score_of_reference(0) == pytest.approx(expected)
    with pytest.raises(DataError, match="found none for 1 of 1"):
        Cider([["a dog"]], df).score_of_reference(0)


def test_bad_keys_and_references_are_refused():
    df = DocumentFrequencies.fit(TRAINING)
    with pytest.raises(DataError, match="expected a key for each of 2 captions, found 1"):
        Cider(TRAINING, df).score([0], ["a", "b"])
    with pytest.raises(DataError, match="expected references of image 9, found none"):
        Cider(TRAINING, df).score([9], ["a"])
    with pytest.raises(DataError, match="expected references of at least one image, found none"):
        DocumentFrequencies.fit([])
    with pytest.raises(DataError, match="found none for 1 of 1"):
        cider_d(["a"], [[]], df)
    with pytest.raises(DataError, match="found none for 1 of 1"):
        mean_cider(["a"], [[]], df)


def test_what_is_kept_is_bounded_where_asked_for_and_changes_no_score():
    df = DocumentFrequencies.fit(TRAINING)
    keys, captions = [0, 1, 2, 1, 0, 2], ["two cats", "a dog", "a man on a wave", "two cats", "a dog", ""]
    small, whole = Cider(TRAINING[:3], df, max_cached=1), Cider(TRAINING[:3], df)
    assert small.score(keys, captions).tolist() == whole.score(keys, captions).tolist()
    assert (len(small._images), len(whole._images)) == (1, 3)
