import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from bitllm.errors import DataError
from bitllm.metrics.bleu import Bleu, bleu_counts, bleu_from_counts


def test_counts_are_lengths_matches_and_totals():
    counts = bleu_counts(["a man a man"], [["a man on a wave", "a dog"]])
    assert counts.tolist() == [[4, 5, 3, 1, 0, 0, 4, 3, 2, 1]]


def test_of_two_equally_near_references_the_shorter_counts():
    assert bleu_counts(["a b c"], [["a b c d", "a b"]])[0, 1] == 2


def test_an_empty_reference_has_length_zero():
    assert bleu_counts(["a"], [["", "a b c"]])[0, 1] == 0


def test_corpus_bleu_agrees_with_sacrebleu(rng):
    words = ["a", "man", "dog", "on", "wave"]
    texts = [" ".join(rng.choice(words, size=rng.integers(4, 12))) for _ in range(120)]
    captions, references = texts[:40], [list(pair) for pair in zip(texts[40:80], texts[80:], strict=True)]
    theirs = BLEU(tokenize="none", smooth_method="none").corpus_score(captions, [texts[40:80], texts[80:]])
    # the constants of the COCO tools are what differs: 1e-9 in denominators of some hundreds
    assert bleu_from_counts(bleu_counts(captions, references).sum(axis=0))[3] == pytest.approx(
        theirs.score, rel=1e-9
    )


def test_counts_of_parts_add_up_to_the_corpus():
    captions, references = ["a b c d e", "a", ""], [["a b c d"], ["b"], ["a b"]]
    counts = bleu_counts(captions, references)
    parts = bleu_counts(captions[:1], references[:1]).sum(axis=0) + bleu_counts(
        captions[1:], references[1:]
    ).sum(axis=0)
    assert np.array_equal(counts.sum(axis=0), parts)


def test_a_perfect_corpus_scores_100_and_an_empty_one_0():
    perfect = bleu_from_counts(bleu_counts(["a b c d e"], [["a b c d e"]])[0])
    assert perfect == pytest.approx([100] * 4)
    assert bleu_from_counts(bleu_counts([""], [["a b"]])[0]) == pytest.approx([0] * 4, abs=1e-3)


def test_captions_without_their_references_are_refused():
    with pytest.raises(DataError, match="expected one set for each of 2 captions, found 1"):
        bleu_counts(["a", "b"], [["a"]])
    with pytest.raises(DataError, match=r"found none for 1 of 2 \(the first is number 1\)"):
        bleu_counts(["a", "b"], [["a"], []])


def test_a_reference_left_out_is_counted_against_the_others_alone(rng):
    """Few words, so that references often have equal and repeated n-grams; one set has two equal references."""
    sets = [[" ".join(rng.choice(list("abc"), size=rng.integers(0, 9))) for _ in range(5)] for _ in range(60)]
    sets[0][3] = sets[0][1]
    bleu = Bleu(sets)
    for k in range(5):
        others = [[*texts[:k], *texts[k + 1 :]] for texts in sets]
        np.testing.assert_array_equal(
            bleu.counts_of_reference(k), bleu_counts([texts[k] for texts in sets], others)
        )
    with pytest.raises(DataError, match="found none for 1 of 1"):
        Bleu([["a"]]).counts_of_reference(0)


def test_a_caption_is_clipped_at_the_reference_that_has_each_n_gram_most_often(rng):
    for _ in range(50):
        caption, *texts = [" ".join(rng.choice(list("ab"), size=rng.integers(1, 9))) for _ in range(4)]
        clipped = [min(caption.count(letter), max(text.count(letter) for text in texts)) for letter in "ab"]
        assert bleu_counts([caption], [texts])[0, 2] == sum(clipped)
