"""The command that shows what comes from the brain: ground."""

from pathlib import Path

import tyro
from rich.console import Console

from bitllm.cli.terminal import OUT, print_json
from bitllm.evaluation.options import GroundOptions


def ground(
    run: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    options: tyro.conf.OmitArgPrefixes[GroundOptions] = GroundOptions(),  # noqa: B008 - frozen
    json: bool = False,
) -> None:
    """Show how much of a run's text comes from the brain: captions, bits and encoder beside every control.

    Args:
        run: A checkpoint of sft or rft, or the folder of a demo (then name the --system).
        store: The store that the run was trained on, or another one (then say --judge-on).
        options: Where things lie, and how it is judged.
        json: Print grounding.json instead of tables.
    """
    from bitllm.cli.display import Display
    from bitllm.evaluation.command import ground_files
    from bitllm.evaluation.ground_table import print_grounding

    console = Console(stderr=True) if json else OUT
    with Display(console) as display:
        content, path = ground_files(run, store, options, progress=display.progress)
    if json:
        print_json(content)
        return
    print_grounding(content, console)
    console.print(f"numbers: {path}")
