"""``bitllm demo``: run the road, show progress, print the table, write results and report."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bitllm.demo.config import demo_config
from bitllm.demo.display import Display
from bitllm.demo.pipeline import run_steps
from bitllm.demo.results import make_results
from bitllm.demo.run import DemoRun
from bitllm.files import write_json
from bitllm.report.page import write_report
from bitllm.report.runs.folder import read_run
from bitllm.report.terminal import render_table


def run_demo(
    config: str, out: Path, *, seed: int, signal: float | None, split: str, full: bool, console: Console
) -> dict[str, Any]:
    """Run the demo in ``out``; steps that an earlier run finished are kept.

    Returns
    -------
    dict
        What stands in ``out/results.json``.
    """
    start = time.perf_counter()
    with Display(console) as display:
        run = DemoRun(
            Path(out), demo_config(config), seed, signal, split, full, display.progress, display.tell
        )
        run_steps(run)
    results = make_results(run, peak_memory_gb=_peak_memory_gb())
    write_json(run.folder / "results.json", results)
    files = read_run(run.folder)
    write_report(results, files.curves, files.gallery, run.folder / "report.html", brain=files.brain)
    console.print(render_table(results))
    took = time.perf_counter() - start
    console.print(
        f"Pipeline {sum(run.steps.seconds.values()):.0f} s in all steps ({took:.0f} s now), peak memory "
        f"{results['peak_memory_gb']:.1f} GB."
    )
    console.print(f"Report: {run.folder / 'report.html'}   numbers: {run.folder / 'results.json'}")
    return results


def _peak_memory_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
