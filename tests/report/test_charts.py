"""Charts are well-formed SVG that says in words what it draws."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitllm.report.charts import Bar, Series, bar_chart, difference_chart, line_chart, nice_ticks, thinned
from bitllm.report.values import Estimate

BARS = [
    Bar("real betas", Estimate(60.0, 55.0, 65.0), "real"),
    Bar("zero <betas>", Estimate(10.0), "control"),
]


def _charts():
    curve = Series("training", (0.0, 10.0, 20.0), (3.0, 2.0, 1.5))
    return {
        "bars": bar_chart("CIDEr of <rft>", BARS, line=("chance", 5.0)),
        "differences": difference_chart("real − control", BARS),
        "curve": line_chart("align: Loss", [curve, curve._replace(name="validation")]),
    }


@pytest.mark.parametrize("kind", ["bars", "differences", "curve"])
def test_every_chart_is_well_formed_and_has_a_title_and_a_description(kind):
    svg = ElementTree.fromstring(_charts()[kind])
    assert svg.get("role") == "img"
    title, description = svg.find("title"), svg.find("desc")
    assert title.text
    assert description.text
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


def test_labels_are_escaped():
    chart = bar_chart("CIDEr of <rft>", BARS)
    assert "zero &lt;betas&gt;" in chart
    assert "<betas>" not in chart


def test_the_length_of_a_bar_is_proportional_to_its_value():
    widths = [float(rect.get("width")) for rect in ElementTree.fromstring(bar_chart("t", BARS)).iter("rect")]
    assert widths[0] / widths[1] == pytest.approx(6.0, rel=0.01)  # coordinates are written with two decimals


def test_charts_that_share_a_maximum_share_their_scale():
    def width(maximum):
        chart = bar_chart("t", BARS[1:], maximum=maximum)
        return float(next(ElementTree.fromstring(chart).iter("rect")).get("width"))

    assert width(100.0) == pytest.approx(width(50.0) / 2, rel=0.01)


def test_a_dot_is_hollow_unless_its_interval_is_above_zero():
    bars = [Bar("a", Estimate(2.0, 1.0, 3.0), "real"), Bar("b", Estimate(2.0, -1.0, 5.0), "real")]
    dots = [dot.get("class") for dot in ElementTree.fromstring(difference_chart("t", bars)).iter("circle")]
    assert ["hollow" in dot for dot in dots] == [False, True]


def test_the_zero_line_stays_inside_when_all_differences_are_negative():
    svg = ElementTree.fromstring(difference_chart("t", [Bar("a", Estimate(-5.0, -6.0, -4.0), "real")]))
    line = next(one for one in svg.iter("line") if one.get("class") == "zero-line")
    assert 0 < float(line.get("x1")) < 380


@pytest.mark.parametrize("values", [(0.0,), (3.0, 3.0), (-1e-9, 1e-9), (1e8, 2e8)])
def test_a_curve_of_any_size_is_drawn_with_finite_coordinates(values):
    chart = line_chart("t", [Series("s", tuple(float(step) for step in range(len(values))), values)])
    points = re.search(r'points="([^"]+)"', chart).group(1)
    assert all(math.isfinite(float(one)) for pair in points.split() for one in pair.split(","))


def test_bars_that_are_all_zero_are_drawn():
    ElementTree.fromstring(bar_chart("t", [Bar("a", Estimate(0.0), "real")]))
    ElementTree.fromstring(difference_chart("t", [Bar("a", Estimate(0.0, 0.0, 0.0), "real")]))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@example(0.0, 5e-324)  # a quarter of the smallest number is 0
def test_ticks_are_at_least_two_equally_spaced_round_numbers(low, high):
    ticks = nice_ticks(min(low, high), max(low, high))
    steps = [after - before for before, after in pairwise(ticks)]
    assert 2 <= len(ticks) <= 8
    assert all(step == pytest.approx(steps[0], rel=1e-3, abs=1e-9) for step in steps)


def test_a_long_curve_is_thinned_to_the_means_of_neighbours():
    curve = Series("s", tuple(map(float, range(1000))), tuple(map(float, range(1000))))
    found = thinned(curve, 10)
    assert len(found.steps) == 10
    assert found.values[0] == pytest.approx(49.5)
    assert thinned(curve, 1000) is curve
