"""The rows of the report's tables, the same for the page and for the terminal."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bitllm.metrics.intervals import Estimate
from bitllm.report.headline import chance_r_at
from bitllm.report.values import (
    control_score,
    difference,
    estimate,
    number,
    score,
    section,
    single_trial_score,
)
from bitllm.report.wording import (
    CONTROLS,
    RETRIEVAL_INPUTS,
    RETRIEVAL_SHORT,
    RIVAL,
    RIVALS,
    SYSTEMS,
    control_label,
    control_short_label,
    in_known_order,
)

METRICS = (
    "CIDEr",
    "BLEU-1",
    "BLEU-2",
    "BLEU-3",
    "BLEU-4",
    "METEOR",
    "ROUGE-L",
    "SPICE",
    "BERTScore",
    "CLIP-S",
    "RefCLIP-S",
)


class Row(NamedTuple):
    """One line of the table of scores; ``kind`` is system, single, control, rival, borrowed or ceiling."""

    kind: str
    name: str
    label: str
    short: str
    scores: dict[str, Estimate]
    difference: Estimate | None = None
    n_distinct: float | None = None
    mean_length: float | None = None
    note: str = ""


class Group(NamedTuple):
    """A system with everything that it must be compared with."""

    system: str
    rows: list[Row]


class RetrievalRow(NamedTuple):
    """Brain → picture retrieval from one kind of input."""

    name: str
    label: str
    short: str
    r_at: dict[int, float | None]
    r_at_10: Estimate | None
    chance_r_at_10: float | None
    median_rank: float | None
    chance_median_rank: float | None
    n_pictures: float | None


class Between(NamedTuple):
    """A paired difference between two systems."""

    name: str
    metric: str
    difference: Estimate


def metrics_of(results: dict) -> list[str]:
    """The metrics that any system, control or ceiling has, CIDEr first."""
    records = [*section(results, "systems").values(), *section(results, "ceiling").values()]
    for controls in section(results, "controls").values():
        records.extend(section(controls).values())
    return [metric for metric in METRICS if any(number(record, metric) is not None for record in records)]


def score_groups(results: dict) -> list[Group]:
    """Every system followed by its controls, then what is the same for all of them."""
    names = in_known_order(list(section(results, "systems")), SYSTEMS)
    groups = [_system_group(results, name) for name in names]
    ceilings = [
        _row(
            results,
            ("ceiling", name),
            Row(
                "ceiling",
                name,
                "human ceiling" if name == "human" else name,
                name,
                {},
                note="each human reference against the others of its image",
            ),
            partial(_ceiling_score, results, name),
        )
        for name in section(results, "ceiling")
    ]
    return [*groups, Group("", ceilings)] if ceilings else groups


def between_systems(results: dict) -> list[Between]:
    """The paired differences whose key names two systems, such as ``rft - sft``."""
    found = []
    for name, metrics in section(results, "differences").items():
        for metric in [metric for metric in METRICS if " - " in name and metric in section(metrics)]:
            one = estimate(metrics, metric, name="difference")
            if one is not None:
                found.append(Between(name.replace(" - ", " − "), metric, one))
    return found


def retrieval_rows(results: dict) -> list[RetrievalRow]:
    """Retrieval from real betas and from each control, with chance beside it."""
    names = in_known_order(list(section(results, "retrieval")), RETRIEVAL_INPUTS | CONTROLS)
    return [
        RetrievalRow(
            name,
            RETRIEVAL_INPUTS.get(name, control_label(name)),
            RETRIEVAL_SHORT.get(name, control_short_label(name)),
            {k: number(results, "retrieval", name, f"R@{k}") for k in (1, 5, 10)},
            estimate(results, "retrieval", name, name="R@10"),
            chance_r_at(results, name, 10),
            number(results, "retrieval", name, "MedR"),
            number(results, "retrieval", name, "chance_MedR"),
            number(results, "retrieval", name, "N"),
        )
        for name in names
        if section(results, "retrieval", name)
    ]


def _system_group(results: dict, system: str) -> Group:
    rows = [
        _row(
            results,
            ("systems", system),
            Row("system", system, system, system, {}, note=SYSTEMS.get(system, "")),
            partial(score, results, system),
        )
    ]
    if section(results, "single_trial", system):
        rows.append(_single_row(results, system))
    controls = in_known_order(list(section(results, "controls", system)), CONTROLS)
    rows.extend(_control_row(results, system, name) for name in controls)
    if not controls:
        rows.extend(_borrowed_rows(results))
    return Group(system, rows)


def _single_row(results: dict, system: str) -> Row:
    """Single trials, with their lead over the same captions dealt to other images."""
    path = ("single_trial", system)
    n_trials = number(results, *path, "n_trials")
    own = estimate(results, *path, "real - permuted", "CIDEr", name="difference")
    notes = [f"{n_trials:,.0f} trials"] if n_trials is not None else []
    notes += ["the difference is to another image's single trials"] if own is not None else []
    row = Row("single", system, "real betas, single trials", "single trials", {}, own, note="; ".join(notes))
    return _row(results, path, row, partial(single_trial_score, results, system))


def _control_row(results: dict, system: str, name: str) -> Row:
    kind, note = ("rival", RIVAL) if name in RIVALS else ("control", "")
    own = difference(results, system, name)
    row = Row(kind, name, control_label(name), control_short_label(name), {}, own, note=note)
    return _row(results, ("controls", system, name), row, partial(control_score, results, system, name))


def _borrowed_rows(results: dict) -> list[Row]:
    """The constant caption of another system, which is the same: no score stands without a control."""
    for other, controls in section(results, "controls").items():
        if section(controls, "constant"):
            row = Row(
                "borrowed",
                "constant",
                control_label("constant"),
                control_short_label("constant"),
                {},
                note="the same for every system; no other control was run",
            )
            own = partial(control_score, results, other, "constant")
            return [_row(results, ("controls", other, "constant"), row, own)]
    return []


def _ceiling_score(results: dict, name: str, metric: str) -> Estimate | None:
    value = number(results, "ceiling", name, metric)
    return None if value is None else Estimate(value)


def _row(results: dict, path: tuple[str, ...], row: Row, of: Callable[[str], Estimate | None]) -> Row:
    """The row with every metric that ``of`` gives."""
    return row._replace(
        scores={metric: found for metric in METRICS if (found := of(metric)) is not None},
        n_distinct=number(results, *path, "distinct"),
        mean_length=number(results, *path, "mean_length"),
    )
