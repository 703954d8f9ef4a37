"""The page of results: the summary, then every question with its claims, figure, systems and verdict."""

from pathlib import Path
from typing import Any

import pandas as pd

from bitllm.experiments.config import ExperimentConfig
from bitllm.experiments.record import RECORD, ROWS
from bitllm.experiments.results.figures import alt_text, make_figure
from bitllm.experiments.results.read import Question, read_questions
from bitllm.experiments.results.summary import make_summary, title
from bitllm.experiments.results.tables import claims_table, origin, systems_table
from bitllm.experiments.results.wording import NOT_RUN, difference, interval, must_not, number
from bitllm.experiments.verdict import Claim, Effect, effect_of, verdict_of
from bitllm.files import file_written_whole

FIGURES = "results"
"""Folder of the figures, beside the page."""

_SYSTEMS = (
    "Every system under every input (*real*: the image's own responses; *llm_alone*: no brain at all), means:"
)


def make_page(folder: Path) -> str:
    """The page of results, from the folder of all experiments.

    Raises
    ------
    DataError
        If results are not those of a full run of the configuration beside them.
    """
    return _page_of(read_questions(folder))


def make_section(question: Question) -> str:
    """One question: where its numbers come from, its claims, figure and systems, and the verdict in words."""
    head = f"## {title(question.name)}\n\n{question.config.question}\n"
    if question.results is None:
        return f"{head}\n*{NOT_RUN}*\n\n{claims_table(question)}"
    parts = [
        head,
        f"{origin(question)}\n",
        claims_table(question),
        f"![{alt_text(question)}]({FIGURES}/{question.name}.svg)\n",
        *([f"**Verdict.** {question.verdict}\n"] if question.verdict else []),
        f"{_SYSTEMS}\n",
        systems_table(question),
    ]
    return "\n".join(parts)


def write_page(folder: Path, page: Path) -> None:
    """Write the page of results and its figures, each whole or not at all; figures without results are removed."""
    questions = read_questions(folder)
    for question in questions:
        figure = page.parent / FIGURES / f"{question.name}.svg"
        if question.results is None:
            figure.unlink(missing_ok=True)
        else:
            _write(figure, make_figure(question))
    _write(page, _page_of(questions))


def sentences(folder: Path, record: dict[str, Any]) -> list[str]:
    """What is printed after a run: a sentence for each claim, and where the numbers lie."""
    rows = pd.read_parquet(folder / ROWS)
    config = ExperimentConfig.parse(record["config"])
    lines = [f"{claim.text}: {_in_words(claim, effect_of(claim, rows))}" for claim in config.claims]
    lines.append(f"numbers: {folder / ROWS}, {folder / RECORD}")
    if record["is_quick"]:
        lines.append("a quick run: these numbers mean nothing but that everything ran")
    return lines


def _page_of(questions: list[Question]) -> str:
    return "\n".join([make_summary(questions), *(make_section(question) for question in questions)])


def _in_words(claim: Claim, effect: Effect) -> str:
    name = claim.measure
    return (
        f"{name} {claim.more} {number(effect.more, name)}, {claim.less} {number(effect.less, name)}, "
        f"{difference(claim)} {interval(effect, name)}, p {effect.p:.3f}, "
        f"{verdict_of(effect, claim.negligible)} ({effect.n_brains} brains, {effect.n_models} model seeds, "
        f"{effect.n_images} images)"
        f"{'; it must not come out' if must_not(claim) else ''}"
    )


def _write(path: Path, text: str) -> None:
    with file_written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
