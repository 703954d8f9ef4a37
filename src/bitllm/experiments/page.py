"""The page of results: a summary, then each question with its claims, figure, systems and verdict.

``python -m bitllm.experiments.page`` (``make results``) writes ``docs/results.md`` and its figures from the
published results (``experiments/NAME/results.parquet``, ``results.json``). For a question without results only the
claims are shown.
"""

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm.errors import BitLlmError
from bitllm.experiments.config import ExperimentConfig
from bitllm.experiments.figures import alt_text, make_figure
from bitllm.experiments.question import (
    NOT_RUN,
    Headline,
    Question,
    Results,
    Summary,
    along_in_words,
    counted,
    difference,
    interval,
    measure_in_words,
    must_not,
    number,
    read_questions,
    read_summary,
    size,
    verdict,
)
from bitllm.experiments.record import RECORD, ROWS
from bitllm.experiments.verdict import Claim, Effect, effect_of, verdict_of
from bitllm.files import file_written_whole
from bitllm.metrics.bleu import bleu_from_counts
from bitllm.metrics.diversity import distinct_n, n_distinct_captions
from bitllm.metrics.tokenize import ptb_tokenize

FIGURES = "results"
"""Folder of the figures, next to the page."""

_SYSTEMS = (
    "Every system under every input (*real*: the image's own responses; *llm_alone*: no brain at all), means:"
)
_FIRST_CLAIM = (
    "The figures are those of a question's first claim, or along the amount that it is about; verdicts count all of "
    "its claims. Compare within a row: the same system has another mean over three brains than over five."
)
_HERE = "here (simulated; brains × model seeds × images)"
_COLUMNS = ("CIDEr", "BLEU-4", "ROUGE-L", "bits", "words", "distinct captions", "distinct-1", "distinct-2")
_DIGITS = {
    "cider": 1,
    "bleu_4": 1,
    "rouge_l": 1,
    "bits": 2,
    "length": 1,
    "distinct": 0,
    "distinct_1": 3,
    "distinct_2": 3,
}
_MORE = {"recall_at_10": "R@10", "recall_at_10_linear": "R@10 linear", "cosine_zero": "cosine",
         "object_f1": "object F1", "caption_recall_at_10": "R@10 of the caption"}  # fmt: skip
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z*`])")


def write_page(folder: Path, page: Path) -> None:
    """Write the page of results and its figures; delete figures of questions without results."""
    questions = read_questions(folder)
    for question in questions:
        figure = page.parent / FIGURES / f"{question.name}.svg"
        if question.results is None:
            figure.unlink(missing_ok=True)
        else:
            _write(figure, make_figure(question))
    _write(page, make_page(questions, read_summary(folder)))


def make_page(questions: list[Question], summary: Summary) -> str:
    """The page of results."""
    return "\n".join([make_summary(questions, summary), *(make_section(question) for question in questions)])


def sentences(folder: Path, config: ExperimentConfig, record: dict[str, Any]) -> list[str]:
    """Lines to print after a run: one for each claim, and the location of the numbers."""
    rows = pd.read_parquet(folder / ROWS)
    lines = [f"{claim.text}: {_in_words(claim, effect_of(claim, rows))}" for claim in config.claims]
    lines.append(f"numbers: {folder / ROWS}, {folder / RECORD}")
    if record["is_quick"]:
        lines.append("a quick run: these numbers mean nothing but that everything ran")
    return lines


def _in_words(claim: Claim, effect: Effect) -> str:
    name = claim.measure
    return (
        f"{name} {claim.more} {number(effect.more, name)}, {claim.less} {number(effect.less, name)}, "
        f"{difference(claim)} {interval(effect, name)}, p {effect.difference.p:.3f}, "
        f"{verdict_of(effect, claim.negligible)} ({_n(effect.n_brains, 'brain')}, {_n(effect.n_models, 'model seed')}, "
        f"{_n(effect.n_images, 'image')})"
        f"{'; it must not come out' if must_not(claim) else ''}"
    )


def _n(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def make_summary(questions: list[Question], summary: Summary) -> str:
    """The first part of the page: two tables, and the first sentence of each verdict."""
    by_name = {question.name: question for question in questions}
    poster = [_headline(by_name[row.name], row) for row in summary.headlines if row.name in by_name]
    beyond = [_beyond(question) for question in questions if question.name not in summary.poster]
    parts = [
        summary.about,
        f"### The poster's five questions\n\n{_table(['question', 'poster (NSD, one run)', _HERE, 'verdict'], poster)}",
    ]
    told = [by_name[name] for name in (*summary.poster, *summary.also) if name in by_name]
    if said := [f"- {sentence}" for question in told if (sentence := first_sentence(question))]:
        parts.append("### What it says\n\n" + "\n".join(said) + "\n")
    parts.append(summary.limits)
    if beyond:
        parts.append(
            f"### Beyond the poster\n\n{_FIRST_CLAIM}\n\n{_table(['question', _HERE, 'verdict'], beyond)}"
        )
    return "\n".join(parts)


def first_sentence(question: Question) -> str | None:
    """The first sentence of the verdict's text, with a link; None without a text or results."""
    if question.verdict is None or question.results is None:
        return None
    return f"{_SENTENCE_END.split(question.verdict)[0]} ({_link(question)})"


def _link(question: Question) -> str:
    return f"[{question.title}](#{question.name.replace('_', '-')})"


def _headline(question: Question, row: Headline) -> list[str]:
    claim = question.config.claims[row.claim]
    is_pair = re.fullmatch(r"[\d.−]+ / [\d.−]+", claim.poster)
    poster = f"{claim.poster} {measure_in_words(claim)}" if is_pair else claim.poster
    first = [f"{_link(question)}: {row.question}", poster]
    if question.results is None:
        return [*first, "", NOT_RUN]
    found = verdict(claim, question.results.effects[row.claim])
    return [*first, _here(question, row.claim), f"**{found}**"]


def _beyond(question: Question) -> list[str]:
    first, config = f"{_link(question)}: {question.config.question}", question.config
    if question.results is None:
        return [first, "", NOT_RUN]
    verdicts = [verdict(*pair) for pair in zip(config.claims, question.results.effects, strict=True)]
    here = _here(question, 0)
    if config.along:
        here = f"{config.unit}: CIDEr {along_in_words(question)}; {size(question, names=False)}"
    return [first, here, counted(verdicts)]


def _here(question: Question, place: int) -> str:
    """Both means of a claim, the difference with its interval, and the numbers of brains, models and images."""
    assert question.results is not None
    claim, effect = question.config.claims[place], question.results.effects[place]
    name = claim.measure
    factor = "" if claim.factor == 1 else f"{difference(claim)} "
    return (
        f"{number(effect.more, name)} / {number(effect.less, name)} {measure_in_words(claim)}, {factor}"
        f"{interval(effect, name)}; {size(question, names=False)}"
    )


def make_section(question: Question) -> str:
    """The part of the page about one question."""
    head = f"## {question.title}\n\n{question.config.question}\n"
    if question.results is None:
        return f"{head}\n*{NOT_RUN}*\n\n{claims_table(question)}"
    parts = [
        head,
        f"{_origin(question, question.results)}\n",
        claims_table(question),
        f"![{alt_text(question)}]({FIGURES}/{question.name}.svg)\n",
        *([f"**Verdict.** {question.verdict}\n"] if question.verdict else []),
        f"{_SYSTEMS}\n",
        systems_table(question.results.rows),
    ]
    return "\n".join(parts)


def claims_table(question: Question) -> str:
    """One row for each claim: the poster's figures, ours, the difference and the verdict."""
    lines = []
    for place, claim in enumerate(question.config.claims):
        here = ["", "", "", NOT_RUN]
        if question.results is not None:
            effect, name = question.results.effects[place], claim.measure
            factor = "" if claim.factor == 1 else f" ({difference(claim)})"
            p = effect.difference.p or 0.0
            here = [
                f"{measure_in_words(claim)} {number(effect.more, name)} / {number(effect.less, name)}",
                interval(effect, name) + factor,
                f"{p:.3f}" if p >= 0.001 else "< 0.001",
                f"**{verdict(claim, effect)}**",
            ]
        lines.append([claim.text, claim.poster, *here])
    columns = ["claim", "poster (NSD)", "here (simulated)", "difference [95 %]", "p", "verdict"]
    return _table(columns, lines)


def systems_table(rows: pd.DataFrame) -> str:
    """Every system under every input, as the mean over worlds."""
    more = {column: name for column, name in _MORE.items() if column in rows and rows[column].notna().any()}
    keys = [rows[name] for name in ("system", "control", "world")]
    columns = ["cider", "rouge_l", "bits", "length", *more]
    means = rows[columns].groupby(keys, sort=False).mean()
    counts = pd.DataFrame(np.vstack(rows["bleu_counts"].tolist()), rows.index).groupby(keys, sort=False).sum()
    means["bleu_4"] = [bleu_from_counts(one)[3] for one in counts.to_numpy()]
    code, unique = pd.factorize(rows["caption"])
    words = np.array([_words(caption) for caption in unique], dtype=object)
    said = pd.Series(code, rows.index).groupby(keys, sort=False).agg(lambda codes: words[codes].tolist())
    means["distinct"] = said.map(n_distinct_captions)
    for n in (1, 2):
        means[f"distinct_{n}"] = [distinct_n(captions, n) for captions in said]
    arms = means.groupby(level=[0, 1], sort=False).mean()
    lines = [
        [
            str(system),
            str(control),
            *(_rounded(one[name], digits) for name, digits in _DIGITS.items()),
            *(_rounded(one[name], 3) for name in more),
        ]
        for (system, control), one in zip(arms.index, arms.to_dict("records"), strict=True)
    ]
    return _table(["system", "input", *_COLUMNS, *more.values()], lines, n_words=2)


def _origin(question: Question, results: Results) -> str:
    """Origin of the numbers: data, size, command, versions, revisions, learning rates."""
    record, rows = results.record, results.rows
    revisions = ", ".join(sorted(str(revision)[:12] for revision in set(rows["git_revision"].unique())))
    versions = ", ".join(sorted(set(rows["bitllm_version"].unique())))
    return (
        f"Data: {record['data']}; {size(question)} of the held-out subject. `{record['command']}`, bitllm {versions}, "
        f"revision {revisions}, configuration {record['config_sha256'][:12]}. "
        f"{rates_in_words(record['learning_rates'])}"
    )


def rates_in_words(rates: dict[str, dict[str, Any]]) -> str:
    """The learning rates, how they were chosen, and which are at the edge of their grid."""
    chosen = ", ".join(
        f"{system} {row['chosen']:g}" + (f" (that of {row['taken from']})" if "taken from" in row else "")
        for system, row in rates.items()
    )
    if not any("CIDEr, validation" in row for row in rates.values()):
        return f"Learning rates, set beforehand, no other tried in this run: {chosen}."
    at_edge = [f"{system} ({edge})" for system, row in rates.items() if (edge := edge_of(row))]
    said = (
        f"At the edge of the grid, so that a rate beyond it might be better: {', '.join(at_edge)}."
        if at_edge
        else "None lies at the edge of its grid."
    )
    return f"Learning rates, chosen on subj07: {chosen}. {said}"


def edge_of(row: dict[str, Any]) -> str | None:
    """Whether a chosen rate is the lowest or the highest that was tried."""
    tried = [float(rate) for rate in row.get("CIDEr, validation", {})]
    if len(tried) < 2 or min(tried) < row["chosen"] < max(tried):
        return None
    return f"the {'lowest' if row['chosen'] == min(tried) else 'highest'} of {len(tried)}"


def _table(columns: list[str], lines: list[list[str]], *, n_words: int | None = None) -> str:
    """A Markdown table; columns after the first ``n_words`` are right-aligned."""
    rule = "|".join(
        ["---"] * len(columns) if n_words is None else ["---"] * n_words + ["---:"] * (len(columns) - n_words)
    )
    text = [f"| {' | '.join(columns)} |", f"|{rule}|", *(_line(line) for line in lines)]
    return "\n".join(text) + "\n"


def _line(cells: list[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _rounded(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


@cache
def _words(caption: str) -> str:
    """Number of words of a caption, cached because questions share systems."""
    return ptb_tokenize([caption])[0]


def _write(path: Path, text: str) -> None:
    with file_written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        write_page(Path("experiments"), Path("docs") / "results.md")
    except BitLlmError as error:
        sys.exit(str(error))
