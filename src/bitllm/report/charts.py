"""The charts of the page: systems against their controls, retrieval, and the training logs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitllm.metrics.intervals import Estimate
from bitllm.report.figures import Curve, Row, curve_chart, interval_chart
from bitllm.report.headline import Verdict, verdict
from bitllm.report.tables import Group, RetrievalRow, score_groups
from bitllm.report.values import number, plain

MAIN_STAGES = ("align", "sft", "rft")
STAGE_TITLES = {
    "align": "Stage 1, align: brain, image and caption embeddings brought together",
    "sft": "Stage 2, sft: the interface learns to caption",
    "rft": "Stage 3, rft: reinforced on sampled captions",
    "clip": "The small CLIP: trained on training images and captions, no brain",
    "llm": "The small Llama: trained on training captions, no brain",
}
_MOST_CURVES = 5


class SystemCharts(NamedTuple):
    """The two charts of one system and the verdict that they show."""

    system: str
    bars: str
    differences: str
    verdict: Verdict


class Panel(NamedTuple):
    """A chart of a training log: its title, and the log keys drawn in it with their names."""

    title: str
    keys: Mapping[str, str]


# The first key of a panel is the one that several runs are compared by.
PANELS = (
    Panel(
        "Loss",
        {
            "loss": "training",
            "image_loss": "its image part",
            "text_loss": "its caption part",
            "validation_loss": "validation",
        },
    ),
    Panel(
        "Validation retrieval, R@10", {"validation_R@10": "real betas", "validation_chance_R@10": "chance"}
    ),
    Panel(
        "Greedy CIDEr on validation images",
        {"validation_cider": "real betas", "validation_real_minus_permuted": "real − other image's betas"},
    ),
    Panel(
        "Sampled reward and its parts",
        {
            "reward": "reward",
            "reward_cider": "CIDEr",
            "reward_bertscore": "BERTScore",
            "reward_ip": "inner product",
        },
    ),
    Panel("Distance to the reference model (KL)", {"kl": "KL"}),
    Panel("Words per caption", {"length": "sampled", "validation_length": "greedy, validation"}),
    Panel("Sampled captions, shares", {"distinct": "distinct", "ended": "with an end token"}),
    Panel(
        "Greedy captions on validation images, shares",
        {
            "validation_distinct": "distinct captions",
            "validation_distinct_2": "distinct word pairs",
            "validation_repetition": "repeated word pairs",
        },
    ),
    Panel("Learning rate", {"learning_rate": "learning rate"}),
    Panel("Gradient norm", {"grad_norm": "norm"}),
)


class StageCurves(NamedTuple):
    """The charts of one stage or run."""

    name: str
    title: str
    charts: list[str]


def system_charts(results: dict[str, Any]) -> list[SystemCharts]:
    """Real input against every control, for each system that has controls, on one common scale."""
    groups = [group for group in score_groups(results) if group.system and len(group.rows) > 1]
    groups = [group for group in groups if any(row.kind == "control" for row in group.rows)]
    bars = [_bars(group) for group in groups]
    ends = [end for rows in bars for row in rows for end in (row.found.value, row.found.high or 0.0)]
    charts = []
    for group, rows in zip(groups, bars, strict=True):
        title = f"{group.system}: CIDEr from real betas and from controls"
        leads = _leads(group)
        differences = f"{group.system}: real − control, CIDEr points"
        charts.append(
            SystemCharts(
                group.system,
                interval_chart(title, rows, maximum=max(ends, default=1.0)),
                interval_chart(differences, leads, is_difference=True) if leads else "",
                verdict(results, group.system),
            )
        )
    return charts


def retrieval_charts(rows: Sequence[RetrievalRow], identification: Sequence[Any] = ()) -> list[str]:
    """R@10 of every input with chance, R@k by k, and the identification curve, as far as they are known.

    Parameters
    ----------
    rows
        One for every input.
    identification
        Of the real betas: ``ways``, ``correct``, ``low``, ``high``, ``chance``.
    """
    charts = [_recall_bars(rows), _recall_curves(rows), _identification(identification)]
    return [chart for chart in charts if chart]


def stage_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[StageCurves]:
    """Draw every known key of every stage's log; a stage without any is left out.

    Parameters
    ----------
    curves
        Stage or run name → its log rows, each with ``step`` and some numbers.
    """
    names = [name for name in MAIN_STAGES if name in curves]
    names += [name for name in curves if name not in MAIN_STAGES]
    found = []
    for name in names:
        charts = [chart for panel in PANELS if (chart := _panel_chart(name, panel, curves[name]))]
        if charts:
            found.append(StageCurves(name, STAGE_TITLES.get(name, f"Baseline {name}"), charts))
    return found


def logged_curve(rows: Sequence[Mapping[str, Any]], key: str, name: str) -> Curve | None:
    """The finite values of one log key by step, or None if there is none."""
    points = {}
    for row in rows:
        step, value = number(row, "step"), number(row, key)
        if step is not None and value is not None:
            points[step] = value
    if not points:
        return None
    steps = tuple(sorted(points))
    return Curve(name, steps, tuple(points[step] for step in steps))


def _bars(group: Group) -> list[Row]:
    kinds = {"system": "real", "single": "single", "control": "control", "rival": "rival"}
    return [
        Row("real betas" if row.kind == "system" else row.short, row.scores["CIDEr"], kinds[row.kind])
        for row in group.rows
        if row.kind in kinds and "CIDEr" in row.scores
    ]


def _leads(group: Group) -> list[Row]:
    return [
        Row(row.short, row.difference, "rival" if row.kind == "rival" else "real")
        for row in group.rows
        if row.difference is not None and row.difference.has_interval
    ]


def _recall_bars(rows: Sequence[RetrievalRow]) -> str:
    bars = [
        Row(row.short, row.r_at_10, "real" if row.name in ("real", "single_trial") else "control")
        for row in rows
        if row.r_at_10 is not None
    ]
    chance = next((row.chance_r_at_10 for row in rows if row.chance_r_at_10 is not None), None)
    if not bars:
        return ""
    line = ("chance", chance) if chance is not None else None
    return interval_chart("Share of images found among the first 10 (R@10)", bars, digits=3, line=line)


def _recall_curves(rows: Sequence[RetrievalRow]) -> str:
    curves = []
    for row in rows[: _MOST_CURVES - 1]:
        points = [(float(k), value) for k, value in sorted(row.r_at.items()) if value is not None]
        if len(points) > 1:
            curves.append(Curve(row.short, tuple(k for k, _ in points), tuple(v for _, v in points)))
    n = next((row.n_pictures for row in rows if row.n_pictures), None)
    if not curves or not n:
        return ""
    ks = curves[0].x
    curves.append(Curve("chance", ks, tuple(min(1.0, k / n) for k in ks)))
    return curve_chart("Share of images found among the first k", curves, x_label="k")


def _identification(curve: Sequence[Any]) -> str:
    rows = []
    for point in curve:
        ways, correct, chance = (number(point, key) for key in ("ways", "correct", "chance"))
        if ways is None or correct is None or chance is None:
            continue
        found = Estimate(correct, number(point, "low"), number(point, "high"))
        rows.append(Row(f"1 of {plain(ways, 0)}", found, "real"))
        rows.append(Row("chance", Estimate(chance), "control"))
    return interval_chart("Right image identified among N", rows, digits=2) if rows else ""


def _panel_chart(stage: str, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> str:
    curves = [one for key, name in panel.keys.items() if (one := logged_curve(rows, key, name))]
    return curve_chart(f"{stage}: {panel.title}", curves) if curves else ""
