"""The claims of a question as a forest plot: a strip for each with its difference, interval and brains."""

import textwrap
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bitllm.experiments.results.drawing import (
    BAND,
    BLUE,
    FAINT,
    INK,
    ORANGE,
    WIDTH,
    axes_at,
    brain_points,
    new_figure,
)
from bitllm.experiments.results.wording import MEASURES, difference, interval, verdict
from bitllm.experiments.verdict import Claim, Effect, verdict_of

_COLOURS = {"borne out": BLUE, "not borne out": ORANGE, "undecided": FAINT}
_SHAPES = {"borne out": "D", "not borne out": "s", "undecided": "o"}

_LINE, _STRIP, _AXIS, _GAP, _SIDE = 0.185, 0.36, 0.46, 0.14, 0.2  # inches
_LETTERS = 57


class _Row(NamedTuple):
    claim: Claim
    effect: Effect
    lines: list[str]
    is_last: bool
    """Whether it is the last one of its axis, which stands below it."""
    limits: tuple[float, float]

    @property
    def height(self) -> float:
        return (len(self.lines) + 1) * _LINE + _STRIP + _GAP + (_AXIS if self.is_last else 0.0)


def draw_forest(claims: tuple[Claim, ...], effects: tuple[Effect, ...]) -> Figure:
    """One strip for each claim; claims of one unit have one axis, and stand together in their order."""
    rows = _rows(claims, effects)
    figure = new_figure(0.08 + sum(row.height for row in rows))
    top = 0.08
    for number, row in enumerate(rows):
        _write(figure, row, top)
        place = top + (len(row.lines) + 1) * _LINE + 0.04
        axes = axes_at(figure, left=_SIDE, top=place, width=WIDTH - 2 * _SIDE, height=_STRIP)
        _draw_row(axes, row, number)
        top += row.height
    return figure


def _rows(claims: tuple[Claim, ...], effects: tuple[Effect, ...]) -> list[_Row]:
    groups: dict[tuple[str, float], list[tuple[Claim, Effect]]] = {}
    for claim, effect in zip(claims, effects, strict=True):
        groups.setdefault((claim.measure, claim.factor), []).append((claim, effect))
    return [
        _Row(claim, effect, textwrap.wrap(claim.text, _LETTERS), place == len(group) - 1, _limits(group))
        for group in groups.values()
        for place, (claim, effect) in enumerate(group)
    ]


def _limits(group: list[tuple[Claim, Effect]]) -> tuple[float, float]:
    values = [0.0]
    for claim, effect in group:
        values += [effect.low, effect.high, -claim.negligible, claim.negligible, *effect.by_brain]
    margin = 0.06 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _write(figure: Figure, row: _Row, top: float) -> None:
    """The claim in words, and below it the numbers and the verdict."""
    found = verdict_of(row.effect, row.claim.negligible)
    said = f"{interval(row.effect, row.claim.measure)} · {verdict(row.claim, row.effect)}"
    for place, line in enumerate([*row.lines, said]):
        is_verdict = place == len(row.lines)
        figure.text(
            _SIDE / WIDTH,
            1 - (top + (place + 0.8) * _LINE) / figure.get_figheight(),
            line,
            color=_COLOURS[found] if is_verdict else INK,
            weight="bold" if is_verdict else "normal",
            fontsize=9.5 if is_verdict else 10,
        )


def _draw_row(axes: Axes, row: _Row, number: int) -> None:
    effect, found = row.effect, verdict_of(row.effect, row.claim.negligible)
    axes.set_xlim(*row.limits)
    axes.set_ylim(-1, 1)
    if row.claim.negligible:
        axes.axvspan(-row.claim.negligible, row.claim.negligible, color=BAND, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    axes.plot(
        [effect.low, effect.high], [0.3, 0.3], color=_COLOURS[found], linewidth=2, solid_capstyle="butt"
    )
    axes.plot([effect.difference], [0.3], marker=_SHAPES[found], color=_COLOURS[found], markersize=7)
    brain_points(axes, effect.by_brain, [-0.5] * effect.n_brains, colour=INK, name=f"claim {number}")
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    if not row.is_last:
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(bottom=False, labelbottom=False)
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{difference(row.claim)}, {MEASURES[row.claim.measure]}", labelpad=2)
    if row.claim.negligible:
        note = axes.text(1.0, -0.88, "grey: negligible", transform=axes.transAxes, ha="right", va="top")
        note.set(fontsize=8.5, color=FAINT)
