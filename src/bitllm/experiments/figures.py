"""One figure for each question with results: its claims as a forest plot, or curves along an amount."""

import textwrap
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from bitllm.experiments.question import (
    Question,
    along_in_words,
    counted,
    difference,
    interval,
    measure_in_words,
    size,
    verdict,
)
from bitllm.experiments.verdict import Claim, Effect, verdict_of
from bitllm.metrics.intervals import Estimate
from bitllm.report.figures import (
    BAND,
    BLUE,
    FAINT,
    INK,
    ORANGE,
    WIDTH,
    Look,
    as_svg,
    axes_at,
    draw_brains,
    draw_curve,
    draw_interval,
    new_figure,
    style,
)

_LOOKS = {"borne out": Look(BLUE, "D"), "not borne out": Look(ORANGE, "s"), "undecided": Look(FAINT, "o")}
_LINE, _STRIP, _AXIS, _GAP, _SIDE = 0.185, 0.36, 0.46, 0.14, 0.2  # inches
_LETTERS = 57
_LEFT, _RIGHT = 0.62, 0.2  # inches
_ARMS = (
    ("real", "cider", "the image's own responses", Look(BLUE, "D")),
    ("permuted", "cider", "another image's responses (permuted)", Look(ORANGE, "s", "--")),
    ("real", "bits", "bits per caption", Look(BLUE, "D")),
)


class _Row(NamedTuple):
    claim: Claim
    effect: Effect
    lines: list[str]
    is_last: bool
    """Whether the axis is drawn below this row."""
    limits: tuple[float, float]

    @property
    def height(self) -> float:
        return (len(self.lines) + 1) * _LINE + _STRIP + _GAP + (_AXIS if self.is_last else 0.0)


def make_figure(question: Question) -> str:
    """The SVG of a question with results: curves if the question is about an amount, else its claims."""
    results, config = question.results, question.config
    assert results is not None
    with style():
        if config.along:
            return as_svg(draw_curves(results.rows, config.along, config.unit))
        return as_svg(draw_forest(config.claims, results.effects))


def alt_text(question: Question) -> str:
    """Text alternative of the figure, without square brackets."""
    results, config = question.results, question.config
    assert results is not None
    if not config.along:
        found = counted(
            verdict(claim, effect) for claim, effect in zip(config.claims, results.effects, strict=True)
        )
        return (
            f"One row for each claim: the difference with its 95 % interval and a point for every brain "
            f"({size(question)}). Verdicts: {found}. The numbers stand in the table above."
        )
    return (
        f"CIDEr with the image's own responses and with another image's, and bits per caption, along {config.unit}, "
        f"with 95 % intervals and a point for every brain ({size(question)}). CIDEr with the own responses: "
        f"{along_in_words(question)}."
    )


def draw_forest(claims: tuple[Claim, ...], effects: tuple[Effect, ...]) -> Figure:
    """One strip for each claim; claims with the same unit share an axis."""
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


def draw_curves(rows: pd.DataFrame, along: dict[str, float], unit: str) -> Figure:
    """CIDEr above, bits below: means over brains with their t interval, and a point for each brain."""
    label = unit if len(unit) < 56 else unit.replace(" (", "\n(", 1)
    figure = new_figure(4.15 + 0.17 * label.count("\n"))
    width = WIDTH - _LEFT - _RIGHT
    above = axes_at(figure, left=_LEFT, top=0.12, width=width, height=2.1)
    below = axes_at(figure, left=_LEFT, top=2.42, width=width, height=1.15)
    for control, measure, words, look in _ARMS:
        means = means_along(rows, along, control, measure)
        _draw_arm(above if measure == "cider" else below, means, words, look, f"{control} {measure}")
    above.set_ylabel("CIDEr")
    above.set_ylim(bottom=min(0.0, above.get_ylim()[0]), top=above.get_ylim()[1] * 1.22)
    above.legend(loc="upper left", frameon=False, fontsize=9.5, borderaxespad=0.1, handlelength=2.4)
    below.set_ylabel("bits")
    below.axhline(0, color="#222222", linewidth=0.8, zorder=1)
    below.set_xlabel(label)
    for axes in (above, below):
        axes.set_xticks(sorted(along.values()), [f"{amount:g}" for amount in sorted(along.values())])
    above.tick_params(labelbottom=False)
    return figure


def means_along(
    rows: pd.DataFrame, along: dict[str, float], control: str, measure: str
) -> dict[float, Float[np.ndarray, " brains"]]:
    """Mean of a measure for every brain (over model seeds and images) at every amount, ascending."""
    found = {}
    for system, amount in sorted(along.items(), key=lambda one: one[1]):
        part = rows[(rows["system"] == system) & (rows["control"] == control)]
        found[amount] = part.groupby("simulator_seed")[measure].mean().to_numpy(np.float64)
    return found


def half_interval(values: Float[np.ndarray, " brains"]) -> float:
    """Half the 95 % interval of Student's t; 0 for a single brain, which has none."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else 0.0


def _draw_arm(axes: Axes, means: dict[float, np.ndarray], label: str, look: Look, name: str) -> None:
    amounts = list(means)
    shift = 0.012 * (amounts[-1] - amounts[0])
    values = [float(one.mean()) for one in means.values()]
    draw_curve(axes, amounts, values, look, yerr=[half_interval(one) for one in means.values()], label=label)
    for amount, one in means.items():
        draw_brains(axes, [amount + shift] * len(one), one, color=look.color, name=f"{name} {amount:g}")


def _rows(claims: tuple[Claim, ...], effects: tuple[Effect, ...]) -> list[_Row]:
    groups: dict[tuple[str, float], list[tuple[Claim, Effect]]] = {}
    for claim, effect in zip(claims, effects, strict=True):
        groups.setdefault((claim.column, claim.factor), []).append((claim, effect))
    return [
        _Row(claim, effect, textwrap.wrap(claim.text, _LETTERS), place == len(group) - 1, _limits(group))
        for group in groups.values()
        for place, (claim, effect) in enumerate(group)
    ]


def _limits(group: list[tuple[Claim, Effect]]) -> tuple[float, float]:
    values = [0.0]
    for claim, effect in group:
        values += [*_ends(effect.difference), -claim.negligible, claim.negligible, *effect.by_brain]
    margin = 0.06 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _ends(estimate: Estimate) -> list[float]:
    return [end for end in (estimate.low, estimate.high) if end is not None]


def _write(figure: Figure, row: _Row, top: float) -> None:
    """Write the claim, and below it the numbers and the verdict."""
    found = verdict_of(row.effect, row.claim.negligible)
    said = f"{interval(row.effect, row.claim.measure)} · {verdict(row.claim, row.effect)}"
    for place, line in enumerate([*row.lines, said]):
        is_verdict = place == len(row.lines)
        figure.text(
            _SIDE / WIDTH,
            1 - (top + (place + 0.8) * _LINE) / figure.get_figheight(),
            line,
            color=_LOOKS[found].color if is_verdict else INK,
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
    draw_interval(axes, effect.difference, 0.3, _LOOKS[found])
    draw_brains(axes, effect.by_brain, [-0.5] * effect.n_brains, color=INK, name=f"claim {number}")
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    if not row.is_last:
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(bottom=False, labelbottom=False)
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{difference(row.claim)}, {measure_in_words(row.claim)}", labelpad=2, loc="left")
    if row.claim.negligible:
        note = axes.text(1.0, -0.88, "grey: negligible", transform=axes.transAxes, ha="right", va="top")
        note.set(fontsize=8.5, color=FAINT)
