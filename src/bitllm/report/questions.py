"""Rows and examples of the answers to questions, for page, card and terminal."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bitllm.evaluation.questions import GOLD
from bitllm.evaluation.results import Results, Scores, TaskInput, TaskResult, TasksResult
from bitllm.evaluation.table import CAPTION, Evaluation
from bitllm.evaluation.verdict import COMPARISONS, CONTROLS, TASK_FLOORS, in_order, label
from bitllm.metrics.intervals import Estimate

_N_EXAMPLES = 6


class InputRow(NamedTuple):
    """One task under one input; ``kind`` is system, control or comparison."""

    kind: str
    label: str
    found: TaskInput


class TaskRow(NamedTuple):
    """One task, or all of them, with the numbers to compare real betas with."""

    name: str
    n_questions: int
    real: Estimate
    over_permuted: Estimate | None
    permuted: Estimate | None = None
    most_frequent: Estimate | None = None
    llm_alone: Estimate | None = None
    yes_ratio: float | None = None
    bits: Estimate | None = None


class Example(NamedTuple):
    """A question about a test image with its answers."""

    nsd_id: int
    question: str
    accepted: str
    real: str
    permuted: str
    score: float


def task_rows(found: TasksResult) -> list[TaskRow]:
    """A row for each task, then all questions together and the mean over tasks."""
    rows = [_task_row(name, task) for name, task in found.tasks.items()]
    if len(rows) < 2:
        return rows
    n = sum(row.n_questions for row in rows)
    over = (
        ("all questions", found.micro, found.micro_real_minus),
        ("mean of tasks", found.macro, found.macro_real_minus),
    )
    return rows + [_row(name, n, scores, leads.get("permuted")) for name, scores, leads in over]


def _task_row(name: str, task: TaskResult) -> TaskRow:
    real, permuted = task.inputs["real"], task.inputs.get("permuted")
    scores = {one: found.score for one, found in task.inputs.items()}
    lead = None if permuted is None else permuted.lead
    return _row(name, task.n_questions, scores, lead)._replace(
        yes_ratio=real.yes_ratio if real.chosen_yes_ratio is None else real.chosen_yes_ratio,
        bits=None if permuted is None else permuted.bits,
    )


def _row(name: str, n: int, scores: Scores, lead: Estimate | None) -> TaskRow:
    permuted, frequent, alone = (scores.get(one) for one in ("permuted", "most_frequent", "llm_alone"))
    return TaskRow(name, n, scores["real"], lead, permuted, frequent, alone)


def input_rows(task: TaskResult) -> list[InputRow]:
    """Every input of a task, real betas first; for dialogues also those with the system's own earlier answers."""
    rows = [
        InputRow(_kind(name), label(name), task.inputs[name])
        for name in in_order(task.inputs, ["real", *CONTROLS, *TASK_FLOORS])
    ]
    own = [
        InputRow(_kind(name), f"{label(name)}, after the system's own earlier answers", found)
        for name, found in task.own_history.items()
    ]
    return rows + own


def _kind(name: str) -> str:
    return "system" if name == "real" else "comparison" if name in COMPARISONS else "control"


def has_ranks(task: TaskResult) -> bool:
    """Whether the right option is ranked among many."""
    return bool(task.inputs["real"].ranking)


def source_note(task: TaskResult) -> str:
    """How many questions there are, where they come from, and the license of the source."""
    part = "" if task.n_questions == task.n_available else f" of {task.n_available:,}, drawn with the seed"
    return (
        f"{task.n_questions:,} questions{part}, about {task.n_images:,} images; source: {task.source}, license "
        f"{task.license}"
    )


def sources(results: Results) -> Iterator[str]:
    """One line for each task of the system that was asked: name and source."""
    system = results.systems.get(results.asked)
    for name, task in ({} if system is None or system.questions is None else system.questions.tasks).items():
        yield f"{name}: {source_note(task)}"


def read_examples(found: Evaluation, asked: str, *, seed: int) -> dict[str, list[Example]]:
    """A few questions of every task, drawn at random, with a system's answers from real and permuted betas."""
    rows = found.rows
    rows = rows[(rows["system"] == asked) & (rows["task"] != CAPTION) & (rows["history"] == GOLD)]
    examples = {}
    for task, part in rows.groupby("task", sort=False):
        by_input = {name: of_input.sort_values("row") for name, of_input in part.groupby("input", sort=False)}
        real, permuted = by_input["real"], by_input["permuted"]
        chosen = np.random.default_rng(seed).choice(len(real), min(_N_EXAMPLES, len(real)), replace=False)
        examples[str(task)] = [
            Example(
                int(one["nsd_id"]),
                one["question"],
                one["accepted"],
                one["answer"],
                permuted.iloc[row]["answer"],
                float(one["score"]),
            )
            for row in np.sort(chosen)
            for one in [real.iloc[row]]
        ]
    return examples
