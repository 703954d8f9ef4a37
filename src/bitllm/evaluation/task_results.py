"""Results of the questions, derived from the rows of `bitllm.evaluation.questions`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bitllm.evaluation.questions import GOLD, OWN, yes_ratio
from bitllm.evaluation.results import TaskInput, TaskResult, TasksResult
from bitllm.metrics.dialogue import ranking_scores
from bitllm.metrics.intervals import (
    Estimate,
    bootstrap_of_sums,
    paired_difference_of_sums,
    sum_by_image,
)

_MANY_OPTIONS = 10
"""From this number of options on, ranks are reported besides accuracy."""


def tasks_result(rows: pd.DataFrame, about: dict[str, Any], seed: int) -> TasksResult | None:
    """Results of one system on all tasks; None without questions.

    Parameters
    ----------
    rows
        Rows of the system with questions.
    about
        By task: ``answer_type``, ``metric``, ``n_available``, ``n_options``, ``source``, ``license``.
    """
    if rows.empty:
        return None
    gold, own = rows[rows["history"] == GOLD], rows[rows["history"] == OWN]
    tasks = {
        str(task): TaskResult(
            **about[str(task)],
            n_questions=int((part["input"] == "real").sum()),
            n_images=part["nsd_id"].nunique(),
            inputs=_inputs(part, about[str(task)], seed),
            own_history=_inputs(own[own["task"] == task], about[str(task)], seed),
        )
        for task, part in gold.groupby("task", sort=False)
    }
    return TasksResult(tasks, **_over_tasks(gold, seed))


def best_score(rows: pd.DataFrame) -> Float[np.ndarray, " n"]:
    """Accuracy by likelihood where a question has options, else of the decoded answer; 0 to 1."""
    return rows["option_score"].fillna(rows["score"]).to_numpy(np.float64)


def _inputs(rows: pd.DataFrame, about: dict[str, Any], seed: int) -> dict[str, TaskInput]:
    parts = {str(name): part.sort_values("row") for name, part in rows.groupby("input", sort=False)}
    return {name: _input(part, parts["real"], about, seed) for name, part in parts.items()}


def _input(rows: pd.DataFrame, real: pd.DataFrame, about: dict[str, Any], seed: int) -> TaskInput:
    own, of_real = _scores(rows), _scores(real)
    ids = real["nsd_id"].tolist()
    is_real = rows is real
    decoded = rows["answer"].tolist()
    is_yes_no, is_number = (about["answer_type"] == kind for kind in ("yes/no", "number"))
    return TaskInput(
        scores={name: _mean(values, ids, seed) for name, values in own.items()},
        real_minus_this={}
        if is_real
        else {name: _difference(of_real[name], values, ids, seed) for name, values in own.items()},
        bits=None if is_real else _bits(real, rows, ids, seed),
        yes_ratio=yes_ratio(decoded) if is_yes_no else None,
        chosen_yes_ratio=yes_ratio(rows["chosen"].tolist()) if is_yes_no else None,
        rmse=float(np.sqrt(rows["count_error"].mean())) if is_number else None,
        ranking=_ranking(rows) if about["n_options"] >= _MANY_OPTIONS else {},
        n_distinct=len(set(decoded)),
    )


def _ranking(rows: pd.DataFrame) -> dict[str, float]:
    """Scores of the right option's rank, and NDCG over the questions with rated options."""
    ranks, gains = rows["option_rank"].dropna().to_numpy(np.int64), rows["ndcg"].dropna()
    found = ranking_scores(ranks).as_dict() if len(ranks) else {}
    return found | ({"NDCG": float(gains.mean())} if len(gains) else {})


def _scores(rows: pd.DataFrame) -> dict[str, Float[np.ndarray, " n"]]:
    """Scores of each question in points: of the decoded answer, and by likelihood if every question has options."""
    found = {"decoded": 100 * rows["score"].to_numpy(np.float64)}
    if rows["option_score"].notna().all():
        found["likelihood"] = 100 * rows["option_score"].to_numpy(np.float64)
    return found


def _bits(real: pd.DataFrame, rows: pd.DataFrame, ids: list[int], seed: int) -> Estimate | None:
    if rows["log2_p"].isna().any():
        return None
    a, b = (one["log2_p"].to_numpy(np.float64) for one in (real, rows))
    return _difference(a, b, ids, seed)


def _over_tasks(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Accuracy over all questions (micro) and the mean over tasks (macro), and real − permuted of both."""
    ids = rows.loc[rows["input"] == "real", "nsd_id"].tolist()
    sums: dict[str, np.ndarray] = {}
    for name, part in rows.groupby("input", sort=False):
        is_task = pd.get_dummies(part["task"])[list(dict.fromkeys(rows["task"]))].to_numpy(np.float64)
        scores = 100 * best_score(part)[:, None] * is_task
        sums[str(name)] = sum_by_image(np.column_stack([scores, is_task]), ids)
    found: dict[str, Any] = {}
    kinds: dict[str, Callable[[np.ndarray], float]] = {"micro": _micro, "macro": _macro}
    for kind, statistic in kinds.items():
        found[kind] = {name: _of_sums(values, statistic, seed) for name, values in sums.items()}
        found[f"{kind}_real_minus"] = {
            name: _difference_of_sums(sums["real"], values, statistic, seed)
            for name, values in sums.items()
            if name != "real"
        }
    return found


def _micro(sums: np.ndarray) -> float:
    scores, counts = np.split(sums, 2)
    return float(scores.sum() / counts.sum())


def _macro(sums: np.ndarray) -> float:
    """Mean over the tasks that the drawn images have questions of."""
    scores, counts = np.split(sums, 2)
    return float((scores[counts > 0] / counts[counts > 0]).mean())


def _mean(values: np.ndarray, ids: list[int], seed: int) -> Estimate:
    return _of_sums(_with_counts(values, ids), _micro, seed)


def _difference(a: np.ndarray, b: np.ndarray, ids: list[int], seed: int) -> Estimate:
    return _difference_of_sums(_with_counts(a, ids), _with_counts(b, ids), _micro, seed)


def _with_counts(values: np.ndarray, ids: list[int]) -> np.ndarray:
    return sum_by_image(np.column_stack([values, np.ones(len(values))]), ids)


def _of_sums(sums: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int) -> Estimate:
    if len(sums) < 2:  # no interval over images
        return Estimate(statistic(sums.sum(axis=0)))
    return bootstrap_of_sums(sums, statistic, seed=seed)


def _difference_of_sums(
    a: np.ndarray, b: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int
) -> Estimate:
    if len(a) < 2:
        return Estimate(statistic(a.sum(axis=0)) - statistic(b.sum(axis=0)))
    return paired_difference_of_sums(a, b, statistic, seed=seed)
