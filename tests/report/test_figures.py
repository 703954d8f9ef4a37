"""Charts are well-formed SVG that says in words what it draws, in colors that the page can change."""

import math
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bitllm.report
from bitllm.metrics.intervals import Estimate
from bitllm.report.figures import Curve, Row, curve_chart, interval_chart, thinned

ROWS = [
    Row("real betas", Estimate(60.0, 55.0, 65.0), "real"),
    Row("zero <betas>", Estimate(10.0), "control"),
]


@cache
def _charts():
    curve = Curve("training", (0.0, 10.0, 20.0), (3.0, 2.0, 1.5))
    return {
        "bars": interval_chart("CIDEr of <rft>", ROWS, line=("chance", 5.0)),
        "differences": interval_chart("real − control", ROWS, is_difference=True),
        "curve": curve_chart("align: Loss", [curve, curve._replace(name="validation")]),
    }


def marks(chart):
    """What each mark of a chart says → the group that draws it."""
    groups = ElementTree.fromstring(chart).iter("g")
    return {group.find("title").text: group for group in groups if group.find("title") is not None}


def numbers(path):
    return [float(one) for one in re.findall(r"-?[\d.]+", path.get("d"))]


def widths(chart):
    paths = [group.find("path") for group in marks(chart).values()]
    return [max(numbers(path)[::2]) - min(numbers(path)[::2]) for path in paths]


@pytest.mark.parametrize("kind", ["bars", "differences", "curve"])
def test_every_chart_is_well_formed_and_has_a_title_and_a_description(kind):
    svg = ElementTree.fromstring(_charts()[kind])
    assert svg.get("role") == "img"
    title, description = svg.find("title"), svg.find("desc")
    assert title.text
    assert description.text
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


@pytest.mark.parametrize("kind", ["bars", "differences", "curve"])
def test_a_chart_loads_nothing_and_takes_its_font_and_colors_from_the_page(kind):
    chart = _charts()[kind]
    assert not re.search(r"https?:|url\(|<style|font-family|#[0-9a-f]{6}", chart)
    css = (Path(bitllm.report.__file__).parent / "report.css").read_text()
    for name in set(re.findall(r"var\(--(\w+)\)", chart)):
        assert css.count(f"--{name}:") == 3, "light, dark and print"


def test_marks_that_are_used_again_are_of_the_same_chart():
    """Charts stand on one page: an id of one must not be that of another."""
    ids = []
    for chart in _charts().values():
        svg = ElementTree.fromstring(chart)
        own = [one.get("id") for one in svg.iter() if one.get("id")]
        assert {use.get("href")[1:] for use in svg.iter("use")} <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_the_same_numbers_make_the_same_chart():
    assert _charts() == _charts.__wrapped__()


def test_labels_are_escaped():
    chart = interval_chart("CIDEr of <rft>", ROWS)
    assert "zero &lt;betas&gt;" in chart
    assert "<betas>" not in chart


def test_what_a_mark_says_is_its_label_value_and_interval():
    assert list(marks(_charts()["bars"])) == ["real betas: 60.0 [55.0, 65.0]", "zero <betas>: 10.0"]
    assert list(marks(_charts()["differences"])) == ["real betas: +60.0 [55.0, 65.0]", "zero <betas>: +10.0"]
    assert list(marks(_charts()["curve"])) == ["training: 3 → 1.5", "validation: 3 → 1.5"]


def test_the_length_of_a_bar_is_proportional_to_its_value():
    one, other = widths(interval_chart("t", ROWS))
    assert one / other == pytest.approx(6.0, rel=0.01)  # coordinates are written with two decimals


def test_charts_that_share_a_maximum_share_their_scale():
    one, other = (widths(interval_chart("t", ROWS[1:], maximum=maximum))[0] for maximum in (100.0, 50.0))
    assert one == pytest.approx(other / 2, rel=0.01)


def test_a_dot_is_hollow_unless_its_interval_is_above_zero():
    rows = [Row("a", Estimate(2.0, 1.0, 3.0), "real"), Row("b", Estimate(2.0, -1.0, 5.0), "real")]
    chart = interval_chart("t", rows, is_difference=True)
    fills = [ElementTree.tostring(group, "unicode") for group in marks(chart).values()]
    assert ["fill: var(--page)" in fill for fill in fills] == [False, True]


def test_the_zero_line_stays_inside_when_all_differences_are_negative():
    rows = [Row("a", Estimate(-5.0, -6.0, -4.0), "real")]
    svg = ElementTree.fromstring(interval_chart("t", rows, is_difference=True))
    lines = [path for path in svg.iter("path") if "stroke: var(--ink)" in path.get("style", "")]
    (zero,) = [numbers(path) for path in lines if len(numbers(path)) == 4]
    assert zero[0] == zero[2]
    assert 0 < zero[0] < 345.6


@pytest.mark.parametrize("values", [(0.0,), (3.0, 3.0), (-1e-9, 1e-9), (1e8, 2e8), (0.0, 5e-324)])
def test_a_curve_of_any_size_is_drawn_with_finite_coordinates(values):
    chart = curve_chart("t", [Curve("s", tuple(float(step) for step in range(len(values))), values)])
    assert not re.search(r"nan|inf", chart)
    (group,) = marks(chart).values()
    path = numbers(group.find("path"))
    assert len(path) >= 2 * len(values)
    assert all(math.isfinite(one) and 0 <= one < 346 for one in path)


@pytest.mark.parametrize("is_difference", [False, True])
def test_rows_that_are_all_zero_are_drawn(is_difference):
    rows = [Row("a", Estimate(0.0, 0.0, 0.0), "real")]
    assert list(marks(interval_chart("t", rows, is_difference=is_difference))) == ["a: 0.0 [0.0, 0.0]"]


def test_a_long_title_is_broken_into_lines_that_fit():
    title = "Share of images of the whole test set found among the first 10, by input (R@10)"
    svg = ElementTree.fromstring(interval_chart(title, ROWS))
    lines = [
        text.text
        for text in svg.iter("text")
        if "700" in text.get("style", "") or "bold" in text.get("style", "")
    ]
    assert " ".join(lines) == title
    assert max(map(len, lines)) <= 48


def test_a_long_curve_is_thinned_to_the_means_of_neighbors():
    curve = Curve("s", tuple(map(float, range(1000))), tuple(map(float, range(1000))))
    found = thinned(curve, 10)
    assert len(found.x) == 10
    assert found.y[0] == pytest.approx(49.5)
    assert thinned(curve, 1000) is curve
