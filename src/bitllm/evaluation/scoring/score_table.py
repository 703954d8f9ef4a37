"""Scores for people: tables for the terminal, and a Parquet file with one row per caption."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitllm.evaluation.scoring.caption_scores import CaptionScores
from bitllm.files import file_written_whole

_FLOORS = ("real - permuted", "real - constant")


def render_scores(scores: CaptionScores) -> Group:
    """Tables of metrics with intervals and floors, differences from another system, and notes."""
    parts: list[RenderableType] = [_metrics(scores)]
    parts += [_difference(scores, name) for name in scores.differences if name not in _FLOORS]
    parts += [Text(line) for line in _lines(scores)]
    if scores.summary:
        parts.append(Text(f"\n{scores.summary}", style="bold"))
    return Group(*parts)


def write_per_image(path: Path, scores: CaptionScores, ids: list[str], captions: list[str]) -> None:
    """Write a Parquet file with one row per caption: ``id``, ``caption`` and every metric."""
    import pandas as pd

    table = pd.DataFrame({"id": ids, "caption": captions, **scores.per_image.of_each()})
    with file_written_whole(path) as unfinished:
        table.to_parquet(unfinished, index=False)


def _metrics(scores: CaptionScores) -> Table:
    table = Table(title=f"{scores.n_images} images, {scores.distinct} distinct captions")
    table.add_column("metric")
    table.add_column("score", justify="right")
    table.add_column("95 % interval")
    for floor in scores.floors:
        table.add_column(floor, justify="right")
    for name, value in scores.metrics.items():
        interval = scores.intervals[name]
        floors = [f"{floor[name]:.2f}" if name in floor else "-" for floor in scores.floors.values()]
        table.add_row(name, f"{value:.2f}", f"[{interval.low:.1f}, {interval.high:.1f}]", *floors)
    return table


def _difference(scores: CaptionScores, name: str) -> Table:
    table = Table(title=name)
    for column in ("metric", "difference", "95 % interval", "p"):
        table.add_column(column, justify="left" if column in ("metric", "95 % interval") else "right")
    for metric, found in scores.differences[name].items():
        interval = f"[{found.low:.2f}, {found.high:.2f}]"
        table.add_row(metric, f"{found.value:+.2f}", interval, f"{found.p:.3f}")
    return table


def _lines(scores: CaptionScores) -> list[str]:
    lines = []
    if "caption" in (constant := scores.floors.get("constant", {})):
        lines.append(f'constant: "{constant["caption"]}" ({constant["chosen_on"]})')
    if "drawn" in (human := scores.floors.get("human", {})):
        lines.append(f"human: {human['drawn']} are held out in turn")
    lines.append(
        f"words per caption {scores.mean_length:.1f}, distinct-1 {scores.distinct_1:.3f}, "
        f"distinct-2 {scores.distinct_2:.3f}"
    )
    lines.append(f"tokenizer {scores.tokenizer}, references {scores.references_sha256[:12]}")
    lines += [f"note: {note}" for note in scores.notes]
    return lines + [f"{name}: not run: {why}" for name, why in scores.not_run.items()]
