"""Questions with what came out: rows of whole waves alone, held against the configuration that they were made with.

A wave is one model seed on all brains of a run. What is complete of the first model seeds is published while the
others are still trained; a wave of which a brain is missing is left out, so that every brain counts alike.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bitllm.errors import DataError
from bitllm.experiments.config import ExperimentConfig, experiment_names, read_experiment
from bitllm.experiments.record import ROWS, read_run, require_same
from bitllm.experiments.verdict import Effect, effect_of

POSTER = ("interface", "alignment", "encoder", "perturbation", "reward")
"""The poster's own questions, in its order."""

_VERDICT = re.compile(r"^\*\*Verdict\.\*\*\s+(?P<text>.+?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_NOT_RUN = "Not run yet."


@dataclass(frozen=True)
class Results:
    """What came out of a question."""

    rows: pd.DataFrame
    """Rows of whole waves."""
    record: dict[str, Any]
    """Where they come from."""
    effects: tuple[Effect, ...]
    """One of each claim."""


@dataclass(frozen=True)
class Question:
    """A question, and what came out where a full run was made."""

    name: str
    config: ExperimentConfig
    verdict: str | None
    """The paragraph that was written by hand, in one line; None while there is none."""
    results: Results | None


def read_questions(folder: Path) -> list[Question]:
    """All questions in the folder of experiments, the poster's first.

    Raises
    ------
    DataError
        If results are not those of a full run of the configuration beside them.
    """
    names = experiment_names(folder)
    ordered = [name for name in POSTER if name in names] + [name for name in names if name not in POSTER]
    return [read_question(name, folder) for name in ordered]


def read_question(name: str, folder: Path) -> Question:
    """One question by name; see :func:`read_questions`."""
    config = read_experiment(name, folder)
    results = None
    if (folder / name / ROWS).exists():
        rows, record = read_results(folder / name)
        require_same(config, record, folder / name)
        results = Results(rows, record, tuple(effect_of(claim, rows) for claim in config.claims))
    return Question(name, config, read_verdict(folder / name / "README.md"), results)


def read_verdict(path: Path) -> str | None:
    """The paragraph ``**Verdict.**`` of a question's README, in one line; None while it is "Not run yet."."""
    found = _VERDICT.search(path.read_text(encoding="utf-8")) if path.exists() else None
    text = " ".join(found["text"].split()) if found else _NOT_RUN
    return None if text == _NOT_RUN else text


def read_results(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of the whole waves of a run, and its record.

    Raises
    ------
    DataError
        If they do not belong together, are of a quick run, or there is no model seed that all brains have.
    """
    rows, record = read_run(folder)
    return whole_waves(rows, record, folder), record


def whole_waves(rows: pd.DataFrame, record: dict[str, Any], folder: Path) -> pd.DataFrame:
    """The rows of a run whose model seed, and those before it, all brains have.

    Raises
    ------
    DataError
        If there are none.
    """
    config = record["config"]
    n_waves = n_whole_waves(rows, record)
    if n_waves == 0:
        raise DataError(
            f"{folder / ROWS}: expected all brains ({_listed(config['simulator_seeds'])}) with the first model "
            f"seed, found the worlds {', '.join(record['worlds'])}; resume it with `{record['command']}`"
        )
    return rows[rows["model_seed"].isin(config["model_seeds"][:n_waves])]


def n_whole_waves(rows: pd.DataFrame, record: dict[str, Any]) -> int:
    """Number of the first model seeds that all brains of a run have, with all systems."""
    config = record["config"]
    found = set(
        rows[["model_seed", "simulator_seed", "system"]].drop_duplicates().itertuples(index=False, name=None)
    )
    for n, models in enumerate(config["model_seeds"]):
        wave = {
            (models, brain, system) for brain in config["simulator_seeds"] for system in config["systems"]
        }
        if not wave <= found:
            return n
    return len(config["model_seeds"])


def _listed(seeds: list[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)
