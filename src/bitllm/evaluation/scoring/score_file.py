"""Score a file of captions beside its floors, for the command line."""

from pathlib import Path

from rich.table import Table

from bitllm.errors import DataError
from bitllm.evaluation.scoring.caption_scorer import METRICS, CaptionScorer, CaptionScores
from bitllm.evaluation.scoring.captions_file import is_json_lines, read_caption_pairs, read_captions
from bitllm.evaluation.scoring.floors import human_ceiling, permuted_captions


def score_file(captions: Path, references: Path | None, *, seed: int = 0) -> CaptionScores:
    """Scores of a file of captions, with the floors "permuted" and "human".

    Parameters
    ----------
    captions
        Our ``captions.jsonl``, or ``{"id": "caption"}``.
    references
        ``{"id": ["reference", …]}``, needed for the second form.

    Raises
    ------
    DataError
        If a file is missing or not of its form, or references are needed and not given.
    """
    if is_json_lines(captions):
        records = read_captions(captions)
        ids: list[object] = [record.nsd_id for record in records]
        texts, sets = [record.caption for record in records], [list(record.references) for record in records]
    elif references is None:
        raise DataError(
            f"{captions}: expected references beside captions that carry none, found none; give "
            'them with --references FILE ({"id": ["reference", …]})'
        )
    else:
        pairs = read_caption_pairs(captions, references)
        ids, texts, sets = list(pairs.ids), list(pairs.captions), [list(group) for group in pairs.references]
    scorer = CaptionScorer(sets, image_ids=ids)  # type: ignore[arg-type]
    scores = scorer.score(texts, seed=seed)
    dealt = permuted_captions(texts, scorer.image_ids, n_permutations=5, seed=seed)  # type: ignore[arg-type]
    rows = [scorer.metrics(row) for row in dealt]
    scores.floors["permuted"] = {name: sum(row[name] for row in rows) / len(rows) for name in METRICS}
    if min(map(len, scorer.references)) > 1:
        scores.floors["human"] = human_ceiling(scorer)
    return scores


def render_scores(scores: CaptionScores) -> Table:
    """A table of the metrics with intervals, and the floors beside them."""
    table = Table(
        title=f"{scores.n_images} images, {scores.distinct} distinct captions, tokenizer {scores.tokenizer}"
    )
    table.add_column("metric")
    table.add_column("score", justify="right")
    table.add_column("95 % interval")
    for floor in scores.floors:
        table.add_column(floor, justify="right")
    for name in METRICS:
        low, high = scores.intervals[name]
        table.add_row(
            name,
            f"{scores.metrics[name]:.2f}",
            f"[{low:.1f}, {high:.1f}]",
            *(f"{floor[name]:.2f}" for floor in scores.floors.values()),
        )
    return table
