"""Commands that judge: score."""

from pathlib import Path

import tyro

from bitllm.cli.terminal import OUT, print_json


def score(
    captions: tyro.conf.Positional[Path],
    /,
    references: Path | None = None,
    json: bool = False,
) -> None:
    """Score captions, always beside a constant caption, permuted captions and people.

    Args:
        captions: Our captions.jsonl, or {"id": "caption"} of any decoder.
        references: {"id": ["reference", ...]} where the captions do not carry their own.
        json: Print JSON instead of a table.
    """
    from bitllm.evaluation.scoring.score_file import render_scores, score_file

    scores = score_file(captions, references)
    print_json(scores.to_json()) if json else OUT.print(render_scores(scores))
