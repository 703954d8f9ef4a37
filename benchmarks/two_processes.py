"""Speed of two processes with one thread each relative to one such process, with the same global batch and steps.

    make demo && python benchmarks/two_processes.py demo

Sizes of the demo. Timed from the fifth step to the last, so that starting and reading are left out; validations and
checkpoints are off. That both follow one trajectory is a test (tests/runs/test_processes.py).

Prediction, written before the first run: a step is bound by products that halve; what does not halve is the exchange of
gradients (align 5 MB, sft 1 MB, rft 0.3 MB over gloo: milliseconds against steps of a tenth of a second to a second),
the optimiser, and in rft the slower of two samplings. So 1.8 times for align and sft, 1.7 for rft.

Measured (idle machine): sft 1.66, rft 1.84, align 1.20 times as fast; align with batches of 896 1.55. What does not
halve in align is the pooling map of each subject, which does not depend on the batch: examples of a step are dealt to
processes by subject, so that each computes four of the seven maps; before that it was 0.89.

On another machine, with the batched pooling: sft 1.46, rft 1.63, align 1.25 times as fast. Two independent runs do not
slow each other there (align 4.0 s alone, 3.9 and 4.0 s beside each other). A step of align takes 109 ms in one process
and 88 in two: 70 % of the one depends on the voxels of the subjects (34 % the map, 24 % the keys, the rest labels and
sines), of which a process keeps 4/7, and exchanging and waiting for the other process takes 17 ms.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import yaml

from bitllm.pipeline.make import make_system
from bitllm.pipeline.recipe import read_recipe
from bitllm.pipeline.run import Run
from bitllm.training.distributed import is_main

Stage = Literal["align", "sft", "rft"]
STEPS: dict[Stage, int] = {"align": 40, "sft": 60, "rft": 20}
FIRST, LEAST = 5, 1.6


def train(stage: Stage, config: Path) -> None:
    """Train one stage in this process and print the seconds from the fifth step to the last."""
    times: dict[str, dict[int, float]] = {}

    def progress(what: str, step: int, _: int) -> None:
        times.setdefault(what.partition(",")[0], {}).setdefault(step, time.perf_counter())

    make_system(Run(config.with_suffix(""), read_recipe(str(config)), progress), stage)
    at = list(times.values())[-1]  # what the stage starts from was trained before it
    if is_main():
        print(f"seconds {at[max(at)] - at[FIRST]:.3f}", flush=True)


def measure(stage: Stage, config: Path, n_processes: int) -> float:
    """Seconds of a stage in so many processes of one thread."""
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    words = [*(together if n_processes > 1 else []), __file__, "--worker", stage, str(config)]
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if not found:
        raise SystemExit(done.stderr[-2000:])
    return found[0]


def write_recipe(folder: Path, demo: Path, name: str, *, align_batch: int) -> Path:
    """The demo's recipe with few steps, on the data and models of a finished demo."""
    few: dict[str, Any] = {
        stage: {"optimizer": {"steps": steps}, "validate_every": 10_000} for stage, steps in STEPS.items()
    }
    few["align"]["optimizer"]["batch_size"] = align_batch
    data = {"store": "store", "split": "split.json", "targets": "targets.safetensors"}
    places: dict[str, Any] = {key: {"source": str(demo.resolve() / key)} for key in ("llm", "clip")}
    places["data"] = {key: str(demo.resolve() / place) for key, place in data.items()}
    trainer = {"save_every": 10_000, "report_to": [], "if_changed": "refuse"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"base": "demo", **places, **few, "trainer": trainer}))
    return path


def main() -> int:
    """Print the three ratios."""
    parser = argparse.ArgumentParser(description="Two processes against one.")
    parser.add_argument("demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--align-batch", type=int, default=224, help="the demo's is 224")
    parser.add_argument("--stages", nargs="+", choices=tuple(STEPS), default=list(STEPS))
    options = parser.parse_args()
    fastest: dict[Stage, dict[int, float]] = {stage: {} for stage in options.stages}
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(options.repeats):
            for n_processes in (1, 2):
                config = write_recipe(
                    Path(name), options.demo, f"{n_processes}-{repeat}", align_batch=options.align_batch
                )
                for stage in options.stages:
                    seconds = measure(stage, config, n_processes)
                    best = fastest[stage].get(n_processes, seconds)
                    fastest[stage][n_processes] = min(best, seconds)
    ratios = {stage: times[1] / times[2] for stage, times in fastest.items()}
    for stage, ratio in ratios.items():
        times = fastest[stage]
        print(f"{stage}: one process {times[1]:.1f} s, two {times[2]:.1f} s, {ratio:.2f} times as fast")
    return 0 if min(ratios.values()) >= LEAST else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        train(sys.argv[2], Path(sys.argv[3]))  # type: ignore[arg-type]
    else:
        sys.exit(main())
