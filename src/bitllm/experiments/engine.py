"""Run one experiment: choose a learning rate for every system on subj07, freeze it, train and judge on subj08.

The learning rates are chosen in the first world alone, by the mean CIDEr of subj07's validation images after training
on subj01 to subj06. Then every world trains every system on subj01 to subj07 at its chosen rate. All systems of a
world have the same brain, encoder, LLM, seed and number of steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm.experiments.config import ExperimentConfig
from bitllm.experiments.systems import make_system, read_rows
from bitllm.experiments.world import World
from bitllm.files import file_written_whole, sha256_of_json, write_json
from bitllm.simulation.parameters import SIMULATION_VERSION
from bitllm.training.callbacks import Progress
from bitllm.training.steps import Steps
from bitllm.training.workspace import git_revision, versions

ROWS, RECORD = "results.parquet", "results.json"


def reproduce(
    name: str,
    config: ExperimentConfig,
    out: Path,
    *,
    is_quick: bool,
    tell: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Run an experiment in ``out``; steps that an earlier run finished are kept.

    ``results.parquet`` (one row for each world, system, input and image) and ``results.json`` (where they come from)
    are written whole after every world.

    Returns
    -------
    dict
        What stands in ``results.json``.
    """
    steps = Steps(Path(out), tell, "reproduce")
    worlds = [World(Path(out), config, *seeds, steps, progress) for seeds in config.worlds]
    tell(f"{name}: {config.question}")
    tell(plan_of(config))
    chosen = choose_rates(worlds[0])
    tell("learning rates, chosen on subj07: " + ", ".join(f"{k} {v['chosen']:g}" for k, v in chosen.items()))
    rates = {system: row["chosen"] for system, row in chosen.items()}
    record: dict[str, Any] = {}
    for n_done, world in enumerate(worlds, start=1):
        _make_world(world, rates)
        rows = pd.concat(
            [read_rows(one, "poster", system, rates[system]) for one in worlds[:n_done] for system in rates],
            ignore_index=True,
        )
        record = _record(name, config, steps, is_quick=is_quick) | {
            "worlds": [one.name for one in worlds[:n_done]],
            "is_complete": n_done == len(worlds),
            "learning_rates": chosen,
        }
        write_results(Path(out), rows, record)
        if n_done < len(worlds):
            minutes = seconds_per_world(steps, worlds[:n_done]) * (len(worlds) - n_done) / 60
            tell(f"world {n_done} of {len(worlds)} done; the rest will take about {minutes:.0f} min here")
    return record


def plan_of(config: ExperimentConfig) -> str:
    """How many stages will be trained, in one sentence."""
    n_worlds, n_systems = len(config.worlds), len(config.systems)
    n_choices = sum(len(config.rates_of(name)) for name in config.systems)
    n = n_choices + 1 + n_worlds * (n_systems + 1)
    return (
        f"{n} stages will be trained: {n_choices} runs of {n_systems} systems and one align to choose learning rates, "
        f"then {n_systems} systems and one align in each of {n_worlds} worlds "
        f"({len(config.simulator_seeds)} brains, {len(config.model_seeds)} model seeds); "
        "a small CLIP and a small Llama besides in each"
    )


def choose_rates(world: World) -> dict[str, dict[str, Any]]:
    """The learning rate of every system with the highest mean CIDEr on subj07's validation images, and all that ran."""
    world.make_data()
    world.make_neighbours()
    world.make_align("develop")
    found: dict[str, dict[str, Any]] = {}
    for name, system in world.config.systems.items():
        before = {} if system.after is None else {system.after: found[system.after]["chosen"]}
        tried = {}
        for rate in world.config.rates_of(name):
            make_system(world, "develop", name, before | {name: rate})
            rows = read_rows(world, "develop", name, rate)
            tried[rate] = float(rows[rows["control"] == "real"]["cider"].mean())
        found[name] = {
            "chosen": best_rate(tried),
            "CIDEr, validation": {f"{rate:g}": round(cider, 2) for rate, cider in tried.items()},
        }
    return found


def best_rate(tried: dict[float, float]) -> float:
    """The rate with the highest score; the lowest of those that are equal."""
    return min(tried, key=lambda rate: (-tried[rate], rate))


def _make_world(world: World, rates: dict[str, float]) -> None:
    world.make_data()
    if f"{world.name} targets" not in world.steps.keys:
        world.make_neighbours()
    world.make_align("poster")
    for name in rates:
        make_system(world, "poster", name, rates)


def seconds_per_world(steps: Steps, done: list[World]) -> float:
    """Mean time of the worlds so far, the brains' shared data included, the choice of learning rates left out."""
    names = {one.name for one in done} | {one.brain for one in done}
    spent = [
        seconds
        for step, seconds in steps.seconds.items()
        if step.split()[0] in names and "develop" not in step.split()
    ]
    return float(np.sum(spent)) / len(done)


def write_results(folder: Path, rows: pd.DataFrame, record: dict[str, Any]) -> None:
    """Write rows and their record, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows.assign(question=record["question"], config_sha256=record["config_sha256"])
    with file_written_whole(folder / ROWS) as unfinished:
        rows.to_parquet(unfinished, index=False)
    write_json(folder / RECORD, record)


def _record(name: str, config: ExperimentConfig, steps: Steps, *, is_quick: bool) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    return {
        "question": name,
        "command": f"bitllm reproduce {name}" + (" --quick" if is_quick else ""),
        "data": f"simulated (preset {config.preset}, simulation version {SIMULATION_VERSION})",
        "is_quick": is_quick,
        "config_sha256": sha256_of_json(content),
        "config": content,
        "simulation_version": SIMULATION_VERSION,
        "versions": versions(),
        "git_revision": git_revision(),
        "seconds": round(sum(steps.seconds.values()), 1),
    }
