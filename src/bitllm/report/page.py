"""One self-contained HTML page about a run, or about several runs side by side: no network, no script."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from bitllm.evaluation.results import SystemResult
from bitllm.evaluation.verdict import CONTROLS, Verdict, bits_of, in_order, judge_questions, label, lead
from bitllm.files import file_written_whole
from bitllm.metrics.intervals import Estimate
from bitllm.report import charts, gallery, questions, tables
from bitllm.report.figures import Row, curve_chart, interval_chart
from bitllm.report.headline import headline, key_numbers
from bitllm.report.run import RunFiles

_MOST_CURVES = 5
_MUST_AGREE = {
    "references_sha256": "different references (CIDEr's word weights are computed from them)",
    "n_images": "different numbers of test images (CIDEr depends on it)",
    "tokenizer": "different tokenizers of the metrics",
    "split_sha256": "different splits",
    "subject": "different test subjects",
    "data": "different data",
    "llm": "different language models",
}


class Column(NamedTuple):
    """One run of a comparison."""

    name: str
    system: str
    headline: Verdict
    facts: dict[str, str]


class CompareRow(NamedTuple):
    """One number in every run; None for a run without it."""

    label: str
    found: list[Estimate | None]
    digits: int = 1
    sign: bool = False


def write_report(run: RunFiles, out: Path) -> None:
    """Write the page of one run, completely or not at all.

    Raises
    ------
    OutputError
        If the disk is full or the place cannot be written.
    """
    results = run.results
    groups = {name: [one for one in run.gallery if one.group == name] for name in gallery.GROUPS}
    page = render(
        "report.html",
        results=results,
        about=results.about,
        subject_note=tables.subject_note(results.about),
        headline=headline(results),
        key_numbers=key_numbers(results),
        metrics=tables.metrics_of(results),
        groups=tables.score_groups(results),
        system_charts=charts.system_charts(results),
        categories=tables.category_rows(results),
        ablation=tables.ablation_rows(results),
        retrieval=tables.retrieval_rows(results),
        retrieval_charts=charts.retrieval_charts(results),
        bits={
            name: one.averaged["permuted"].bits
            for name, one in results.systems.items()
            if "permuted" in one.controls and one.averaged["permuted"].bits
        },
        questions={name: one.questions for name, one in results.systems.items() if one.questions is not None},
        questions_verdict=judge_questions(results, results.asked),
        examples=run.examples,
        parameters={name: one.n_trainable for name, one in results.systems.items() if one.n_trainable},
        brain=run.brain,
        stages=charts.stage_curves(run.curves),
        gallery={name: items for name, items in groups.items() if items},
        has_words=any(one.words for item in run.gallery for one in item.decoded),
        used_controls=in_order(
            {name for one in results.systems.values() for name in one.controls} & CONTROLS.keys(), CONTROLS
        ),
    )
    _write(page, out)


def write_comparison(runs: Sequence[RunFiles], out: Path) -> None:
    """Write one page about several runs, in the order of their columns.

    Raises
    ------
    OutputError
        If the disk is full or the place cannot be written.
    """
    names = unique_names([run.name for run in runs])
    columns = [
        Column(name, run.results.final, headline(run.results), tables.facts(run.results.about))
        for name, run in zip(names, runs, strict=True)
    ]
    page = render(
        "compare.html",
        columns=columns,
        warnings=why_not_comparable(runs),
        rows=compare_rows(runs),
        charts=_compare_charts(runs, names),
        curves=_compare_curves(runs, names),
    )
    _write(page, out)


def render(template: str, **content: Any) -> str:
    """A page from one of the package's templates.

    In it, ``n`` is `bitllm.report.tables`, ``g`` `bitllm.report.gallery`, and ``q`` `bitllm.report.questions`.
    """
    environment = Environment(
        loader=PackageLoader("bitllm.report", ""),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(n=tables, g=gallery, q=questions, **content)


def _write(page: str, out: Path) -> None:
    with file_written_whole(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def unique_names(names: Sequence[str]) -> list[str]:
    """The names; repeated ones are numbered."""
    return [
        f"{name} ({list(names[: place + 1]).count(name)})" if list(names).count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def why_not_comparable(runs: Sequence[RunFiles]) -> list[str]:
    """Reasons why scores of the runs must not be compared; empty if there are none."""
    return [
        reason
        for key, reason in _MUST_AGREE.items()
        if len({getattr(run.results.about, key) for run in runs}) > 1
    ]


def compare_rows(runs: Sequence[RunFiles]) -> list[CompareRow]:
    """Metrics, controls, differences and bits of the final systems, and retrieval; without rows that no run has."""

    def of_final(number: Callable[[SystemResult], Estimate | None]) -> list[Estimate | None]:
        return [None if one is None else number(one) for one in _finals(runs)]

    rows = [CompareRow(name, of_final(partial(_score, metric=name))) for name in tables.METRICS]
    for control in CONTROLS:
        name = label(control)
        rows.append(CompareRow(f"CIDEr, {name}", of_final(partial(_control_score, control=control))))
        leads = of_final(partial(lead, control=control))
        rows.append(CompareRow(f"CIDEr, real − {name}", leads, sign=True))
    retrieval = [run.results.encoder.retrieval.get("real") for run in runs]
    cosines = [run.results.encoder.cosine_real_zero for run in runs]
    rows += [
        CompareRow("Bits per caption, real − another image's betas", of_final(bits_of), 2, sign=True),
        CompareRow("R@10", [None if one is None else one.r_at_10 for one in retrieval], 3),
        CompareRow("Cosine of the embeddings of real and zero betas",
                   [None if one is None else Estimate(one[0]) for one in cosines], 3),
    ]  # fmt: skip
    tasks = dict.fromkeys(task for run in runs for task in _tasks(run))
    for task in tasks:
        found = [_tasks(run).get(task) for run in runs]
        rows.append(CompareRow(f"Questions, {task}: accuracy (%)", [one and one.real for one in found]))
        rows.append(
            CompareRow(
                f"Questions, {task}: real − another image's betas",
                [one and one.over_permuted for one in found],
                sign=True,
            )
        )
    return [row for row in rows if any(one is not None for one in row.found)]


def _tasks(run: RunFiles) -> dict[str, questions.TaskRow]:
    """Rows of the tasks of the system that was asked, by name."""
    system = run.results.systems.get(run.results.asked)
    found = None if system is None else system.questions
    return {} if found is None else {row.name: row for row in questions.task_rows(found)}


def _finals(runs: Sequence[RunFiles]) -> list[SystemResult | None]:
    return [run.results.systems.get(run.results.final) for run in runs]


def _score(system: SystemResult, metric: str) -> Estimate | None:
    return system.real.scores.get(metric)


def _control_score(system: SystemResult, control: str) -> Estimate | None:
    return system.controls[control].scores.get("CIDEr") if control in system.controls else None


def _compare_charts(runs: Sequence[RunFiles], names: Sequence[str]) -> list[str]:
    bars, leads = [], []
    for name, system in zip(names, _finals(runs), strict=True):
        if system is None:
            continue
        permuted, difference = _control_score(system, "permuted"), lead(system, "permuted")
        if "CIDEr" in system.real.scores:
            bars.append(Row(name[:20], system.real.scores["CIDEr"], "real"))
        if permuted is not None:
            bars.append(Row("another image", permuted, "control"))
        if difference is not None and difference.has_interval:
            leads.append(Row(name[:20], difference, "real"))
    charts = [interval_chart("CIDEr of the final system and of its control", bars)] if bars else []
    title = "CIDEr real − another image's betas"
    return charts + ([interval_chart(title, leads, is_difference=True)] if leads else [])


def _compare_curves(runs: Sequence[RunFiles], names: Sequence[str]) -> list[str]:
    found = []
    for stage in charts.MAIN_STAGES:
        for panel in charts.PANELS:
            key = next(iter(panel.keys))
            curves = [
                one
                for run, name in zip(runs, names, strict=True)
                if (one := charts.logged_curve(run.curves.get(stage, []), key, name[:24])) is not None
            ]
            if len(curves) > 1:
                found.append(curve_chart(f"{stage}: {panel.title}", curves[:_MOST_CURVES]))
    return found
