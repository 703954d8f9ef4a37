"""The charts of the page: systems against their controls, retrieval, and the training logs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitllm.evaluation.results import Identification, Results
from bitllm.evaluation.verdict import Verdict, verdict
from bitllm.metrics.intervals import Estimate
from bitllm.report.figures import Curve, Row, curve_chart, interval_chart
from bitllm.report.tables import Group, RetrievalRow, retrieval_rows, score_groups

MAIN_STAGES = ("align", "sft", "rft")
STAGE_TITLES = {
    "align": "Stage 1, align: contrastive training of the encoder on image and caption embeddings",
    "sft": "Stage 2, sft: supervised training of the interface on captions",
    "rft": "Stage 3, rft: reinforcement learning on sampled captions",
    "clip": "Small CLIP, trained on training images and captions without brain data",
    "llm": "Small Llama, trained on training captions without brain data",
}
_MOST_CURVES = 5


class SystemCharts(NamedTuple):
    """The two charts of one system with its verdict."""

    system: str
    bars: str
    differences: str
    verdict: Verdict


class Panel(NamedTuple):
    """A chart of a training log: title, and name of the curve of each log key. Runs are compared by the first key."""

    title: str
    keys: Mapping[str, str]


PANELS = (
    Panel(
        "Loss",
        {
            "loss": "training",
            "image_loss": "image part",
            "text_loss": "caption part",
            "validation_loss": "validation",
        },
    ),
    Panel(
        "Validation retrieval, R@10", {"validation_R@10": "real betas", "validation_chance_R@10": "chance"}
    ),
    Panel(
        "Greedy CIDEr on validation images",
        {"validation_cider": "real betas", "validation_real_minus_permuted": "real − another image"},
    ),
    Panel(
        "Sampled reward and its parts",
        {
            "reward": "reward",
            "reward_cider": "CIDEr",
            "reward_bertscore": "BERTScore",
            "reward_clip_f1": "token F1 by CLIP",
            "reward_ip": "inner product",
            "reward_objects": "object F1",
            "reward_contrast": "log p(image)",
            "reward_neural_rank": "log p(betas)",
        },
    ),
    Panel(
        "Spread of each weighted part among the captions of an input",
        {
            "spread_cider": "CIDEr",
            "spread_bertscore": "BERTScore",
            "spread_clip_f1": "token F1 by CLIP",
            "spread_ip": "inner product",
            "spread_objects": "object F1",
            "spread_contrast": "log p(image)",
            "spread_neural_rank": "log p(betas)",
        },
    ),
    Panel("KL divergence from the reference model", {"kl": "KL"}),
    Panel("Words per caption", {"length": "sampled", "validation_length": "greedy, validation"}),
    Panel(
        "Sampled captions, shares",
        {"distinct": "distinct", "ended": "with end token", "flat_groups": "in groups with equal rewards"},
    ),
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


def system_charts(results: Results) -> list[SystemCharts]:
    """Real betas against every control, for each system with controls, on a common scale."""
    groups = [group for group in score_groups(results) if any(row.kind == "control" for row in group.rows)]
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


def retrieval_charts(results: Results) -> list[str]:
    """R@10 of every input with chance, R@k by k, and the N-way identification curve."""
    rows = retrieval_rows(results)
    charts = [_recall_curves(rows)] if rows else []
    if rows:
        kinds = {"real": "real", "single_trial": "single"}
        bars = [Row(row.short, row.found.r_at_10, kinds.get(row.name, "control")) for row in rows]
        title = "Share of images among the first 10 (R@10)"
        charts.insert(0, interval_chart(title, bars, digits=3, line=("chance", rows[0].found.chance_r_at_10)))
    if results.encoder.identification:
        charts.append(_identification(results.encoder.identification))
    return charts


def stage_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[StageCurves]:
    """Charts of the logs of the stages, in the order of training; stages without known keys are left out."""
    names = [name for name in MAIN_STAGES if name in curves]
    names += [name for name in curves if name not in MAIN_STAGES]
    found = []
    for name in names:
        charts = [chart for panel in PANELS if (chart := _panel_chart(name, panel, curves[name]))]
        if charts:
            found.append(StageCurves(name, STAGE_TITLES.get(name, f"Baseline {name}"), charts))
    return found


def logged_curve(rows: Sequence[Mapping[str, Any]], key: str, name: str) -> Curve | None:
    """The finite values of a log key by step; None if there are none."""
    points = {}
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            points[float(step)] = float(value)
    if not points:
        return None
    steps = tuple(sorted(points))
    return Curve(name, steps, tuple(points[step] for step in steps))


def _bars(group: Group) -> list[Row]:
    bars = [Row(row.short, row.scores["CIDEr"], row.kind) for row in group.rows if "CIDEr" in row.scores]
    return [bar._replace(label="real betas", kind="real") if bar.kind == "system" else bar for bar in bars]


def _leads(group: Group) -> list[Row]:
    return [
        Row(row.short, row.difference, "comparison" if row.kind == "comparison" else "real")
        for row in group.rows
        if row.difference is not None and row.difference.has_interval
    ]


def _recall_curves(rows: Sequence[RetrievalRow]) -> str:
    ks = tuple(float(k) for k in sorted(rows[0].found.r_at))
    n = rows[0].found.n_pictures
    curves = [
        Curve(row.short, ks, tuple(row.found.r_at[int(k)] for k in ks)) for row in rows[: _MOST_CURVES - 1]
    ]
    curves.append(Curve("chance", ks, tuple(min(1.0, k / n) for k in ks)))
    return curve_chart("Share of images among the first k", curves, x_label="k")


def _identification(curve: Sequence[Identification]) -> str:
    rows = []
    for point in curve:
        rows.append(Row(f"1 of {point.ways}", point.correct, "real"))
        rows.append(Row("chance", Estimate(point.chance), "control"))
    return interval_chart("Right image identified among N", rows, digits=2)


def _panel_chart(stage: str, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> str:
    curves = [one for key, name in panel.keys.items() if (one := logged_curve(rows, key, name))]
    return curve_chart(f"{stage}: {panel.title}", curves) if curves else ""
