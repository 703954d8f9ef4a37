"""Run experiments: choose a learning rate for every system on subj07, freeze it, train and judge on subj08.

The learning rates are chosen in the first world alone, by the mean CIDEr of subj07's validation images after training
on subj01 to subj06. Then every world trains every system on subj01 to subj07 at its chosen rate. All systems of a
world have the same brain, LLM, seed and number of steps.

Worlds are shared by all questions, and by all processes that run in the same folder: start the same command again in
another terminal (or on another machine of the same file system) and the two divide the work.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bitllm.experiments.config import ExperimentConfig
from bitllm.experiments.encoders import make_diagnostics, rows_with_encoder
from bitllm.experiments.plan import Plan, Step, seconds_done, steps_of_system, steps_of_world
from bitllm.experiments.record import RECIPE, Kept, make_record, require_one_recipe, write_run
from bitllm.experiments.systems import Trained
from bitllm.experiments.world import World
from bitllm.pipeline.steps import Steps
from bitllm.training.logging import Progress

WORLDS = "worlds"

Experiments = dict[str, ExperimentConfig]
Rates = dict[str, dict[str, Any]]


class Unit(NamedTuple):
    """What one process does at a time."""

    place: str
    """Where much is shared with other units."""
    do: Callable[[], None]


class Laboratory:
    """The folder in which questions are put to the test: ``worlds/`` for what they share, one folder for each.

    Parameters
    ----------
    out
        The folder.
    experiments
        The questions by name, of one recipe.
    tell
        Called with one line for each step.
    progress
        Called as ``progress(what, done, total)``.
    kept
        By question the worlds that need not be done again.

    Raises
    ------
    OutputError
        If the folder holds worlds of another recipe, version or simulation.
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
        self.recipe = next(iter(experiments.values())).recipe
        with self.steps.claim("recipe", waits=True):
            require_one_recipe(self.steps.folder / RECIPE, self.recipe)

    def world(self, seeds: tuple[int, int]) -> World:
        """One world."""
        return World(self.out / WORLDS, self.recipe, *seeds, self.steps, self.progress)

    def seconds_done(self) -> dict[str, float]:
        """Seconds of every step that is done in the folder."""
        return seconds_done(self.steps.folder)

    def kept_rows(self, name: str, seeds: tuple[int, int]) -> pd.DataFrame | None:
        """The rows of a question in a world that need not be done again; None where it must be done."""
        return self.kept[name].rows_of(self.world(seeds).name) if name in self.kept else None

    def units(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every question in every world of it that is not kept: all questions in a world before the next world."""
        every = {seeds: None for config in self.experiments.values() for seeds in config.worlds}
        for seeds in sorted(every, key=lambda one: (one[1], one[0])):
            for name, config in self.experiments.items():
                if seeds in config.worlds and self.kept_rows(name, seeds) is None:
                    yield name, seeds

    def divide(self, units: dict[str, Unit]) -> None:
        """Do all units; those that another process is doing are left to it and looked at again at the end.

        Units of a place where another process works come last: they would wait for what they share.
        """
        pending = dict(units)
        while pending:
            name = self._do_one(pending, alone=True) or self._do_one(pending, alone=False)
            if name is None:
                time.sleep(2)
            else:
                del pending[name]

    def _do_one(self, pending: dict[str, Unit], *, alone: bool) -> str | None:
        """Do the first unit that no other process does (and at whose place none works); its name."""
        for name, unit in pending.items():
            with self.steps.claim(name) as is_mine, self.steps.claim(f"at {unit.place}") as is_alone:
                if is_mine and (is_alone or not alone):
                    unit.do()
                    return name
        return None


def reproduce(
    experiments: Experiments,
    out: Path,
    *,
    is_quick: bool,
    tell: Callable[[str], None],
    progress: Progress,
    kept: Mapping[str, Kept] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run questions in ``out``; steps that an earlier run finished are kept.

    Worlds in ``kept`` are not run: their rows are taken over, and their learning rates hold for the others.

    ``NAME/results.parquet`` (one row for each world, system, input and image) and ``NAME/results.json`` (where they
    come from) are written whole after every world.

    Returns
    -------
    dict
        What stands in each question's ``results.json``.
    """
    laboratory = Laboratory(out, experiments, tell=tell, progress=progress, kept=kept)
    for name, config in experiments.items():
        tell(f"{name}: {config.question}")
    plan = plan_of(laboratory)
    tell(plan.in_words(laboratory.seconds_done()))
    chosen = choose_rates(laboratory)
    records: dict[str, dict[str, Any]] = {}

    def do(name: str, seeds: tuple[int, int]) -> None:
        make_systems(laboratory, name, seeds, chosen[name])
        with laboratory.steps.claim(f"{name} results", waits=True):
            records[name] = _collect(laboratory, name, chosen[name], is_quick=is_quick)
        if minutes := plan.minutes_left(laboratory.seconds_done()):
            tell(f"{name} {seeds} done; about {minutes:.0f} min of one process are left")

    laboratory.divide(
        {
            f"unit {name} {seeds}": Unit(f"world {seeds}", partial(do, name, seeds))
            for name, seeds in laboratory.units()
        }
    )
    for name in experiments:
        with laboratory.steps.claim(f"{name} results", waits=True):
            records[name] = _collect(laboratory, name, chosen[name], is_quick=is_quick)
    return records


def choose_rates(laboratory: Laboratory) -> dict[str, Rates]:
    """For each question and system the learning rate with the highest mean CIDEr on subj07's validation images."""
    chosen: dict[str, Rates] = {
        name: laboratory.kept[name].rates if name in laboratory.kept else {}
        for name in laboratory.experiments
    }
    for of_later in (False, True):  # rft and what goes on start from sft at its chosen rate
        tried = [
            (name, trained)
            for name in laboratory.experiments
            if name not in laboratory.kept
            for trained in _candidates(laboratory, name, chosen[name], of_later=of_later)
        ]
        laboratory.divide({f"unit {one.step}": Unit(one.step, one.make) for _, one in tried})
        for name, trained in tried:
            found = chosen[name].setdefault(trained.name, {"CIDEr, validation": {}})
            rows = trained.rows()
            scores = found["CIDEr, validation"]
            scores[f"{trained.rates[trained.name]:g}"] = round(
                float(rows[rows["control"] == "real"]["cider"].mean()), 2
            )
            found["chosen"] = best_rate({float(rate): cider for rate, cider in scores.items()})
        _fill_in(laboratory, chosen)
    for name, of_system in chosen.items():
        rates = ", ".join(f"{system} {row['chosen']:g}" for system, row in of_system.items())
        is_chosen = any("CIDEr, validation" in row for row in of_system.values())
        how = "chosen on subj07" if is_chosen else "set beforehand"
        laboratory.tell(f"{name}: learning rates, {how}: {rates}")
    return chosen


def _candidates(laboratory: Laboratory, name: str, chosen: Rates, *, of_later: bool) -> list[Trained]:
    """Every system at every learning rate of its grid, in the first world: what starts from others later."""
    config = laboratory.experiments[name]
    world = laboratory.world(config.worlds[0])
    return [
        Trained(world, config, "develop", system, _rates_before(config, system, chosen) | {system: rate})
        for system, changes in config.systems.items()
        if (changes.start is not None) == of_later and len(config.rates_of(system)) > 1
        for rate in config.rates_of(system)
    ]


def _rates_before(config: ExperimentConfig, system: str, chosen: Rates) -> dict[str, float]:
    start = config.systems[system].start
    return {} if start is None else {start: chosen[start]["chosen"]}


def _fill_in(laboratory: Laboratory, chosen: dict[str, Rates]) -> None:
    """Systems whose stage has one learning rate have it without a trial; those that take another's rate have that."""
    for name, config in laboratory.experiments.items():
        for system, changes in config.systems.items():
            if changes.rate_of in chosen[name]:
                rate = chosen[name][changes.rate_of]["chosen"]
                chosen[name][system] = {"chosen": rate, "taken from": changes.rate_of}
            elif len(grid := config.rates_of(system)) == 1:
                chosen[name][system] = {"chosen": grid[0], "the only one": True}


def best_rate(tried: dict[float, float]) -> float:
    """The rate with the highest score; the lowest of those that are equal."""
    return min(tried, key=lambda rate: (-tried[rate], rate))


def systems_in(laboratory: Laboratory, name: str, seeds: tuple[int, int], chosen: Rates) -> list[Trained]:
    """Every system of a question in one world, at its chosen rate."""
    rates = {system: row["chosen"] for system, row in chosen.items()}
    config, world = laboratory.experiments[name], laboratory.world(seeds)
    return [Trained(world, config, "poster", system, rates) for system in config.systems]


def make_systems(laboratory: Laboratory, name: str, seeds: tuple[int, int], chosen: Rates) -> None:
    """Train and judge every system of a question in one world."""
    for trained in systems_in(laboratory, name, seeds, chosen):
        trained.make()
        if trained.has_diagnostics:
            make_diagnostics(trained)


def plan_of(laboratory: Laboratory) -> Plan:
    """Every step of all questions."""
    steps: list[Step] = []
    for name, seeds in laboratory.units():
        config, world = laboratory.experiments[name], laboratory.world(seeds)
        grids = _grids(laboratory, name)
        steps += steps_of_world(world)
        for system in config.systems:
            steps += steps_of_system(world, config, "poster", system, grids)
            is_first = seeds == config.worlds[0] and name not in laboratory.kept
            tried = config.rates_of(system) if is_first else ()
            for rate in tried if len(tried) > 1 else ():
                steps += steps_of_system(world, config, "develop", system, grids | {system: (rate,)})
    return Plan(steps, laboratory.recipe.seconds)


def _grids(laboratory: Laboratory, name: str) -> dict[str, tuple[float, ...]]:
    """The learning rates that each system of a question may end with."""
    if name in laboratory.kept:
        return {system: (row["chosen"],) for system, row in laboratory.kept[name].rates.items()}
    config = laboratory.experiments[name]
    return {system: config.grid_of(system) for system in config.systems}


def _collect(laboratory: Laboratory, name: str, chosen: Rates, *, is_quick: bool) -> dict[str, Any]:
    """Write the rows of all worlds of a question that are done, and their record."""
    config, parts, done = laboratory.experiments[name], [], []
    for seeds in config.worlds:
        if (rows := laboratory.kept_rows(name, seeds)) is not None:
            done.append(laboratory.world(seeds).name)
            parts.append(rows)
            continue
        systems = systems_in(laboratory, name, seeds, chosen)
        if not all(trained.is_judged for trained in systems):
            continue
        done.append(systems[0].world.name)
        parts += [rows_with_encoder(one) if one.has_diagnostics else one.rows() for one in systems]
    record = make_record(name, config, is_quick=is_quick) | {
        "worlds": done,
        "is_complete": len(done) == len(config.worlds),
        "learning_rates": chosen,
    }
    if name in laboratory.kept:
        record["earlier"] = laboratory.kept[name].origins()
    if parts:
        write_run(laboratory.out / name, pd.concat(parts, ignore_index=True), record)
    if 0 < len(done) < len(config.worlds):
        laboratory.tell(f"{name}: {len(done)} of {len(config.worlds)} worlds are done")
    return record
