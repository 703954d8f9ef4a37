import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer
from bitllm.evaluation.scoring.caption_scores import compare_captions
from bitllm.metrics.java import why_no_ptb

LEADERBOARD = {"BLEU-1": 59.44, "BLEU-4": 19.03, "ROUGE-L": 43.71, "CIDEr": 61.06}


def score_captions(captions, references, *, n_bootstrap, image_ids=None, tokenizer="python"):
    scorer = CaptionScorer(references, image_ids=image_ids, tokenizer=tokenizer)
    return scorer.score(captions, n_bootstrap=n_bootstrap)


def made_up(rng, n=60):
    words = ["a", "man", "dog", "bus", "wave", "red", "on", "the", "street", "grass"]
    references = [[" ".join(rng.choice(words, size=8)) for _ in range(4)] for _ in range(n)]
    good = [texts[0].rsplit(" ", 2)[0] for texts in references]
    bad = [" ".join(rng.choice(words, size=7)) for _ in range(n)]
    return references, good, bad


@pytest.mark.skipif(why_no_ptb() is not None, reason=f"Java tokenizer: {why_no_ptb()}")
def test_scores_of_a_published_decoder_are_those_of_the_leaderboard(brainhub):
    scores = score_captions(brainhub.captions, brainhub.references, tokenizer="java", n_bootstrap=200)
    for name, published in LEADERBOARD.items():
        assert scores.metrics[name] == pytest.approx(published, abs=0.01)
    # the interval measured in advance: [57.1, 64.8]
    assert scores.intervals["CIDEr"][1:3] == pytest.approx((57.1, 64.8), abs=0.7)


def test_without_java_the_published_scores_are_met_too(brainhub):
    scores = score_captions(brainhub.captions, brainhub.references, n_bootstrap=20)
    for name, published in LEADERBOARD.items():
        assert scores.metrics[name] == pytest.approx(published, abs=0.01)


def test_a_better_system_differs_with_an_interval_above_zero(rng):
    references, good, bad = made_up(rng)
    a, b = (score_captions(captions, references, n_bootstrap=20) for captions in (good, bad))
    found = compare_captions(a, b, n_draws=400)
    assert set(found) == {"CIDEr", "ROUGE-L", "BLEU-4"}
    for name, difference in found.items():
        assert difference.value == pytest.approx(a.metrics[name] - b.metrics[name])
        assert 0 < difference.low < difference.value < difference.high
        assert difference.p <= 0.01


def test_two_systems_that_draw_from_the_same_words_do_not_differ(rng):
    references, _, bad = made_up(rng)
    a, b = (score_captions(captions, references, n_bootstrap=20) for captions in (bad, bad[::-1]))
    assert compare_captions(a, b)["CIDEr"].low < 0 < compare_captions(a, b)["CIDEr"].high


def test_single_trials_and_averages_of_the_same_images_compare(rng):
    references, good, bad = made_up(rng, n=20)
    ids = np.repeat(np.arange(20), 2).tolist()
    averaged = score_captions(good, references, n_bootstrap=20)
    single = score_captions(
        [bad[i] for i in ids], [references[i] for i in ids], image_ids=ids, n_bootstrap=20
    )
    found = compare_captions(averaged, single, n_draws=100)["CIDEr"]
    assert found.value == pytest.approx(averaged.metrics["CIDEr"] - single.metrics["CIDEr"])


def test_the_same_seed_gives_the_same_scores(rng):
    references, good, _ = made_up(rng, n=10)
    first, second = (CaptionScorer(references).score(good, n_bootstrap=30, seed=7) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_systems_on_other_images_or_references_do_not_compare(rng):
    references, good, _ = made_up(rng, n=10)
    a = score_captions(good, references, n_bootstrap=10)
    fewer = score_captions(good[1:], references[1:], n_bootstrap=10)
    with pytest.raises(DataError, match=r"expected the same images and references .* found 10 and 9 images"):
        compare_captions(a, fewer)
    other = score_captions(good, references[::-1], image_ids=list(range(10))[::-1], n_bootstrap=10)
    with pytest.raises(DataError, match="10 and 10 images, 0 in the same place"):
        compare_captions(a, other)
