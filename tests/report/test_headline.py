"""The headline says yes only where every interval says so."""

import copy

import pytest

from bitllm.report.headline import final_system, headline, key_numbers, verdict


def _with_difference(results, control, low, high, system="rft"):
    changed = copy.deepcopy(results)
    changed["differences"][system][control]["CIDEr"] = {
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "p": 0.5,
    }
    return changed


def test_it_says_yes_by_how_much_and_on_which_data(results):
    judged = headline(results)
    assert judged.is_evidence is True
    assert judged.sentence.startswith("Yes, by 69.7 CIDEr points [63.6, 75.8]: rft")
    assert "218 unseen images" in judged.sentence
    assert "+60.6 [54.5, 66.7] over one constant caption" in judged.sentence
    assert results["data"] in judged.sentence
    assert "these numbers say nothing about NSD" in judged.sentence


@pytest.mark.parametrize(("low", "high"), [(-1.2, 2.0), (0.0, 3.0), (-8.0, -2.0)])
def test_one_interval_that_is_not_above_zero_takes_the_evidence_away(results, low, high):
    judged = headline(_with_difference(results, "permuted", low, high))
    assert judged.is_evidence is False
    assert "no evidence that the captions of rft depend on the betas" in judged.sentence
    assert "another image's betas" in judged.sentence
    assert "simulated brain" in judged.sentence
    assert "Yes" not in judged.sentence


def test_a_control_that_does_as_well_is_named_though_the_permuted_one_is_beaten(results):
    judged = headline(_with_difference(results, "constant", -4.0, 1.0))
    assert judged.is_evidence is False
    assert "one constant caption −1.5 [−4.0, 1.0]" in judged.sentence
    assert (
        "depend on the betas, as they score above those from another image's betas (+69.7" in judged.sentence
    )
    assert "no evidence that they are better than what needs no betas of the image" in judged.sentence
    assert "no evidence that the captions of rft depend" not in judged.sentence


def test_losing_to_the_nearest_training_caption_is_not_held_against_it(results):
    assert headline(_with_difference(results, "nearest", -30.0, -20.0)).is_evidence is True


def test_nothing_is_claimed_without_differences(results):
    del results["differences"]
    judged = headline(results)
    assert judged.is_evidence is None
    assert "Undecided" in judged.sentence
    assert "simulated brain" in judged.sentence


def test_nothing_is_claimed_without_the_permuted_control(results):
    del results["differences"]["rft"]["permuted"]
    judged = headline(results)
    assert judged.is_evidence is None
    assert "another image's betas" in judged.sentence


def test_a_difference_without_an_interval_decides_nothing(results):
    for control in results["differences"]["rft"].values():
        del control["CIDEr"]["low"]
    assert headline(results).is_evidence is None


def test_every_system_is_judged_by_its_own_differences(results):
    changed = _with_difference(results, "permuted", -1.0, 1.0, system="sft")
    assert verdict(changed, "sft").is_evidence is False
    assert verdict(changed, "rft").is_evidence is True


def test_bits_that_contradict_the_captions_are_named(results):
    assert "Yet" not in headline(results).sentence
    results["bits"]["rft"]["per_caption"] = {"mean": 0.2, "low": -0.3, "high": 0.7}
    assert "+0.2 [−0.3, 0.7] bits per caption" in headline(results).sentence


def test_data_without_signal_are_named_so(results):
    results["signal"] = 0.0
    assert "no signal" in headline(results).sentence


def test_empty_results_have_a_headline():
    judged = headline({})
    assert judged.is_evidence is None
    assert "not named" in judged.sentence


@pytest.mark.parametrize(
    ("systems", "final"),
    [(["prefix", "sft", "rft"], "rft"), (["prefix", "sft"], "sft"), (["x"], "x"), ([], "")],
)
def test_the_final_system_is_the_last_stage_that_there_is(systems, final):
    assert final_system({"systems": {system: {} for system in systems}}) == final


def test_every_key_number_stands_beside_its_control(results):
    found = {one.name: one for one in key_numbers(results)}
    assert len(found) == 3
    assert ("another image's betas", "5.2") in found["CIDEr of rft"].compare
    assert all(one.compare for one in found.values())


def test_a_key_number_without_a_control_is_not_shown(results):
    del results["controls"]
    assert not any(one.name == "CIDEr of rft" for one in key_numbers(results))


def test_chance_is_k_of_n_where_the_results_do_not_write_it(results):
    del results["retrieval"]["real"]["chance_R@10"]
    found = next(one for one in key_numbers(results) if "R@10" in one.name)
    assert ("chance", "0.046") in found.compare


def test_losing_to_another_subjects_brain_of_the_same_image_is_no_evidence_against(results):
    results["differences"]["rft"]["other_subject"] = {"CIDEr": {"difference": -1.0, "low": -6.0, "high": 4.0}}
    assert headline(results).is_evidence is True
