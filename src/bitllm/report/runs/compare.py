"""Several runs side by side: what is common, what differs, and whether their scores may be compared at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bitllm.files import file_written_whole
from bitllm.metrics.intervals import Estimate
from bitllm.report.charts import MAIN_STAGES, PANELS, logged_curve
from bitllm.report.figures import Row, curve_chart, interval_chart
from bitllm.report.headline import Verdict, final_system, headline
from bitllm.report.page import Fact, facts, render
from bitllm.report.runs.folder import RunFiles
from bitllm.report.tables import METRICS
from bitllm.report.values import (
    control_score,
    difference,
    estimate,
    interval,
    number,
    plain,
    score,
    signed,
    text,
)
from bitllm.report.wording import CONTROLS, control_label

_MOST_CURVES = 5


class Column(NamedTuple):
    """One run."""

    name: str
    system: str
    headline: Verdict
    facts: list[Fact]


class CompareRow(NamedTuple):
    """One number in every run; an empty string where a run lacks it."""

    label: str
    values: list[tuple[str, str]]
    """Number and interval."""


def write_comparison(runs: Sequence[RunFiles], out: Path) -> None:
    """Write one self-contained page about several runs.

    Parameters
    ----------
    runs
        Two or more, in the order of their columns.
    out
        The file to be written.

    Raises
    ------
    OutputError
        If the disk is full or the place cannot be written.
    """
    names = unique_names([run.name for run in runs])
    page = render(
        "compare.html",
        columns=[
            Column(name, final_system(run.results), headline(run.results), facts(run.results))
            for name, run in zip(names, runs, strict=True)
        ],
        warnings=why_not_comparable(runs),
        rows=compare_rows(runs),
        charts=_charts(runs, names),
        curves=_curves(runs, names),
    )
    with file_written_whole(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, those that come more than once numbered."""
    return [
        f"{name} ({list(names[: place + 1]).count(name)})" if list(names).count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def why_not_comparable(runs: Sequence[RunFiles]) -> list[str]:
    """Reasons for which scores of the runs must not be compared; none if they may be."""
    reasons = {
        "references_sha256": "other references (CIDEr's word weights come from them)",
        "n_images": "another number of test images (CIDEr depends on it)",
        "tokenizer": "other words (another tokenizer of the metrics)",
        "split_hash": "another split",
        "subject": "another test subject",
        "data": "other data",
        "llm": "another language model",
    }
    return [reason for key, reason in reasons.items() if len({text(run.results, key) for run in runs}) > 1]


def compare_rows(runs: Sequence[RunFiles]) -> list[CompareRow]:
    """Metrics of the final system, its leads over controls, retrieval, bits."""
    systems = [final_system(run.results) for run in runs]
    results = [run.results for run in runs]
    pairs = list(zip(results, systems, strict=True))
    rows = [_row(metric, [score(one, system, metric) for one, system in pairs]) for metric in METRICS]
    for control in CONTROLS:
        label = f"CIDEr under {control_label(control)}"
        rows.append(_row(label, [control_score(one, system, control) for one, system in pairs]))
        leads = [difference(one, system, control) for one, system in pairs]
        rows.append(_row(f"CIDEr real − {control_label(control)}", leads, is_signed=True))
    bits = [estimate(one, "bits", system, "per_caption", name="mean") for one, system in pairs]
    rows.append(_row("bits per reference", bits, digits=2, is_signed=True))
    rows.append(_row("R@10", [estimate(one, "retrieval", "real", name="R@10") for one in results], digits=3))
    cosine = [number(one, "cosine_real_zero", "mean") for one in results]
    rows.append(_row("cosine(real, zero)", [None if v is None else Estimate(v) for v in cosine], digits=3))
    return [row for row in rows if any(value for value, _ in row.values)]


def _row(
    label: str, found: Sequence[Estimate | None], *, digits: int = 1, is_signed: bool = False
) -> CompareRow:
    write = signed if is_signed else plain
    return CompareRow(
        label,
        [("", "") if one is None else (write(one.value, digits), interval(one, digits)) for one in found],
    )


def _charts(runs: Sequence[RunFiles], names: Sequence[str]) -> list[str]:
    bars, leads = [], []
    for run, name in zip(runs, names, strict=True):
        system = final_system(run.results)
        real = score(run.results, system)
        permuted = control_score(run.results, system, "permuted")
        if real is not None:
            bars.append(Row(name[:20], real, "real"))
        if permuted is not None:
            bars.append(Row("another image", permuted, "control"))
        lead = difference(run.results, system, "permuted")
        if lead is not None and lead.has_interval:
            leads.append(Row(name[:20], lead, "real"))
    charts = [interval_chart("CIDEr of the final system and of its control", bars)] if bars else []
    return charts + (
        [interval_chart("CIDEr real − another image's betas", leads, is_difference=True)] if leads else []
    )


def _curves(runs: Sequence[RunFiles], names: Sequence[str]) -> list[str]:
    charts = []
    for stage in MAIN_STAGES:
        for panel in PANELS:
            key = next(iter(panel.keys))
            curves = [
                one
                for run, name in zip(runs, names, strict=True)
                if (one := logged_curve(run.curves.get(stage, []), key, name[:24])) is not None
            ]
            if len(curves) > 1:
                charts.append(curve_chart(f"{stage}: {panel.title}", curves[:_MOST_CURVES]))
    return charts
