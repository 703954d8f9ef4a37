import json

import numpy as np
import pytest

from bitllm.errors import BitLlmError, DataError
from bitllm.evaluation.scoring.caption_scorer import METRICS, CaptionScorer

CAPTIONS = ["A man rides a wave today.", "two dogs", "", "A red bus"]
REFERENCES = [
    ["A man rides a wave.", "a surfer on a wave"],
    ["Two dogs play.", "Dogs on grass", "two brown dogs"],
    ["A kitchen."],
    ["A red bus on a street", "the bus is red"],
]


def test_metrics_are_means_or_corpus_scores_of_what_is_kept_per_caption():
    scores = CaptionScorer(REFERENCES).score(CAPTIONS, n_bootstrap=50)
    assert tuple(scores.metrics) == METRICS
    assert scores.metrics["CIDEr"] == pytest.approx(scores.per_image.cider.mean())
    assert scores.metrics["ROUGE-L"] == pytest.approx(scores.per_image.rouge_l.mean())
    assert scores.per_image.bleu_counts.shape == (4, 10)
    assert scores.per_image.cider[2] == 0
    assert CaptionScorer(REFERENCES).metrics(CAPTIONS) == scores.metrics


def test_every_metric_has_an_interval_around_it():
    scores = CaptionScorer(REFERENCES).score(CAPTIONS, n_bootstrap=200)
    for name, value in scores.metrics.items():
        assert scores.intervals[name].low <= value <= scores.intervals[name].high


def test_the_record_says_what_was_scored_and_by_what():
    scores = CaptionScorer(REFERENCES).score([*CAPTIONS[:3], CAPTIONS[0]], n_bootstrap=10)
    assert (scores.distinct, scores.n_images, scores.tokenizer) == (3, 4, "ptb-python")
    assert scores.mean_length == (6 + 2 + 0 + 6) / 4
    assert {"bitllm", "nltk", "numpy", "python"} == set(scores.versions)
    content = json.loads(json.dumps(scores.to_json()))
    assert content["metrics"]["CIDEr"] == scores.metrics["CIDEr"]
    assert content["intervals"]["CIDEr"] == list(scores.intervals["CIDEr"][1:3])
    assert "per_image" not in content


def test_the_checksum_of_references_does_not_depend_on_their_order():
    forward = CaptionScorer(REFERENCES).references_sha256
    assert CaptionScorer(REFERENCES[::-1]).references_sha256 == forward
    assert CaptionScorer(REFERENCES[1:]).references_sha256 != forward


def test_three_equal_trials_of_each_image_score_like_their_average_with_its_interval():
    once = CaptionScorer(REFERENCES).score(CAPTIONS, n_bootstrap=100)
    ids = np.repeat(np.arange(4), 3).tolist()
    repeated = CaptionScorer([REFERENCES[i] for i in ids], image_ids=ids)
    thrice = repeated.score([CAPTIONS[i] for i in ids], n_bootstrap=100)
    assert thrice.n_images == 4
    assert thrice.references_sha256 == once.references_sha256
    assert thrice.metrics == pytest.approx(once.metrics)
    for name in METRICS:
        assert thrice.intervals[name][:3] == pytest.approx(once.intervals[name][:3])


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="expected at least 2 images, found 1"):
        CaptionScorer(REFERENCES[:1])
    with pytest.raises(DataError, match=r"found none for 1 of 2 \(the first is number 1\)"):
        CaptionScorer([["a"], []])
    with pytest.raises(DataError, match="image ids: expected 4, one for each set, found 2"):
        CaptionScorer(REFERENCES, image_ids=[1, 2])
    with pytest.raises(DataError, match="expected one set for each of 1 captions, found 4"):
        CaptionScorer(REFERENCES).score(["a"])


def test_java_that_is_asked_for_and_missing_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BitLlmError, match="expected Java on the path, found none"):
        CaptionScorer(REFERENCES, tokenizer="java")
