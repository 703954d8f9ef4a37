"""All charts of the page and the published figures: matplotlib to SVG, byte-identical for identical numbers.

:func:`interval_chart` and :func:`curve_chart` make the page's charts. :func:`as_svg` writes a standalone file;
:func:`as_html` writes SVG for a page, with title and description for screen readers and with the page's color
variables, so that it follows dark mode.

Colors are those of Okabe and Ito, which are distinguishable with color blindness; a word or a shape always repeats
the meaning of a color.
"""

import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator

from bitllm.metrics.intervals import Estimate

WIDTH = 4.8
"""Width in inches of 96 pixels: about that of a phone, so that text is readable there."""
INK, FAINT, BLUE, ORANGE, BAND, WHITE = "#222222", "#5f5f5f", "#0072b2", "#d55e00", "#e4e4e4", "#ffffff"
GREY, BROWN, RED, GREEN, PURPLE = "#8a929c", "#b5651d", "#a63f00", "#00795a", "#a4437c"
MAX_POINTS = 400  # of one curve: more than the screen has pixels for; beyond, neighbors are averaged

_VARIABLES = {INK: "ink", FAINT: "soft", BLUE: "real", ORANGE: "s1", BAND: "line", WHITE: "page"}
_VARIABLES |= {GREY: "control", BROWN: "comparison", RED: "bad", GREEN: "s2", PURPLE: "s3"}
"""Color → variable of the page's style sheet."""
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "bitllm",
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}
_ON_PAGE = {"font.size": 11.5, "grid.color": BAND, "axes.axisbelow": True, "axes.formatter.useoffset": False}
_HEADING, _LINE, _ROW, _LABELS, _VALUES = 0.3, 0.22, 0.31, 1.62, 0.55  # inches
_MARK = "mark: "  # start of the id of a group that is a mark with a title


class Look(NamedTuple):
    """Color, shape and dash of a mark."""

    color: str
    marker: str = "o"
    dash: Any = "-"
    is_hollow: bool = False


class Row(NamedTuple):
    """One row of an interval chart; ``kind`` is a key of `ROWS`."""

    label: str
    found: Estimate
    kind: str


class Curve(NamedTuple):
    """One curve: values at ascending training steps or amounts."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


ROWS = {
    "real": Look(BLUE),
    "single": Look(BLUE, "s"),
    "control": Look(GREY),
    "comparison": Look(BROWN, "D", is_hollow=True),
}
CURVES = (
    Look(BLUE),
    Look(ORANGE, "s", (0, (5, 2))),
    Look(GREEN, "D", (0, (1.5, 2))),
    Look(PURPLE, "^", (0, (6, 2, 1.5, 2))),
    Look(FAINT, "v", (0, (3, 3))),
)


def style(**more: Any) -> Any:
    """A drawing context: matplotlib's defaults, whatever the machine's settings, plus ours."""
    return context(["default", _STYLE | more])


def new_figure(height: float) -> Figure:
    """An empty white figure, ``height`` inches high."""
    return Figure(figsize=(WIDTH, height), facecolor="white")


def axes_at(figure: Figure, *, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a position in inches from the upper left corner of the figure."""
    whole = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole))


def draw_interval(axes: Axes, found: Estimate, y: float, look: Look, **more: Any) -> None:
    """A value as a mark at height ``y``, with its interval as a line."""
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [y, y], color=look.color, linewidth=2, solid_capstyle="butt")
    more |= {"markerfacecolor": WHITE if look.is_hollow else look.color, "markersize": 7}
    axes.plot([found.value], [y], marker=look.marker, color=look.color, **more)


def draw_curve(axes: Axes, x: Sequence[float], y: Sequence[float], look: Look, **more: Any) -> None:
    """A line; with ``yerr`` it has intervals, with ``label`` a legend entry."""
    drawn = {"color": look.color, "marker": look.marker, "linestyle": look.dash, "linewidth": 1.6, **more}
    axes.errorbar(x, y, **{"markersize": 5.5, "capsize": 3, "zorder": 2, **drawn})


def draw_brains(axes: Axes, x: Any, y: Any, *, color: str, name: str) -> None:
    """A small hollow circle for each brain; ``name`` is the group's id in the SVG."""
    points = axes.scatter(x, y, s=16, facecolors="white", edgecolors=color, linewidths=1.0, zorder=3)
    points.set_gid(f"brains {name}")


def interval_chart(
    title: str,
    rows: Sequence[Row],
    *,
    digits: int = 1,
    maximum: float | None = None,
    line: tuple[str, float] | None = None,
    is_difference: bool = False,
) -> str:
    """Rows with a value and its interval: bars from 0, or differences as dots, hollow if they may be 0.

    Parameters
    ----------
    title
        Quantity, with its unit.
    rows
        Rows from top to bottom.
    digits
        Decimals of the printed values.
    maximum
        Right end of the axis, to share it between charts; by default the largest value.
    line
        Label and value of a vertical line, such as chance.
    is_difference
        Whether values are differences, hollow unless the interval is above 0.
    """
    ends = [0.0, maximum or 0.0, line[1] if line else 0.0]
    ends += [
        end for row in rows for end in (row.found.value, row.found.low, row.found.high) if end is not None
    ]
    with style(**_ON_PAGE):
        figure, top = _with_heading(title, _ROW * len(rows) + (0.55 if line else 0.32))
        axes = axes_at(
            figure, left=_LABELS, top=top, width=WIDTH - _LABELS - _VALUES, height=_ROW * len(rows)
        )
        low, high = min(ends), max(ends)
        margin = 0.04 * (high - low) or 0.5
        axes.set_xlim(low - (margin if low < 0 or is_difference else 0.0), high + margin)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for number, row in enumerate(rows):
            _draw_row(axes, row, float(number), digits, is_difference=is_difference)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        _only_a_grid(axes, "x")
        axes.axvline(0, color=INK, linewidth=1, zorder=1.5)
        if line:
            _draw_line(axes, f"{line[0]} {Estimate(line[1]).shown(digits)}", line[1])
    spoken = "; ".join(f"{row.label} {row.found.shown(digits)}" for row in rows)
    return as_html(figure, title, f"{spoken}.")


def curve_chart(title: str, curves: Sequence[Curve], *, x_label: str = "step") -> str:
    """Curves along training steps; each has its own color, dash and name, with its first and last value."""
    names = [f"{one.name}: {one.y[0]:.3g} → {one.y[-1]:.3g}".replace("-", "−") for one in curves]
    with style(**_ON_PAGE):
        figure, top = _with_heading(title, 2.3 + _LINE * len(curves))
        axes = axes_at(figure, left=0.62, top=top, width=WIDTH - 0.75, height=1.8)
        for number, curve in enumerate(map(thinned, curves)):
            drawn: dict[str, Any] = {"label": names[number], "gid": f"{_MARK}{names[number]}"}
            drawn |= {"markersize": 4.0 if len(curve.x) <= 12 else 0.0}
            draw_curve(axes, curve.x, curve.y, CURVES[number % len(CURVES)], **drawn)
        _only_a_grid(axes, "y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        axes.set_xlabel(x_label, labelpad=2)
        legend = figure.legend(
            loc="lower left",
            frameon=False,
            borderpad=0,
            borderaxespad=0.1,
            handlelength=2.6,
            labelspacing=0.35,
        )
        legend.set_in_layout(False)
    spoken = "; ".join(name.replace(":", " from", 1).replace(" → ", " to ") for name in names)
    return as_html(figure, title, f"{spoken}.")


def thinned(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """The curve reduced to at most ``max_points`` points, each the mean of equally many neighbors."""
    n_points = len(curve.x)
    if n_points <= max_points:
        return curve
    size = math.ceil(n_points / max_points)

    def means(values: tuple[float, ...]) -> tuple[float, ...]:
        parts = (values[start : start + size] for start in range(0, n_points, size))
        return tuple(math.fsum(part) / len(part) for part in parts)

    return curve._replace(x=means(curve.x), y=means(curve.y))


def as_svg(figure: Figure) -> str:
    """The figure as an SVG file, without a date."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": "bitllm"})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def as_html(figure: Figure, title: str, description: str) -> str:
    """The figure as SVG within a page, with a name for screen readers, and the page's colors and font.

    Ids are prefixed with the chart's name, because a page has several charts. References to URLs (namespaces, clip
    paths) are removed, because the page loads nothing.
    """
    with style(**_ON_PAGE):
        drawn = fromstring(as_svg(figure))  # noqa: S314 - our own
    name = "chart-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    labels = f"{name}-title {name}-desc"
    svg = Element(
        "svg",
        {"class": "chart", "viewBox": drawn.get("viewBox", ""), "role": "img", "aria-labelledby": labels},
    )
    SubElement(svg, "title", {"id": f"{name}-title"}).text = title
    SubElement(svg, "desc", {"id": f"{name}-desc"}).text = description
    svg.extend(_cleaned(drawn, name))
    return tostring(svg, encoding="unicode")


def _with_heading(title: str, height: float) -> tuple[Figure, float]:
    """A figure with a title above a drawing area ``height`` inches high; also returns the top of that area."""
    lines = textwrap.wrap(title, 48) or [""]
    top = _HEADING + _LINE * (len(lines) - 1)
    figure = new_figure(top + height)
    figure.patch.set_visible(False)
    for number, words in enumerate(lines):
        y = 1 - (0.17 + _LINE * number) / figure.get_figheight()
        figure.text(0, y, words, weight="bold")
    return figure, top + 0.02


def _draw_row(axes: Axes, row: Row, y: float, digits: int, *, is_difference: bool) -> None:
    look, found = ROWS[row.kind], row.found
    name = f"{_MARK}{row.label}: {found.shown(digits, sign=is_difference)}"
    if is_difference:
        filled = look._replace(is_hollow=False)
        hollow = Look(RED, look.marker, is_hollow=True)
        draw_interval(axes, found, y, filled if found.is_above_zero else hollow, gid=name)
    else:
        face = WHITE if look.is_hollow else look.color
        axes.barh(y, found.value, 0.56, color=face, edgecolor=look.color, linewidth=1.4, gid=name)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [y, y], "|-", color=INK, linewidth=1.4)
    written = axes.annotate(
        Estimate(found.value).shown(digits),
        (1, y),
        (_VALUES * 72 - 2, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
    )
    written.set(ha="right", va="center_baseline")


def _draw_line(axes: Axes, words: str, at: float) -> None:
    axes.axvline(at, color=RED, linewidth=1.4, linestyle=(0, (4, 3)))
    place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    axes.annotate(words, (at, 0.0), (0, -25), color=RED, fontsize=10.5, **place)  # type: ignore[arg-type]


def _only_a_grid(axes: Axes, along: str) -> None:
    """Ticks at round numbers with grid lines, without a frame."""
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "−"))
    axes.grid(axis=along)  # type: ignore[arg-type]
    axes.tick_params(length=0)
    for number in ("x", "y") if along == "y" else ("x",):
        axes.tick_params(axis=number, labelcolor=FAINT, labelsize=10.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cleaned(drawn: Element, name: str) -> Iterable[Element]:
    """The children of an SVG element, without what a page must not contain."""
    for child in drawn:
        tag = child.tag.rpartition("}")[2]
        if tag in ("metadata", "style", "clipPath"):
            continue
        left_out = {"clip-path"} | ({"id"} if tag in ("g", "defs") else set())
        attributes = {
            key.rpartition("}")[2]: _written(key, value, name)
            for key, value in child.items()
            if key not in left_out and not value.startswith("rotate(-0 ")
        }
        gid = child.get("id", "")
        found = Element(tag, attributes)
        found.text = child.text if tag == "text" or (child.text or "").strip() else None
        if gid.startswith(_MARK):
            SubElement(found, "title").text = gid.removeprefix(_MARK)
        found.extend(_cleaned(child, name))
        if len(found) or tag not in ("g", "defs"):
            yield found


def _written(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value[1:]}"
    if key == "style":
        value = re.sub(r"#[0-9a-f]{6}", lambda color: f"var(--{_VARIABLES[color[0]]})", value)
        value = re.sub(r" ?font-family: [^;]*;?", "", value)  # the page's
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
