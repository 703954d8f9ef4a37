"""The headline says yes only where every interval says so."""

from dataclasses import replace

from bitllm.evaluation.results import EncoderResult, Results, SystemResult
from bitllm.evaluation.verdict import verdict
from bitllm.metrics.intervals import Estimate
from bitllm.report.headline import headline, key_numbers


def test_it_says_yes_by_how_much_and_on_which_data(results, about):
    judged = headline(results)
    assert judged.is_evidence is True
    for part in ("Yes: CIDEr of rft is 69.7 [63.6, 75.8]", "218 images", "+60.6 [54.5, 66.7], one constant caption",
                 about.data, "nothing about NSD"):  # fmt: skip
        assert part in judged.sentence


def test_a_control_that_scores_as_high_is_named_though_another_image_scores_lower(results, with_lead):
    judged = headline(with_lead(results, "constant", Estimate(-1.5, -4.0, 1.0)))
    assert judged.is_evidence is False
    assert judged.sentence.startswith("In part: the captions of rft depend on the betas")
    assert "+69.7 [63.6, 75.8]" in judged.sentence
    assert "one constant caption −1.5 [−4.0, 1.0]" in judged.sentence


def test_nothing_is_claimed_without_controls_or_without_systems(results, about):
    alone = {"rft": SystemResult({"real": results.systems["rft"].real})}
    for systems in (alone, {}):
        judged = headline(replace(results, systems=systems))
        assert judged.is_evidence is None
        assert about.data in judged.sentence
    assert key_numbers(Results(about, alone)) == []


def test_every_system_is_judged_by_its_own_differences(results):
    assert verdict(results, "no_align").is_evidence is False
    assert verdict(results, "rft").is_evidence is True


def test_bits_that_contradict_the_captions_are_named(results):
    assert "bits per caption" not in headline(results).sentence
    rft = results.systems["rft"]
    permuted = replace(rft.averaged["permuted"], bits={"per_caption": Estimate(0.2, -0.3, 0.7)})
    changed = replace(rft, averaged=rft.averaged | {"permuted": permuted})
    assert (
        "+0.2 [−0.3, 0.7] bits per caption" in headline(replace(results, systems={"rft": changed})).sentence
    )


def test_data_without_signal_are_named(results, about):
    assert "no signal" in headline(replace(results, about=replace(about, signal=0.0))).sentence


def test_every_key_number_has_its_comparison(results):
    found = {one.name: one for one in key_numbers(results)}
    cider, recall, bits = found.values()
    assert (cider.value, cider.interval) == ("74.9", "[69.7, 80.1]")
    assert {("another image's betas", "5.2"), ("human captions", "96.4")} < set(cider.compare)
    assert recall.compare[0] == ("chance", "0.046")
    assert bits.value == "+10.8"
    assert len(key_numbers(replace(results, encoder=EncoderResult()))) == 2
