"""A run that is killed repeatedly must give the same weights (bit for bit) and log as an uninterrupted run.

    python benchmarks/kills.py                      # 30 SIGKILLs, one process
    python benchmarks/kills.py --processes 2        # the same under torchrun
    python benchmarks/kills.py --flip 0.5           # and a byte flipped in half of the newest checkpoints

Each stage (align, sft, rft) is trained once without interruption, and once more while it is killed at random moments (a
fifth of them during the start, the others during training or a checkpoint) and restarted by the same command. After
every kill, each folder with a checkpoint's name must be complete.

Prediction, written before the first run: all equal, in one process and in two; no checkpoint unreadable.

Measured: 57 kills in one process and 30 in two landed, some with a byte flipped; weights and logs are equal in all
three stages. With the training loop on accelerate: 9 more in one process, one with a byte flipped; all equal.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from bitllm.training.checkpoint import damage

STAGES = ("align", "sft", "rft")
SIZES: dict[str, Any] = {
    "encoder": {
        "n_queries": 32,
        "rank": 16,
        "n_brain_tokens": 4,
        "token_width": 16,
        "n_blocks": 1,
        "n_frequencies": 16,
    },
    "align": {"optimizer": {"steps": 400, "batch_size": 32, "learning_rate": 1e-3, "log_every": 3}},
    "sft": {
        "adapter_layers": [0, 1],
        "optimizer": {"steps": 400, "batch_size": 16, "learning_rate": 3e-3, "log_every": 3},
    },
    "rft": {
        "n_captions": 4,
        "max_new_tokens": 8,
        "lora_rank": 2,
        "optimizer": {"steps": 120, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
    },
    "trainer": {"save_every": 7, "keep_checkpoints": 3},
}


def command(stage: str, config: Path, n_processes: int) -> list[str]:
    """The command of one stage."""
    python = [sys.executable, "-m"]
    if n_processes > 1:
        python += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes), "-m"]
    return [*python, "bitllm", "train", str(config), stage, "--out", str(config.parent / config.stem)]


def start(stage: str, config: Path, n_processes: int) -> subprocess.Popen[bytes]:
    """Start a stage."""
    return subprocess.Popen(
        command(stage, config, n_processes),
        stdout=subprocess.DEVNULL,
        stderr=(config.parent / f"{config.stem}-{stage}.err").open("ab"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to all that it started (torchrun gives its workers sessions of their own)."""
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family)
    process.wait()


def make_data(folder: Path) -> None:
    """A simulated brain with small models, by the demo's own road."""
    words = [sys.executable, "-m", "bitllm", "demo", "--recipe", "smoke", "--out", str(folder)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def write_config(folder: Path, name: str, demo: Path) -> Path:
    """The configuration of one run."""
    data = {"store": demo / "store", "split": demo / "split.json", "targets": demo / "targets.safetensors"}
    values: dict[str, Any] = {key: {"source": str(demo / key)} for key in ("llm", "clip")}
    values |= {"data": {key: str(place) for key, place in data.items()}, "bertscore": str(demo / "clip")}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, **SIZES}))
    return path


def results(folder: Path) -> dict[str, str]:
    """Checksums of everything that a stage leaves, besides TensorBoard's events and the record of the run."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "run.json"
    }


def require_equal(whole: Path, killed: Path) -> None:
    """End with status 1 unless both stages left the same bytes."""
    one, other = results(whole), results(killed)
    differ = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    print(f"  {len(one)} files, {len(differ)} differ {differ or ''}", flush=True)
    if differ:
        raise SystemExit(1)


def seconds_to_train(process: subprocess.Popen[bytes], log: Path) -> tuple[float, float]:
    """Seconds until the stage trains, and until it ended after that."""
    begun = time.perf_counter()
    while process.poll() is None and not log.is_file():
        time.sleep(0.01)
    trains = time.perf_counter()
    if process.wait() != 0:
        raise SystemExit(f"the run that is not killed failed: {process.args}")
    return trains - begun, time.perf_counter() - trains


def kill_once(
    stage: str, config: Path, n_processes: int, *, rng: np.random.Generator, starts: float, trains: float
) -> str:
    """Start the stage and kill it at a random moment; say where, or ``finished``.

    A checkpoint that is not whole ends the script, unless `flip` damaged it and no start has found it yet.
    """
    under_way = config.parent / config.stem / f"{stage}.training"
    log = under_way / "log.jsonl"
    before = log.stat().st_mtime_ns if log.is_file() else 0
    process = start(stage, config, n_processes)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, starts))
    else:
        while process.poll() is None and not (log.is_file() and log.stat().st_mtime_ns > before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15 * trains))
    if process.poll() is not None:
        return "finished" if process.returncode == 0 else f"failed with {process.returncode}"
    kill_all(process)
    checkpoints = sorted((under_way / "checkpoints").glob("step-*"))
    for place in checkpoints:
        if not place.suffix and damage(place) is not None and not (place.parent / f".{place.name}").exists():
            raise SystemExit(f"{place}: {damage(place)}")
    writing = any(place.suffix for place in checkpoints)
    whole = [place.name for place in checkpoints if not place.suffix]
    return f"{whole[-1] if whole else 'before the first checkpoint'}{', writing one' if writing else ''}"


def flip(checkpoints: Path, rng: np.random.Generator) -> str:
    """Flip a byte of the newest checkpoint, if there is one before it."""
    places = [place for place in sorted(checkpoints.glob("step-*")) if not place.suffix]
    if len(places) < 2:
        return ""
    files = sorted(places[-1].iterdir())
    file = files[int(rng.integers(len(files)))]
    content = bytearray(file.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(bytes(content))
    (checkpoints / f".{places[-1].name}").touch()
    return f", a byte of {places[-1].name}/{file.name} flipped"


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description="Kills against a run that was never stopped.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--flip", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder / "demo")
        whole, killed = (write_config(folder, run, folder / "demo") for run in ("whole", "killed"))
        landed = 0
        for number, stage in enumerate(STAGES):
            log = folder / "whole" / f"{stage}.training" / "log.jsonl"
            starts, trains = seconds_to_train(start(stage, whole, options.processes), log)
            print(f"{stage}: starts in {starts:.1f} s, trains {trains:.1f} s", flush=True)
            due = options.kills * (number + 1) // len(STAGES)
            place = folder / "killed" / stage
            while landed < due:
                where = kill_once(stage, killed, options.processes, rng=rng, starts=starts, trains=trains)
                if where.startswith("f"):
                    print(f"  {where}; again from the beginning", flush=True)
                    require_equal(folder / "whole" / stage, place)
                    shutil.rmtree(place)
                    continue
                landed += 1
                flipped = ""
                if rng.random() < options.flip:
                    flipped = flip(place.with_name(f"{stage}.training") / "checkpoints", rng)
                print(f"  killed after {where}{flipped}", flush=True)
            if start(stage, killed, options.processes).wait() != 0:
                raise SystemExit((folder / f"killed-{stage}.err").read_text())
            require_equal(folder / "whole" / stage, place)
        print(f"{landed} kills landed; weights and logs are equal in all three stages")


if __name__ == "__main__":
    main()
