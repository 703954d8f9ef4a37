"""Numbers are found where they are and written as people write them; what is missing stays missing."""

import math

import numpy as np
import pytest

from bitllm.metrics.intervals import Estimate
from bitllm.report import values


@pytest.mark.parametrize("found", [None, math.nan, math.inf, "12", True, {}, [1]])
def test_what_is_no_finite_number_is_missing(found):
    assert values.number({"a": {"b": found}}, "a", "b") is None


@pytest.mark.parametrize("found", [3, np.float32(3), np.int64(3)])
def test_integers_and_numpy_numbers_are_numbers(found):
    assert values.number({"a": found}, "a") == 3.0


def test_a_number_is_found_through_nested_mappings_and_missing_beyond_a_gap():
    assert values.number({"a": {"b": 3}}, "a", "b") == 3.0
    assert values.number({"a": [1, 2]}, "a", "b") is None
    assert values.number(None, "a", "b") is None


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [(59.44, 1, "59.4"), (-5.36, 1, "−5.4"), (-0.04, 1, "0.0"), (None, 1, "–"), (3148800.0, 0, "3,148,800")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value, digits, written):
    assert values.plain(value, digits) == written


def test_a_difference_has_its_sign_and_its_interval():
    assert values.with_interval(Estimate(45.0, 40.06, 50.2), sign=True) == "+45.0 [40.1, 50.2]"
    assert values.with_interval(Estimate(-1.0, -3.0, 0.5), sign=True) == "−1.0 [−3.0, 0.5]"
    assert values.with_interval(Estimate(7.0)) == "7.0"
    assert values.with_interval(None) == "–"


def test_an_interval_that_touches_zero_is_not_above_it():
    assert Estimate(1.0, 0.1, 2.0).is_above_zero
    assert not Estimate(1.0, 0.0, 2.0).is_above_zero
    assert not Estimate(1.0).is_above_zero


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.94, "8.9 s"), (61.0, "1 min 1 s"), (3700.0, "1 h 1 min"), (None, "–")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert values.duration(seconds) == said


@pytest.mark.parametrize(("p", "written"), [(0.0, "p < 0.001"), (0.0421, "p = 0.042"), (None, "")])
def test_p_values_are_never_written_as_zero(p, written):
    assert values.p_value(p) == written


def test_only_simulated_data_carry_the_warning():
    assert values.SIMULATED_WARNING in values.data_sentence({"data": "simulated brain (demo)"})
    assert values.data_sentence({"data": "NSD b3"}) == "Data: NSD b3."
    assert "not named" in values.data_sentence({})
