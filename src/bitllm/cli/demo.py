"""The commands that run everything: demo once, reproduce one question over many worlds."""

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from bitllm.cli.terminal import OUT, print_json
from bitllm.errors import ConfigError


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
    names: tyro.conf.Positional[tuple[str, ...]],
    /,
    quick: bool = False,
    out: Path | None = None,
    seeds: int | None = None,
    model_seeds: int | None = None,
    keep_published: bool = False,
    experiments: Path = Path("experiments"),
) -> None:
    """Put the poster's claims to the test on simulated brains; an unfinished run goes on.

    The same command in a second terminal takes its share of the work.

    Args:
        names: The questions: folders of experiments with a config.yaml, or all. Those of one run share a recipe.
        quick: One tiny world and a few steps, about a minute for a question: its numbers mean nothing.
        out: Folder for the work and the results, shared by questions; reproduce/RECIPE (quick: reproduce/quick) by
            default.
        seeds: Only the first so many simulated brains.
        model_seeds: Only the first so many model seeds on each.
        keep_published: Take over the worlds whose results lie beside their question, with their learning rates, and run
            the others alone.
        experiments: Folder of all experiments; that of the project by default.
    """
    from bitllm.demo.display import Display
    from bitllm.experiments.config import read_experiments
    from bitllm.experiments.engine import reproduce as run
    from bitllm.experiments.plan import fewer_worlds
    from bitllm.experiments.record import read_kept
    from bitllm.experiments.results import sentences

    if quick and keep_published:
        raise ConfigError(
            "reproduce: expected --quick or --keep-published, found both; what is published are full runs"
        )
    recipe, configs = read_experiments(names, experiments, is_quick=quick)
    configs = {name: fewer_worlds(config, seeds, model_seeds) for name, config in configs.items()}
    published = {name: read_kept(name, experiments) for name in configs} if keep_published else {}
    kept = {name: one for name, one in published.items() if one is not None}
    folder = out or Path("reproduce") / recipe
    with Display(OUT) as display:
        records = run(
            configs, folder, is_quick=quick, tell=display.tell, progress=display.progress, kept=kept
        )
    for name, record in records.items():
        for line in sentences(folder / name, record):
            OUT.print(line, markup=False, soft_wrap=True)
