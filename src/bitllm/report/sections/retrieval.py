"""Charts of the encoder's retrieval: how often the picture is found, and identification among N."""

from collections.abc import Sequence
from typing import Any

from bitllm.report.charts import Bar, Series, bar_chart, line_chart
from bitllm.report.tables import RetrievalRow
from bitllm.report.values import Estimate, number, plain

_MOST_CURVES = 5


def retrieval_charts(rows: Sequence[RetrievalRow], identification: Sequence[Any] = ()) -> list[str]:
    """R@10 of every input with chance, R@k by k, and the identification curve, as far as they are known.

    Parameters
    ----------
    rows
        One for every input.
    identification
        Of the real betas: ``ways``, ``correct``, ``low``, ``high``, ``chance``.
    """
    charts = [_bars(rows), _curves(rows), _identification(identification)]
    return [chart for chart in charts if chart]


def _bars(rows: Sequence[RetrievalRow]) -> str:
    bars = [
        Bar(row.short, row.r_at_10, "real" if row.name in ("real", "single_trial") else "control")
        for row in rows
        if row.r_at_10 is not None
    ]
    chance = next((row.chance_r_at_10 for row in rows if row.chance_r_at_10 is not None), None)
    if not bars:
        return ""
    line = ("chance", chance) if chance is not None else None
    return bar_chart("Share of pictures found among the first 10 (R@10)", bars, digits=3, line=line)


def _curves(rows: Sequence[RetrievalRow]) -> str:
    series = []
    for row in rows[: _MOST_CURVES - 1]:
        points = [(float(k), value) for k, value in sorted(row.r_at.items()) if value is not None]
        if len(points) > 1:
            series.append(Series(row.short, tuple(k for k, _ in points), tuple(v for _, v in points)))
    n = next((row.n_pictures for row in rows if row.n_pictures), None)
    if not series or not n:
        return ""
    steps = series[0].steps
    series.append(Series("chance", steps, tuple(min(1.0, k / n) for k in steps)))
    return line_chart("Share of pictures found among the first k", series, x_label="k")


def _identification(curve: Sequence[Any]) -> str:
    bars = []
    for point in curve:
        ways, correct, chance = (number(point, key) for key in ("ways", "correct", "chance"))
        if ways is None or correct is None or chance is None:
            continue
        found = Estimate(correct, number(point, "low"), number(point, "high"))
        bars.append(Bar(f"1 of {plain(ways, 0)}", found, "real"))
        bars.append(Bar("chance", Estimate(chance), "control"))
    return bar_chart("Right picture identified among N", bars, digits=2) if bars else ""
