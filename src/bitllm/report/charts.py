"""Small charts drawn as SVG: bars with intervals, differences about 0, and curves.

Drawn by hand because a page of twenty matplotlib pictures is heavy, cannot follow the reader's dark mode and
is mute to a screen reader. Every chart has a ``<title>`` and a ``<desc>``, every mark its own ``<title>``;
colours come from the page's style sheet by class, and no class differs by colour alone. ElementTree escapes
all text.
"""

import math
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from bitllm.report.values import Estimate, plain, with_interval

WIDTH = 380.0  # units of the drawing; about a phone's width, so that its text keeps its size there
LABEL_WIDTH = 140.0
ROW_HEIGHT = 24.0
VALUE_WIDTH = 44.0
CURVE_HEIGHT = 216.0
TOP = 28.0  # room for the heading
MAX_POINTS = 400  # of one curve: more than the screen has pixels for; beyond, neighbours are averaged


class Bar(NamedTuple):
    """One row of a bar or difference chart; ``kind`` is a class of the style sheet."""

    label: str
    found: Estimate
    kind: str


class Series(NamedTuple):
    """One curve: values by training step, ascending."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def bar_chart(
    title: str,
    bars: Sequence[Bar],
    *,
    digits: int = 1,
    maximum: float | None = None,
    line: tuple[str, float] | None = None,
) -> str:
    """Horizontal bars from 0, with whiskers where an interval is known.

    Parameters
    ----------
    title
        What is shown, with its unit.
    bars
        The rows from top to bottom.
    digits
        Decimals of the written values.
    maximum
        Right end of the axis, to share it between charts; the largest value by default.
    line
        Label and value of a vertical line, such as chance.
    """
    top = maximum or max([end for bar in bars for end in (bar.found.value, bar.found.high or 0)], default=1.0)
    ticks = nice_ticks(0.0, top or 1.0)
    svg = _canvas(title, _described(bars, digits), TOP + 24 + ROW_HEIGHT * len(bars) + (16 if line else 0))
    x = _scale(0.0, max(top, ticks[-1]), LABEL_WIDTH, WIDTH - VALUE_WIDTH)
    bottom = TOP + ROW_HEIGHT * len(bars)
    _value_axis(svg, ticks, x, bottom)
    for row, bar in enumerate(bars):
        middle = TOP + ROW_HEIGHT * (row + 0.5)
        group = _row_group(svg, bar, middle, digits)
        _add(
            group,
            "rect",
            f"bar {bar.kind}",
            x=x(0),
            y=middle - 7,
            height=14,
            width=max(x(max(bar.found.value, 0.0)) - x(0), 0.5),
        )
        _whisker(group, bar, x, middle)
        end = max(x(max(bar.found.value, 0.0)), x(bar.found.high) if bar.found.high is not None else 0)
        _text(group, plain(bar.found.value, digits), end + 5, middle + 4, "value")
    if line:
        _add(svg, "line", "reference", x1=x(line[1]), x2=x(line[1]), y1=TOP, y2=bottom + 20)
        _text(svg, f"{line[0]} {plain(line[1], digits)}", x(line[1]) + 3, bottom + 32, "tick")
    return tostring(svg, encoding="unicode")


def difference_chart(title: str, bars: Sequence[Bar], *, digits: int = 1) -> str:
    """Differences with their intervals about a line at 0; hollow where the interval is not above 0."""
    ends = [
        end for bar in bars for end in (bar.found.value, bar.found.low, bar.found.high) if end is not None
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    ticks = nice_ticks(low, high if high > low else low + 1.0)
    svg = _canvas(title, _described(bars, digits), TOP + 24 + ROW_HEIGHT * len(bars))
    x = _scale(min(low, ticks[0]), max(high, ticks[-1]), LABEL_WIDTH + 6, WIDTH - VALUE_WIDTH)
    bottom = TOP + ROW_HEIGHT * len(bars)
    _value_axis(svg, ticks, x, bottom)
    _add(svg, "line", "zero-line", x1=x(0), x2=x(0), y1=TOP, y2=bottom)
    for row, bar in enumerate(bars):
        middle = TOP + ROW_HEIGHT * (row + 0.5)
        group = _row_group(svg, bar, middle, digits, sign=True)
        _whisker(group, bar, x, middle)
        filled = "dot" if bar.found.is_above_zero else "dot hollow"
        _add(group, "circle", f"{filled} {bar.kind}", cx=x(bar.found.value), cy=middle, r=4.5)
        _text(group, plain(bar.found.value, digits), WIDTH - 2, middle + 4, "value end")
    return tostring(svg, encoding="unicode")


def line_chart(title: str, series: Sequence[Series], *, x_label: str = "step") -> str:
    """Curves over training steps; each line has its own colour, dash and name."""
    series = [thinned(one) for one in series]
    values = [value for one in series for value in one.values]
    steps = [step for one in series for step in one.steps]
    ticks = nice_ticks(min(values), max(values))
    svg = _canvas(title, _described_curves(series), CURVE_HEIGHT + 16 * len(series))
    left = 14.0 + 7 * max(len(_tick_text(tick, ticks)) for tick in ticks)
    bottom = CURVE_HEIGHT - 34
    x = _scale(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1.0, left, WIDTH - 14)
    y = _scale(min(ticks[0], *values), max(ticks[-1], *values), bottom, TOP + 4)
    for tick in ticks:
        _add(svg, "line", "grid", x1=left, x2=WIDTH - 14, y1=y(tick), y2=y(tick))
        _text(svg, _tick_text(tick, ticks), left - 5, y(tick) + 4, "tick end")
    for step in sorted({min(steps), max(steps)}):
        _text(svg, f"{step:,.0f}", x(step), bottom + 16, "tick end" if step > min(steps) else "tick")
    _text(svg, x_label, (left + WIDTH - 14) / 2, bottom + 16, "tick centre")
    for index, one in enumerate(series):
        _curve(svg, one, index, x, y)
        _legend(svg, one, index, left, CURVE_HEIGHT - 2 + 16 * index)
    return tostring(svg, encoding="unicode")


def nice_ticks(low: float, high: float, n_about: int = 4) -> list[float]:
    """Round numbers within ``low`` to ``high``, about ``n_about`` of them, at least two."""
    if not (high - low) / n_about > sys.float_info.min:  # equal, or as good as
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / n_about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last - first < 1:
        first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def thinned(series: Series, max_points: int = MAX_POINTS) -> Series:
    """The curve with at most ``max_points`` points, each the mean of equally many neighbours."""
    n_points = len(series.steps)
    if n_points <= max_points:
        return series
    size = math.ceil(n_points / max_points)
    starts = range(0, n_points, size)
    steps = tuple(math.fsum(part) / len(part) for part in (series.steps[at : at + size] for at in starts))
    values = tuple(math.fsum(part) / len(part) for part in (series.values[at : at + size] for at in starts))
    return series._replace(steps=steps, values=values)


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float | int) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, high, start, end)


def _canvas(title: str, description: str, height: float) -> Element:
    # An id per title keeps the labels of the charts on one page apart.
    name = "chart-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    svg = Element(
        "svg",
        {
            "class": "chart",
            "viewBox": f"0 0 {WIDTH:g} {height:g}",
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
        },
    )
    SubElement(svg, "title", {"id": f"{name}-title"}).text = title
    SubElement(svg, "desc", {"id": f"{name}-desc"}).text = description
    _text(svg, title, 0, 14, "heading")
    return svg


def _add(parent: Element, tag: str, kind: str, **attributes: float | int) -> Element:
    written = {name: f"{value:.2f}".rstrip("0").rstrip(".") for name, value in attributes.items()}
    return SubElement(parent, tag, {"class": kind, **written})


def _text(parent: Element, words: str, x: float | int, y: float | int, kind: str) -> None:
    _add(parent, "text", kind, x=x, y=y).text = words


def _row_group(svg: Element, bar: Bar, middle: float, digits: int, *, sign: bool = False) -> Element:
    group = SubElement(svg, "g")
    SubElement(group, "title").text = f"{bar.label}: {with_interval(bar.found, digits, sign=sign)}"
    _text(group, bar.label, LABEL_WIDTH - 8, middle + 4, "label end")
    return group


def _whisker(group: Element, bar: Bar, x: _Scale, middle: float) -> None:
    if bar.found.low is None or bar.found.high is None:
        return
    low, high = x(bar.found.low), x(bar.found.high)
    _add(group, "line", "whisker", x1=low, x2=high, y1=middle, y2=middle)
    for end in (low, high):
        _add(group, "line", "whisker", x1=end, x2=end, y1=middle - 4, y2=middle + 4)


def _value_axis(svg: Element, ticks: list[float], x: _Scale, bottom: float) -> None:
    for tick in ticks:
        _add(svg, "line", "grid", x1=x(tick), x2=x(tick), y1=TOP, y2=bottom)
        _text(svg, _tick_text(tick, ticks), x(tick), bottom + 16, "tick centre")


def _tick_text(tick: float, ticks: list[float]) -> str:
    step = abs(ticks[1] - ticks[0])
    if step < 1e-3:
        return "0" if tick == 0 else f"{tick:.1e}".replace("e-0", "e-").replace("-", "−")
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += int(digits > 0 and not math.isclose(step * 10**digits, round(step * 10**digits)))
    return plain(tick, digits)


def _curve(svg: Element, series: Series, index: int, x: _Scale, y: _Scale) -> None:
    points = list(zip(series.steps, series.values, strict=True))
    group = SubElement(svg, "g", {"class": f"series s{index % 5}"})
    SubElement(group, "title").text = f"{series.name}: {_first_to_last(series)}"
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    SubElement(group, "polyline", {"points": path})
    if len(points) <= 12:
        for step, value in points:
            _add(group, "circle", "point", cx=x(step), cy=y(value), r=2.6)


def _legend(svg: Element, series: Series, index: int, left: float, top: float) -> None:
    group = SubElement(svg, "g", {"class": f"series s{index % 5}"})
    _add(group, "line", "key", x1=left, x2=left + 26, y1=top, y2=top)
    _text(svg, f"{series.name}: {_first_to_last(series)}", left + 32, top + 4, "label")


def _first_to_last(series: Series) -> str:
    return f"{series.values[0]:.3g} → {series.values[-1]:.3g}".replace("-", "−")


def _described(bars: Sequence[Bar], digits: int) -> str:
    return "; ".join(f"{bar.label} {with_interval(bar.found, digits)}" for bar in bars) + "."


def _described_curves(series: Sequence[Series]) -> str:
    return "; ".join(f"{one.name} from {_first_to_last(one).replace(' → ', ' to ')}" for one in series) + "."
