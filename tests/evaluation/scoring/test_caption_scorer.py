import numpy as np
import pytest

from bitllm.errors import BitLlmError, DataError
from bitllm.evaluation.scoring.caption_scorer import (
    METRICS,
    CaptionScorer,
    ExtraMetric,
    score_differences,
    score_estimates,
)
from bitllm.metrics.java import why_no_ptb

CAPTIONS = ["A man rides a wave today.", "two dogs", "", "A red bus"]
REFERENCES = [
    ["A man rides a wave.", "a surfer on a wave"],
    ["Two dogs play.", "Dogs on grass", "two brown dogs"],
    ["A kitchen."],
    ["A red bus on a street", "the bus is red"],
]
LEADERBOARD = {"BLEU-1": 59.44, "BLEU-4": 19.03, "ROUGE-L": 43.71, "CIDEr": 61.06}


def made_up(rng, n=60):
    words = ["a", "man", "dog", "bus", "wave", "red", "on", "the", "street", "grass"]
    references = [[" ".join(rng.choice(words, size=8)) for _ in range(4)] for _ in range(n)]
    good = [texts[0].rsplit(" ", 2)[0] for texts in references]
    bad = [" ".join(rng.choice(words, size=7)) for _ in range(n)]
    return references, good, bad


def test_metrics_are_means_or_corpus_scores_with_an_interval_around_them():
    scorer = CaptionScorer(REFERENCES)
    numbers = scorer.per_caption(CAPTIONS)
    metrics = scorer.metrics(CAPTIONS)
    assert tuple(metrics) == METRICS
    assert metrics["CIDEr"] == pytest.approx(numbers.cider.mean())
    assert metrics["ROUGE-L"] == pytest.approx(numbers.rouge_l.mean())
    assert numbers.bleu_counts.shape == (4, 10)
    assert numbers.cider[2] == 0
    found = score_estimates(numbers, n_bootstrap=200, seed=7)
    assert {name: one.value for name, one in found.items()} == metrics
    assert all(one.low <= one.value <= one.high for one in found.values())
    assert found == score_estimates(numbers, n_bootstrap=200, seed=7)


def test_the_checksum_of_references_does_not_depend_on_their_order():
    forward = CaptionScorer(REFERENCES).references_sha256
    assert CaptionScorer(REFERENCES[::-1]).references_sha256 == forward
    assert CaptionScorer(REFERENCES[1:]).references_sha256 != forward


def test_three_equal_trials_of_each_image_score_like_their_average_with_its_interval():
    once = CaptionScorer(REFERENCES)
    ids = np.repeat(np.arange(4), 3).tolist()
    thrice = CaptionScorer([REFERENCES[i] for i in ids], image_ids=ids)
    assert thrice.references_sha256 == once.references_sha256
    a = score_estimates(once.per_caption(CAPTIONS), n_bootstrap=100)
    b = score_estimates(thrice.per_caption([CAPTIONS[i] for i in ids]), n_bootstrap=100)
    for name in METRICS:
        assert b[name][:3] == pytest.approx(a[name][:3])


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="expected at least 2 images, found 1"):
        CaptionScorer(REFERENCES[:1])
    with pytest.raises(DataError, match=r"found none for 1 of 2 \(the first is number 1\)"):
        CaptionScorer([["a"], []])
    with pytest.raises(DataError, match="image ids: expected 4, one for each set, found 2"):
        CaptionScorer(REFERENCES, image_ids=[1, 2])
    with pytest.raises(DataError, match="expected one set for each of 1 captions, found 4"):
        CaptionScorer(REFERENCES).metrics(["a"])


def test_java_that_is_asked_for_and_missing_is_an_error(no_java):
    with pytest.raises(BitLlmError, match="expected Java on the path, found none"):
        CaptionScorer(REFERENCES, tokenizer="java")


def test_a_metric_that_fails_is_left_out_with_its_reason():
    def fails(_):
        raise BitLlmError("X: the process died")

    scorer = CaptionScorer(REFERENCES, extras=[ExtraMetric("X", fails, lambda sums, n: 0.0)])
    assert tuple(scorer.metrics(CAPTIONS)) == METRICS
    assert scorer.not_run == {"X": "the process died"}


@pytest.mark.parametrize(
    "tokenizer",
    [
        "python",
        pytest.param(
            "java",
            marks=pytest.mark.skipif(why_no_ptb() is not None, reason=f"PTB tokenizer: {why_no_ptb()}"),
        ),
    ],
)
def test_scores_of_a_published_decoder_are_those_of_the_leaderboard(brainhub, tokenizer):
    scorer = CaptionScorer(brainhub.references, tokenizer=tokenizer)
    found = score_estimates(scorer.per_caption(brainhub.captions), n_bootstrap=200)
    assert {name: found[name].value for name in LEADERBOARD} == pytest.approx(LEADERBOARD, abs=0.01)
    # the interval measured in advance: [57.1, 64.8]
    assert found["CIDEr"][1:3] == pytest.approx((57.1, 64.8), abs=0.7)


def test_a_better_system_differs_with_an_interval_above_zero_and_an_equal_one_does_not(rng):
    references, good, bad = made_up(rng)
    scorer = CaptionScorer(references)
    a, b, c = (scorer.per_caption(captions) for captions in (good, bad, bad[::-1]))
    found = score_differences(a, b, n_draws=400)
    assert set(found) == {"CIDEr", "ROUGE-L", "BLEU-4"}
    for name, difference in found.items():
        assert difference.value == pytest.approx(a.total()[name] - b.total()[name])
        assert 0 < difference.low < difference.value < difference.high
        assert difference.p <= 0.01
    equal = score_differences(b, c)["CIDEr"]
    assert equal.low < 0 < equal.high


def test_single_trials_and_averages_of_the_same_images_compare(rng):
    references, good, bad = made_up(rng, n=20)
    ids = np.repeat(np.arange(20), 2).tolist()
    averaged = CaptionScorer(references).per_caption(good)
    of_trials = CaptionScorer([references[i] for i in ids], image_ids=ids)
    single = of_trials.per_caption([bad[i] for i in ids])
    found = score_differences(averaged, single, n_draws=100)["CIDEr"]
    assert found.value == pytest.approx(averaged.total()["CIDEr"] - single.total()["CIDEr"])
