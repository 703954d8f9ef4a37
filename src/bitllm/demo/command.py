"""``bitllm demo``: make every system of a recipe, evaluate them, write results and report."""

import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bitllm.demo.judge import judge_encoder, judge_system
from bitllm.demo.results import make_results
from bitllm.files import read_json, write_json
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.pipeline.make import make_system
from bitllm.pipeline.run import Run
from bitllm.report.page import write_report
from bitllm.report.runs.folder import read_run


def run_demo(run: Run) -> dict[str, Any]:
    """Make and evaluate every system of the run; finished steps of an earlier start are used again.

    Returns
    -------
    dict
        The content of ``results.json`` in the run's folder.
    """
    for name in run.recipe.system_names:
        make_system(run, name)
    _judge(run)
    results = make_results(run, peak_memory_gb=_peak_memory_gb())
    write_json(run.folder / "results.json", results)
    files = read_run(run.folder)
    write_report(results, files.curves, files.gallery, run.folder / "report.html", brain=files.brain)
    return results


def _judge(run: Run) -> None:
    judged = run.folder / "judged"
    run.steps.run(
        "judge encoder",
        lambda: judge_encoder(
            run.store,
            run.split,
            run.targets,
            run.aligner,
            run.recipe.encoder.atlases,
            judged / "encoder",
            seed=run.recipe.seed,
            **run.held_out,
        ),
        settings=run.recipe.seed,
        after=("align", "targets"),
    )
    for name in run.recipe.system_names:
        run.steps.run(
            f"judge {name}",
            partial(_judge_system, run, name, judged / name),
            settings=[run.recipe.seed, run.recipe.evaluation.max_new_tokens],
            after=("judge encoder", name),
        )


def _judge_system(run: Run, name: str, folder: Path) -> None:
    encoder = read_json(run.folder / "judged" / "encoder" / "encoder.json")
    n = len(run.held_out["averaged"].trials)
    judge_system(
        load_captioner(run.folder / name, load_llm(run.llm_source), precision=run.recipe.sft.precision),
        folder,
        baselines={"constant": [encoder["constant"]] * n, "nearest": encoder["nearest"]},
        max_new_tokens=run.recipe.evaluation.max_new_tokens,
        seed=run.recipe.seed,
        progress=run.progress or (lambda *_: None),
        **run.held_out,
    )


def _peak_memory_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
