"""What the figures have in common: size, colours, marks, and SVG that is the same byte by byte for the same numbers.

A figure is about as wide as a phone, so that its text stays readable there and the page shows it no wider than it is.
The colours are those of Okabe and Ito, which readers with colour blindness tell apart; none says anything that a word
or a shape does not say too.
"""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.style import context

WIDTH = 4.8
"""Inches of 96 pixels."""
INK, FAINT, BLUE, ORANGE = "#222222", "#5f5f5f", "#0072b2", "#d55e00"
BAND = "#e4e4e4"

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


def style() -> Any:
    """A context in which every figure is drawn: matplotlib's own defaults, whatever the machine's, and ours."""
    return context(["default", _STYLE])


def new_figure(height: float) -> Figure:
    """An empty white figure, ``height`` inches high."""
    return Figure(figsize=(WIDTH, height), facecolor="white")


def axes_at(figure: Figure, *, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    whole = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole))


def brain_points(axes: Axes, x: Any, y: Any, *, colour: str, name: str) -> None:
    """A small hollow circle for each brain; ``name`` is the group's id in the SVG."""
    points = axes.scatter(x, y, s=16, facecolors="white", edgecolors=colour, linewidths=1.0, zorder=3)
    points.set_gid(f"brains {name}")


def as_svg(figure: Figure) -> str:
    """The figure as SVG, without a date."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": "bitllm"})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
