"""Commands that run everything: demo once, reproduce a question in many worlds."""

from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from bitllm.cli.terminal import OUT, print_json
from bitllm.errors import ConfigError

if TYPE_CHECKING:
    from bitllm.pipeline.recipe import Recipe


def demo(
    out: Path = Path("demo"),
    json: bool = False,
    *,
    recipe: "Recipe",
) -> None:
    """Run everything: data (simulated, or those of the recipe), training, controls, held-out trials, report.

    Choose the recipe with --recipe NAME or FILE (default: demo). Its values are the defaults of the options below.

    Args:
        out: Run folder; an unfinished run in it is resumed.
        json: Print results.json instead of tables.
        recipe: Values of the recipe (--recipe NAME or FILE; default: demo).
    """
    import time

    from bitllm.cli.display import Display
    from bitllm.evaluation.results import to_json
    from bitllm.pipeline.run import Run
    from bitllm.pipeline.whole import run_whole
    from bitllm.report.page import write_report
    from bitllm.report.run import read_run
    from bitllm.report.terminal import render_table

    console = Console(stderr=True) if json else OUT
    start = time.perf_counter()
    with Display(console) as display:
        run = Run(out, recipe, display.progress, display.tell)
        results = run_whole(run)
        write_report(read_run(out), out / "report.html")
    took = time.perf_counter() - start
    console.print(render_table(results))
    console.print(
        f"Pipeline {sum(results.about.seconds.values()):.0f} s in all steps ({took:.0f} s now), peak memory "
        f"{results.about.peak_memory_gb:.1f} GB."
    )
    console.print(f"Report: {out / 'report.html'}   numbers: {out / 'results.json'}")
    if json:
        print_json(to_json(results))


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
    """Test the poster's claims on simulated brains; resumes an unfinished run.

    The same command in a second terminal shares the work.

    Args:
        names: Questions (folders of experiments with a config.yaml) with the same recipe, or all.
        quick: Use one tiny world and few steps, about a minute per question; the numbers mean nothing.
        out: Folder for work and results, shared by questions; by default reproduce/RECIPE (quick: reproduce/quick).
        seeds: Use only this number of simulated brains; by default all.
        model_seeds: Use only this number of model seeds for each brain; by default all.
        keep_published: Reuse published worlds with their learning rates, and run only the others.
        experiments: Folder of all experiments; by default that of the project.
    """
    from bitllm.cli.display import Display
    from bitllm.experiments.config import read_experiments
    from bitllm.experiments.engine import reproduce as run
    from bitllm.experiments.page import sentences
    from bitllm.experiments.record import read_kept

    if quick and keep_published:
        raise ConfigError(
            "reproduce: expected --quick or --keep-published, found both; what is published are full runs"
        )
    recipe, configs = read_experiments(names, experiments, is_quick=quick)
    configs = {name: config.first(seeds, model_seeds) for name, config in configs.items()}
    published = {name: read_kept(name, experiments) for name in configs} if keep_published else {}
    kept = {name: one for name, one in published.items() if one is not None}
    folder = out or Path("reproduce") / recipe
    with Display(OUT) as display:
        records = run(
            configs, folder, is_quick=quick, tell=display.tell, progress=display.progress, kept=kept
        )
    for name, record in records.items():
        for line in sentences(folder / name, configs[name], record):
            OUT.print(line, markup=False, soft_wrap=True)
