"""The report in the terminal, 80 columns wide: headline, systems with their controls, diagnostics."""

from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bitllm.report.headline import headline
from bitllm.report.tables import Row, between_systems, retrieval_rows, score_groups
from bitllm.report.values import estimate, interval, number, plain, section, whole, with_interval
from bitllm.report.wording import RIVAL

_STYLES = {"system": "bold", "rival": "yellow", "ceiling": "green"}


def render_table(results: dict[str, Any]) -> Stack:
    """The results as something rich can print, in the order of the page.

    Parameters
    ----------
    results
        What ``results.json`` holds; any key may be missing.
    """
    judged = headline(results)
    colour = "green" if judged.is_evidence else "yellow"
    parts: list[RenderableType] = [
        Panel(Text(judged.sentence), border_style=colour, title="Is it decoding the brain?"),
        _scores(results),
    ]
    if any(row.kind == "rival" for group in score_groups(results) for row in group.rows):
        parts.extend([Text(f"* {RIVAL}"), Text()])
    for table in (_retrieval(results), _bits(results)):
        if table.row_count:
            parts.extend([table, Text()])
    mean, sd = number(results, "cosine_real_zero", "mean"), number(results, "cosine_real_zero", "sd")
    if mean is not None:
        parts.append(
            Text(
                f"cosine(real, zero betas): {plain(mean, 3)} ± {plain(sd, 3)} "
                "(1: the encoder ignores its input)"
            )
        )
    parts.extend(
        Text(f"{one.name}, {one.metric}: {with_interval(one.difference, sign=True)}")
        for one in between_systems(results)
    )
    return Stack(*parts)


def _scores(results: dict[str, Any]) -> Table:
    table = _table("Scores with their controls; [95 % interval over images]")
    table.add_column("system, its controls", max_width=22)
    table.add_column("CIDEr", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("real − control", justify="right", no_wrap=True)
    for name in ("BLEU\n-4", "ROUGE\n-L", "dis-\ntinct"):
        table.add_column(name, justify="right")
    for group in score_groups(results):
        for row in group.rows:
            table.add_row(*_cells(row), style=_STYLES.get(row.kind, "dim" if row.kind == "borrowed" else ""))
        table.add_row()
    return table


def _cells(row: Row) -> list[str]:
    indent = "" if row.kind in ("system", "ceiling") else "  "
    label = row.label if row.kind == "ceiling" else row.short + (" *" if row.kind == "rival" else "")
    cells = [
        indent + label,
        plain(row.scores["CIDEr"].value) if "CIDEr" in row.scores else "",
        interval(row.scores.get("CIDEr")),
        with_interval(row.difference, sign=True) if row.difference else "",
        plain(row.scores["BLEU-4"].value) if "BLEU-4" in row.scores else "",
        plain(row.scores["ROUGE-L"].value) if "ROUGE-L" in row.scores else "",
        whole(row.n_distinct) if row.n_distinct is not None else "",
    ]
    return [escape(cell) for cell in cells]


def _retrieval(results: dict[str, Any]) -> Table:
    table = _table("Brain → picture retrieval")
    table.add_column("input")
    for name in ("R@10", "chance", "median rank", "chance", "N"):
        table.add_column(name, justify="right")
    for row in retrieval_rows(results):
        cells = [
            row.short,
            with_interval(row.r_at_10, 3),
            plain(row.chance_r_at_10, 3),
            plain(row.median_rank),
            plain(row.chance_median_rank),
            whole(row.n_pictures),
        ]
        table.add_row(*map(escape, cells), style="bold" if row.name == "real" else "")
    return table


def _bits(results: dict[str, Any]) -> Table:
    table = _table("Bits from the right betas (0: none)")
    table.add_column("system")
    for name in ("per caption", "per token"):
        table.add_column(name, justify="right")
    for system in section(results, "bits"):
        cells = [
            with_interval(estimate(results, "bits", system, part, name="mean"), digits, sign=True)
            for part, digits in (("per_caption", 2), ("per_token", 3))
        ]
        table.add_row(*map(escape, [system, *cells]))
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), title_style="bold"
    )
