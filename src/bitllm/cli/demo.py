"""The commands that run everything: demo once, reproduce one question over many worlds."""

from pathlib import Path
from typing import Literal

import tyro
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


def reproduce(
    name: tyro.conf.Positional[str],
    /,
    quick: bool = False,
    out: Path | None = None,
    seeds: int | None = None,
    experiments: Path = Path("experiments"),
) -> None:
    """Put one of the poster's claims to the test on simulated brains; an unfinished run goes on.

    Args:
        name: The question: a folder of experiments with a config.yaml.
        quick: One tiny world and a few steps, under a minute: its numbers mean nothing.
        out: Folder for the work and the results; reproduce/NAME (quick: reproduce/NAME-quick) by default.
        seeds: Only the first so many simulated brains.
        experiments: Folder of all experiments; that of the project by default.
    """
    from bitllm.demo.display import Display
    from bitllm.experiments.config import first_brains, quick_version, read_experiment
    from bitllm.experiments.engine import reproduce as run
    from bitllm.experiments.results import sentences

    config = first_brains(read_experiment(name, experiments), seeds)
    folder = out or Path("reproduce") / (f"{name}-quick" if quick else name)
    with Display(OUT) as display:
        record = run(
            name,
            quick_version(config) if quick else config,
            folder,
            is_quick=quick,
            tell=display.tell,
            progress=display.progress,
        )
    for line in sentences(folder, record):
        OUT.print(line, markup=False, soft_wrap=True)
