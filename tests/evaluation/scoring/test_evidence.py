from dataclasses import replace

import numpy as np
import pytest

from bitllm.evaluation.scoring.caption_scorer import CaptionScorer
from bitllm.evaluation.scoring.score_file import NO_EVIDENCE, cider_differences, summary_of
from bitllm.metrics.intervals import Estimate

REFERENCES = [
    [f"a {word}", f"the {word}"] for word in ["dog", "cat", "bus", "boat", "wave", "tree", "house", "man"]
]
SCORES = CaptionScorer(REFERENCES).score([texts[0] for texts in REFERENCES], n_bootstrap=5)


def summary(permuted, constant, distinct=8):
    pairs = {"permuted": permuted, "constant": constant}
    differences = {
        f"real - {name}": {"CIDEr": Estimate(float(d), d - 1.0, d + 1.0, 0.5)} for name, d in pairs.items()
    }
    return summary_of(replace(SCORES, distinct=distinct), {}, differences)


def test_differences_are_paired_over_images():
    own = np.array([3.0, 5.0, 1.0, 1.0, 2.0, 7.0, 4.0, 6.0, 9.0])
    ids = ["a", "b", "c", "c", "d", "e", "f", "g", "h"]
    found = cider_differences(own, {"permuted": own - 1, "constant": np.zeros(9)}, ids)
    assert found["real - permuted"]["CIDEr"][:3] == pytest.approx((1, 1, 1))
    assert found["real - constant"]["CIDEr"].value == pytest.approx(own.mean())


def test_captions_that_fit_other_images_as_well_are_called_out():
    said = summary(0.5, 20)
    assert said.startswith(f"{NO_EVIDENCE}: dealt to other images they score as well")
    assert "+0.5 [−0.5, 1.5]" in said
    assert "they score better" in summary(-3, 20)
    assert "all are one sentence" in summary(0, 0, distinct=1)


def test_captions_below_one_sentence_are_called_out_though_they_fit():
    said = summary(5, 0.9)
    assert "no evidence that the captions are better than one sentence for all images" in said
    assert "they fit their own images better than others" in said


def test_captions_that_beat_both_are_not_said_to_come_from_the_betas():
    assert summary(5, 5).endswith("whether by the betas, only the decoder's controls can show")
