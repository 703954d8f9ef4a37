"""Make and evaluate a whole run, in one process or in several of this machine that share the work.

A small model does not keep many cores busy: two processes with half of the cores each train two systems in less time
than one process needs for one after the other. Run as a program, this module is such a second process.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from bitllm.evaluation.options import EvaluateOptions
from bitllm.evaluation.results import Results
from bitllm.pipeline.evaluate import evaluate, evaluate_parts
from bitllm.pipeline.make import make_clip, make_data, make_llm, make_system, require_start
from bitllm.pipeline.recipe import Recipe
from bitllm.pipeline.run import Run
from bitllm.pipeline.steps import CAN_SHARE, Unit
from bitllm.training.distributed import world_size

LOG = "helper.log"


def run_whole(run: Run) -> Results:
    """Make data, models and every system of a recipe, and evaluate them.

    With ``trainer.processes`` above 1, further processes take a share of it.

    Raises
    ------
    BitLlmError
        If a part cannot be made.
    """
    for name in run.recipe.system_names:
        require_start(run, name)
    if world_size() > 1:  # of torchrun: all train each system together
        for name in run.recipe.system_names:
            make_system(run, name)
    else:
        make_data(run)
        with _helpers(run):
            _make(run)
    return evaluate(run, options=_options(run.recipe))


def _make(run: Run) -> None:
    """Do what no other process does of this run, until all is done."""
    steps, names = run.steps, run.recipe.system_names
    make_data(run)
    starts_aligned = any(run.recipe.system(name).start == "align" for name in names)
    if starts_aligned and not run.recipe.is_of_folds:
        first = {"align": Unit("align", partial(make_system, run, "align"))}
    else:
        first = {"clip": Unit("clip", partial(make_clip, run))}
    steps.divide({**first, "llm": Unit("llm", partial(make_llm, run))})
    if run.recipe.is_of_folds:
        run.record()
        steps.divide({fold.folder.name: Unit(fold.folder.name, partial(_make, fold)) for fold in run.folds()})
        return
    steps.divide({name: Unit(_first(run.recipe, name), partial(make_system, run, name)) for name in names})
    evaluate_parts(run, _options(run.recipe), progress=run.progress, log=run.log)


def _first(recipe: Recipe, name: str) -> str:
    """The first of the systems of which each starts from the one before it, up to ``name``."""
    start = recipe.system(name).start
    return _first(recipe, start) if start in recipe.system_names else name


def _options(recipe: Recipe) -> EvaluateOptions:
    return EvaluateOptions(inputs=recipe.evaluation.inputs, likelihood=recipe.evaluation.likelihood)


def _n_at_once(run: Run) -> int:
    """Number of parts of a run that can be made at the same time."""
    recipe = run.recipe
    if recipe.is_of_folds:
        return len(run.folds())
    n_models = (recipe.clip.is_made and recipe.needs_clip) + recipe.llm.is_made
    return max(n_models, len({_first(recipe, name) for name in recipe.system_names}))


@contextmanager
def _helpers(run: Run) -> Iterator[None]:
    """Run further processes during the block; each process gets an equal part of the cores.

    There are none on a GPU, nor for a run whose parts follow one another. A helper that fails leaves its work to this
    process, and says why in a log. All end with the block, and also if this process is killed.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_processes = min(run.recipe.trainer.processes, n_cores, _n_at_once(run))
    if n_processes == 1 or torch.cuda.is_available() or not CAN_SHARE:
        yield
        return
    n_threads_before, n_threads = torch.get_num_threads(), n_cores // n_processes
    log = run.steps.folder / "steps" / LOG
    log.unlink(missing_ok=True)
    started = [_start(run, log, n_threads) for _ in range(n_processes - 1)]
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads_before)
        if any(one.poll() for one in started):
            run.log(f"a second process ended early, and this one did its work; {log} says why")
        for one in started:
            one.communicate()  # the end of its input ends it


def _start(run: Run, log: Path, n_threads: int) -> "subprocess.Popen[str]":
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603 - our own words
            [sys.executable, "-m", __name__, str(run.folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(n_threads)},
            start_new_session=True,  # Ctrl+C reaches this process alone, which then ends the other
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended at once; its log says why
        process.stdin.write(run.recipe.model_dump_json() + "\n")
        process.stdin.flush()
    return process


def _help(folder: str) -> None:
    """Be a second process: the recipe comes as one line of JSON, and the end of the input ends this process."""
    recipe = Recipe.model_validate_json(sys.stdin.readline())

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(0)  # a stage in training resumes from its checkpoint, as after a kill

    threading.Thread(target=end_with_parent, daemon=True).start()
    _make(Run(Path(folder), recipe, log=lambda line: print(line, flush=True)))


if __name__ == "__main__":
    _help(sys.argv[1])
