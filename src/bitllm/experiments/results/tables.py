"""The tables of a question: its claims, its systems, and where its numbers come from."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from bitllm.experiments.results.read import Question, Results
from bitllm.experiments.results.wording import (
    MEASURES,
    NOT_RUN,
    difference,
    interval,
    number,
    p_value,
    size,
    verdict,
)
from bitllm.metrics.bleu import bleu_from_counts
from bitllm.metrics.diversity import distinct_n, n_distinct_captions
from bitllm.metrics.tokenize import ptb_tokenize

_DIAGNOSTICS = {"recall_at_10": "R@10", "recall_at_10_linear": "R@10 linear", "cosine_zero": "cosine"}
_NONE = "–"


def claims_table(question: Question) -> str:
    """One line for each claim: the poster's figures, ours, the difference and the verdict."""
    lines = [
        "| claim | poster (NSD) | here (simulated) | difference [95 %] | p | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for place, claim in enumerate(question.config.claims):
        if question.results is None:
            here = f"| | | | {NOT_RUN} |"
        else:
            effect, name = question.results.effects[place], claim.measure
            told = "" if claim.factor == 1 else f" ({difference(claim)})"
            here = (
                f"| {MEASURES[name]} {number(effect.more, name)} / {number(effect.less, name)} "
                f"| {interval(effect, name)}{told} | {p_value(effect)} | **{verdict(claim, effect)}** |"
            )
        lines.append(f"| {claim.text} | {claim.poster} {here}")
    return "\n".join(lines) + "\n"


def systems_table(question: Question) -> str:
    """Every system under every input, as the mean over worlds."""
    assert question.results is not None
    rows = question.results.rows
    diagnostics = _DIAGNOSTICS if question.config.diagnostics else {}
    heads = [
        "system",
        "input",
        "CIDEr",
        "BLEU-4",
        "ROUGE-L",
        "bits",
        "words",
        "distinct captions",
        "distinct-1",
    ]
    heads += ["distinct-2", *diagnostics.values()]
    lines = [_line(heads), "|---|---|" + "---:|" * (len(heads) - 2)]
    words = _words_of(rows)
    for (system, control), part in rows.groupby(["system", "control"], sort=False):
        captions = [[words[caption] for caption in world["caption"]] for _, world in part.groupby("world")]
        cells = [
            _mean(part, "cider", 1),
            f"{_bleu_4(part):.1f}",
            _mean(part, "rouge_l", 1),
            _mean(part, "bits", 2),
            _mean(part, "length", 1),
            f"{_over(captions, n_distinct_captions):.0f}",
            f"{_over(captions, lambda some: distinct_n(some, 1)):.3f}",
            f"{_over(captions, lambda some: distinct_n(some, 2)):.3f}",
            *(_mean(part, column, 3) for column in diagnostics),
        ]
        lines.append(_line([str(system), str(control), *cells]))
    return "\n".join(lines) + "\n"


def origin(question: Question) -> str:
    """Where the numbers come from: data, size, command, versions, revisions, learning rates."""
    results = question.results
    assert results is not None
    record, rows = results.record, results.rows
    revisions = ", ".join(sorted(str(revision)[:12] for revision in set(rows["git_revision"])))
    versions = ", ".join(sorted(set(rows["bitllm_version"])))
    return (
        f"Data: {record['data']}; {size(question)} of the held-out subject. `{record['command']}`, bitllm {versions}, "
        f"revision {revisions}, configuration {record['config_sha256'][:12]}. {rates_in_words(results)}"
    )


def rates_in_words(results: Results) -> str:
    """The learning rates, how they came to be, and which of them lie at the edge of what was tried."""
    rates: dict[str, dict[str, Any]] = results.record["learning_rates"]
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
    """Whether a chosen rate is the lowest or the highest of those that were tried."""
    tried = [float(rate) for rate in row.get("CIDEr, validation", {})]
    if len(tried) < 2 or min(tried) < row["chosen"] < max(tried):
        return None
    return f"the {'lowest' if row['chosen'] == min(tried) else 'highest'} of {len(tried)}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(part: pd.DataFrame, column: str, digits: int) -> str:
    if column not in part or part[column].isna().all():
        return _NONE
    return f"{part.groupby('world')[column].mean().mean():.{digits}f}".replace("-", "−")


def _bleu_4(part: pd.DataFrame) -> float:
    """Corpus BLEU-4 in points, the mean over worlds."""
    worlds = [np.vstack(world["bleu_counts"].tolist()).sum(axis=0) for _, world in part.groupby("world")]
    return float(np.mean([bleu_from_counts(counts)[3] for counts in worlds]))


def _over(captions: list[list[str]], measure: Callable[[list[str]], float]) -> float:
    return float(np.mean([measure(some) for some in captions]))


def _words_of(rows: pd.DataFrame) -> dict[str, str]:
    return {caption: _words(caption) for caption in sorted(set(rows["caption"]))}


@cache
def _words(caption: str) -> str:
    """A caption's words; questions share systems, and with them captions."""
    return ptb_tokenize([caption])[0]
