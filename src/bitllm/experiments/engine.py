"""Run experiments: choose each system's learning rate on subj07, then train and evaluate all systems on subj08.

The learning rates are chosen in the first world only, by the mean CIDEr of subj07's validation images after training
on subj01 to subj06. Then every world trains every system on subj01 to subj07 at its chosen rate. All systems of a
world have the same brain, LLM, seed and number of steps.

Worlds are shared by all experiments, and by all processes that run in the same folder: the same command in another
terminal (or on another machine with the same file system) takes a share of the work.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from bitllm.errors import DataError
from bitllm.experiments.config import ExperimentConfig
from bitllm.experiments.grid import Cell, SplitName, World
from bitllm.experiments.record import RECIPE, Kept, make_record, require_one_recipe, write_run
from bitllm.files import read_json
from bitllm.pipeline.steps import Steps, Unit
from bitllm.training.logging import Progress

WORLDS = "worlds"

Experiments = dict[str, ExperimentConfig]
Rates = dict[str, dict[str, Any]]
"""How each system's learning rate was chosen."""


class Grid:
    """The folder of experiments with a common recipe: ``worlds/`` with what they share, and a folder for each.

    Published worlds (``kept``, by experiment) are not run again.
    """

    def __init__(
        self,
        out: Path,
        experiments: Experiments,
        *,
        tell: Callable[[str], None],
        progress: Progress,
        kept: Mapping[str, Kept] | None = None,
    ) -> None:
        self.out, self.experiments, self.tell, self.progress = Path(out), experiments, tell, progress
        self.kept = kept or {}
        self.steps = Steps(self.out / WORLDS, tell, "reproduce", tells_kept=False)
        self.first = next(iter(experiments.values()))
        self._worlds: dict[tuple[int, int], World] = {}
        with self.steps.claim("recipe", waits=True):
            require_one_recipe(self.steps.folder / RECIPE, self.first.recipe)

    def world(self, seeds: tuple[int, int]) -> World:
        """The world of a simulator seed and a model seed."""
        if seeds not in self._worlds:
            self._worlds[seeds] = World(
                self.out / WORLDS, self.first.recipe, *seeds, self.tell, self.progress
            )
        return self._worlds[seeds]

    def kept_rows(self, name: str, seeds: tuple[int, int]) -> pd.DataFrame | None:
        """The published rows of an experiment in a world; None if it must be run."""
        return self.kept[name].rows_of(self.world(seeds).name) if name in self.kept else None

    def units(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every experiment in each of its worlds that must be run; world by world."""
        every = {seeds for config in self.experiments.values() for seeds in config.worlds}
        for seeds in sorted(every, key=lambda one: (one[1], one[0])):
            for name, config in self.experiments.items():
                if seeds in config.worlds and self.kept_rows(name, seeds) is None:
                    yield name, seeds

    def cells(self, name: str, seeds: tuple[int, int], rates: Mapping[str, float]) -> list[Cell]:
        """The systems of an experiment in one world, with their chosen learning rates."""
        config, world = self.experiments[name], self.world(seeds)
        return [Cell(world, config, "poster", system, dict(rates)) for system in config.systems]


def reproduce(
    experiments: Experiments,
    out: Path,
    *,
    is_quick: bool,
    tell: Callable[[str], None],
    progress: Progress,
    kept: Mapping[str, Kept] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run experiments in ``out``; finished steps of an earlier run are not repeated.

    Worlds in ``kept`` are not run: their rows are copied, and their learning rates are used in the other worlds.
    ``NAME/results.parquet`` (one row for each world, system, input and image) and ``NAME/results.json`` (their
    origin) are written after every world.

    Returns
    -------
    dict
        Content of each experiment's ``results.json``.
    """
    grid = Grid(out, experiments, tell=tell, progress=progress, kept=kept)
    for name, config in experiments.items():
        tell(f"{name}: {config.question}")
    plan = plan_of(grid)
    tell(plan.in_words(seconds_done(grid.steps.folder)))
    chosen = choose_rates(grid)
    records: dict[str, dict[str, Any]] = {}

    def collect(name: str) -> None:
        with grid.steps.claim(f"{name} results", waits=True):
            records[name] = _collect(grid, name, chosen[name], is_quick=is_quick)

    def do(name: str, seeds: tuple[int, int]) -> None:
        for cell in grid.cells(name, seeds, _rates(chosen[name])):
            cell.make()
        collect(name)
        if minutes := plan.minutes_left(seconds_done(grid.steps.folder)):
            tell(f"{name} {seeds} done; about {minutes:.0f} min of one process are left")

    grid.steps.divide(
        {f"{name} {seeds}": Unit(f"world {seeds}", partial(do, name, seeds)) for name, seeds in grid.units()}
    )
    for name in experiments:
        collect(name)
    return records


def choose_rates(grid: Grid) -> dict[str, Rates]:
    """For each experiment and system, the learning rate with the highest mean CIDEr on subj07's validation images."""
    chosen: dict[str, Rates] = {
        name: grid.kept[name].rates if name in grid.kept else {} for name in grid.experiments
    }
    for of_children in (False, True):  # these start from an sft at its chosen rate
        tried = [
            (name, cell)
            for name in grid.experiments
            if name not in grid.kept
            for cell in _candidates(grid, name, _rates(chosen[name]), of_children=of_children)
        ]
        grid.steps.divide({cell.step.replace("/", " "): Unit(cell.label, cell.make) for _, cell in tried})
        for name, cell in tried:
            found = chosen[name].setdefault(cell.name, {"CIDEr, validation": {}})
            rows, scores = cell.rows(), found["CIDEr, validation"]
            cider = rows[rows["control"] == "real"]["cider"].mean()
            scores[f"{cell.rates[cell.name]:g}"] = round(float(cider), 2)
            found["chosen"] = best_rate({float(rate): score for rate, score in scores.items()})
        _fill_in(grid, chosen)
    for name, of_system in chosen.items():
        rates = ", ".join(f"{system} {row['chosen']:g}" for system, row in of_system.items())
        is_chosen = any("CIDEr, validation" in row for row in of_system.values())
        grid.tell(f"{name}: learning rates, {'chosen on subj07' if is_chosen else 'set beforehand'}: {rates}")
    return chosen


def _rates(chosen: Rates) -> dict[str, float]:
    return {system: row["chosen"] for system, row in chosen.items()}


def _candidates(grid: Grid, name: str, rates: dict[str, float], *, of_children: bool) -> list[Cell]:
    """Systems with every learning rate of their grids, in the first world."""
    config = grid.experiments[name]
    world = grid.world(config.worlds[0])
    return [
        Cell(world, config, "develop", system, rates | {system: rate})
        for system, changes in config.systems.items()
        if (changes.parent is not None) == of_children and _is_tried(config, system)
        for rate in config.grid_of(system)
    ]


def _is_tried(config: ExperimentConfig, system: str) -> bool:
    return config.systems[system].rate_of is None and len(config.grid_of(system)) > 1


def _fill_in(grid: Grid, chosen: dict[str, Rates]) -> None:
    """Learning rates of systems that take another system's, or have only one."""
    for name, config in grid.experiments.items():
        for system, changes in config.systems.items():
            if changes.rate_of in chosen[name]:
                rate = chosen[name][changes.rate_of]["chosen"]
                chosen[name][system] = {"chosen": rate, "taken from": changes.rate_of}
            elif changes.rate_of is None and len(rates := config.grid_of(system)) == 1:
                chosen[name][system] = {"chosen": rates[0], "the only one": True}


def best_rate(tried: dict[float, float]) -> float:
    """The learning rate with the highest score; of equal ones the lowest."""
    return min(tried, key=lambda rate: (-tried[rate], rate))


def _collect(grid: Grid, name: str, chosen: Rates, *, is_quick: bool) -> dict[str, Any]:
    """Write the rows of all finished worlds of an experiment, and their record."""
    config, parts, done = grid.experiments[name], [], []
    for seeds in config.worlds:
        if (rows := grid.kept_rows(name, seeds)) is not None:
            done.append(grid.world(seeds).name)
            parts.append(rows)
            continue
        cells = grid.cells(name, seeds, _rates(chosen))
        if all(cell.is_evaluated for cell in cells):
            done.append(grid.world(seeds).name)
            parts += [cell.rows() for cell in cells]
    record = make_record(name, config, is_quick=is_quick) | {
        "worlds": done,
        "is_complete": len(done) == len(config.worlds),
        "learning_rates": chosen,
    }
    if name in grid.kept:
        record["earlier"] = grid.kept[name].origins()
    if parts:
        write_run(grid.out / name, pd.concat(parts, ignore_index=True), record)
    if 0 < len(done) < len(config.worlds):
        grid.tell(f"{name}: {len(done)} of {len(config.worlds)} worlds are done")
    return record


class Plan:
    """The steps of a run, and their expected times.

    Parameters
    ----------
    steps
        Kind of each step, by its possible names (RUN/STEP). A step has several names until learning rates are chosen.
    expected
        Seconds of each kind of step, measured in one process.
    """

    def __init__(self, steps: Iterable[tuple[tuple[str, ...], str]], expected: dict[str, float]) -> None:
        self.steps, self.expected = dict(steps), expected

    def in_words(self, done: dict[str, float]) -> str:
        """A sentence about what remains to be done, given the seconds of every finished step."""
        left = Counter(kind for names, kind in self.steps.items() if done.keys().isdisjoint(names))
        parts = ", ".join(f"{n} {kind}" for kind, n in left.items())
        n_kept = len(self.steps) - left.total()
        kept = f" ({n_kept} were done by an earlier run)" if n_kept else ""
        what = f"{left.total()} steps to do{kept}: {parts or 'none'}"
        if untimed := sorted(set(left) - set(self.expected)):
            return f"{what}; how long is not known: {', '.join(untimed)} of this recipe were never timed"
        like = "this one" if n_kept else "the one that the recipe was timed on"
        return (
            f"{what}; about {self.minutes_left(done):.0f} min of one process on a machine like {like}; several "
            f"processes in this folder share them"
        )

    def minutes_left(self, done: dict[str, float]) -> float:
        """Expected time of the remaining steps in minutes, corrected by the times of finished steps."""
        took = timed = left = 0.0
        for names, kind in self.steps.items():
            expected = self.expected.get(kind, 0.0)
            if done.keys().isdisjoint(names):
                left += expected
            else:
                took, timed = took + max(done.get(name, 0.0) for name in names), timed + expected
        return (took / timed if took > 0 and timed > 0 else 1.0) * left / 60


def seconds_done(worlds: Path) -> dict[str, float]:
    """Seconds of every finished step in a folder of worlds."""
    done = {}
    for mark in worlds.glob("*/steps/*.json"):
        with suppress(DataError):  # another process makes this step again
            done[f"{mark.parent.parent.name}/{mark.stem}"] = read_json(mark)["seconds"]
    return done


def plan_of(grid: Grid) -> Plan:
    """Every step of all experiments."""
    steps: list[tuple[tuple[str, ...], str]] = []
    for name, seeds in grid.units():
        config, kept = grid.experiments[name], grid.kept.get(name)
        rates = {system: config.grid_of(system) for system in config.systems}
        if kept is not None:
            rates = {system: (row["chosen"],) for system, row in kept.rates.items()}
        is_first = seeds == config.worlds[0] and kept is None
        for system in config.systems:
            steps += _steps_of(grid, name, seeds, "poster", system, rates)
            for rate in config.grid_of(system) if is_first and _is_tried(config, system) else ():
                steps += _steps_of(grid, name, seeds, "develop", system, rates | {system: (rate,)})
    return Plan(steps, grid.first.seconds)


def _steps_of(
    grid: Grid,
    name: str,
    seeds: tuple[int, int],
    split: SplitName,
    system: str,
    rates: Mapping[str, tuple[float, ...]],
) -> list[tuple[tuple[str, ...], str]]:
    """The steps of a system, for all learning rates that it and its parent may have."""
    config, parent = grid.experiments[name], grid.experiments[name].systems[system].parent
    names = [system] if parent is None else [system, parent]
    cells = [
        Cell(grid.world(seeds), config, split, system, dict(zip(names, some, strict=True)))
        for some in product(*(rates[name] for name in names))
    ]
    every = zip(*(cell.steps() for cell in cells), strict=True)
    return [(tuple(dict.fromkeys(step for step, _ in same)), same[0][1]) for same in every]
