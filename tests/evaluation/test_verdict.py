"""The verdict says yes only where every interval says so; captions alone are never said to come from the betas."""

import pytest

from bitllm.evaluation.verdict import CAPTIONS_ALONE, judge
from bitllm.metrics.intervals import Estimate

LEADS = {
    "constant": Estimate(30.0, 20.0, 40.0),
    "nearest": Estimate(-9.0, -12.0, -6.0),
    "permuted": Estimate(50.0, 45.0, 55.0),
}


def judged(wording=CAPTIONS_ALONE, n_distinct=7, **changed):
    how = {} if wording is None else {"wording": wording}
    leads = {name: one for name, one in (LEADS | changed).items() if one is not None}
    return judge("rft", leads, images="9 images", n_distinct=n_distinct, **how)


def test_the_least_difference_is_named_and_a_comparison_is_not_held_against_a_system():
    found = judged(None)
    assert found.is_evidence is True
    assert found.sentence == (
        "Yes: CIDEr of rft is 50.0 [45.0, 55.0] points higher with the real betas than with another image's betas "
        "(9 images), and higher than under every other control (smallest difference +30.0 [20.0, 40.0], one constant "
        "caption)."
    )


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_captions_that_fit_other_images_as_well_are_called_out(low):
    found = judged(permuted=Estimate(0.5, low, 1.5), constant=Estimate(-1.0, -2.0, 0.0))
    assert found.is_evidence is False
    assert found.sentence.startswith("No evidence that the captions of rft depend on the betas")
    assert "captions of other images +0.5" in found.sentence
    assert "constant" not in found.sentence, "the difference that decides stands alone"
    assert "all captions are one sentence" in judged(permuted=Estimate(0.0, low, 0.0), n_distinct=1).sentence


def test_captions_below_one_sentence_are_called_out_though_they_fit():
    found = judged(constant=Estimate(0.9, -0.1, 1.9))
    assert found.is_evidence is False
    assert found.sentence.startswith("In part: the captions of rft fit their own images better")
    assert "(one constant caption +0.9 [−0.1, 1.9])" in found.sentence


def test_captions_that_beat_both_are_not_said_to_come_from_the_betas():
    assert judged().sentence.endswith("only the controls of the decoder can show.")
    assert "Yes" not in judged().sentence


@pytest.mark.parametrize("permuted", [None, Estimate(50.0)])
def test_without_an_interval_of_the_control_that_decides_nothing_is_claimed(permuted):
    assert judged(permuted=permuted).is_evidence is None
    assert judged(permuted=permuted, constant=Estimate(1.0, -1.0, 3.0)).is_evidence is False
    assert judged(permuted=permuted, constant=None, nearest=None).is_evidence is None
