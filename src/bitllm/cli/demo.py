"""The command that runs everything: demo."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from bitllm.cli.terminal import OUT, print_json


def demo(
    llm: Literal["tiny", "smollm2"] = "tiny",
    out: Path = Path("demo"),
    seed: int = 0,
    signal: float | None = None,
    split: Literal["poster", "develop"] = "poster",
    full: bool = False,
    config: str | None = None,
    json: bool = False,
) -> None:
    """Run everything: simulated brain, three stages, held-out subject, report.

    Args:
        llm: Base LLM: a small Llama made on the spot, or the real SmolLM2-135M-Instruct.
        out: Folder for results; an unfinished demo in it goes on.
        seed: Of everything.
        signal: Strength of the simulated signal; 0 is the test that nothing is decoded from noise.
        split: poster holds out the last subject; develop the one before, on validation images, for choosing settings.
        full: Train every baseline (prefix, prefix_mlp, no_align).
        config: A YAML configuration instead of the packaged one.
        json: Print results.json instead of tables.
    """
    from bitllm.demo.command import run_demo

    console = Console(stderr=True) if json else OUT
    results = run_demo(config or llm, out, seed=seed, signal=signal, split=split, full=full, console=console)
    if json:
        print_json(results)
