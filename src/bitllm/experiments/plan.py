"""What questions will train, and how long it will take here: said before the run, and again from what the run took."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

from bitllm.errors import ConfigError, DataError
from bitllm.experiments.brain import SplitName, data_name
from bitllm.experiments.config import ExperimentConfig
from bitllm.experiments.systems import Trained
from bitllm.experiments.world import World
from bitllm.files import read_json


class Step(NamedTuple):
    """One step that a run needs."""

    names: tuple[str, ...]
    """Its name; before learning rates are chosen one of several."""
    kind: str
    """data, clip, llm, targets, align, sft, sft with encoder, rft, judge or encoder."""


def steps_of_world(world: World) -> list[Step]:
    """The steps that all systems of a world share."""
    return [
        Step((f"{data_name(world.simulator_seed)} prepare",), "data"),
        *(Step((world.step(kind),), kind) for kind in ("clip", "llm", "targets")),
    ]


def steps_of_system(
    world: World,
    config: ExperimentConfig,
    split: SplitName,
    system: str,
    rates: dict[str, tuple[float, ...]],
) -> list[Step]:
    """The steps of one system at one of several learning rates, besides those of the system that it starts from."""
    before = [] if (start := config.systems[system].start) is None else [start]
    grids = [rates[name] for name in (system, *before)]
    choices = [
        Trained(world, config, split, system, dict(zip((system, *before), chosen, strict=True)))
        for chosen in product(*grids)
    ]
    one = choices[0]
    found = [
        Step(tuple(trained.step for trained in choices), one.kind),
        Step(tuple(trained.judging_step for trained in choices), "judge"),
    ]
    if before:
        return found
    if one.learner.simulation:
        found.append(Step((f"{data_name(world.simulator_seed, one.learner)} prepare",), "data"))
    if one.learner.encoder == "aligned":
        found.append(Step((world.align_step(split, one.learner),), "align"))
    if config.diagnostics and split == "poster":
        found.append(Step(tuple(trained.encoder_step for trained in choices), "encoder"))
    return found


class Plan:
    """All steps of a run, each once.

    Parameters
    ----------
    steps
        Steps of every system; repeated ones count once.
    expected
        Seconds of each kind of step in one process on the machine that the recipe was timed on.
    """

    def __init__(self, steps: Iterable[Step], expected: dict[str, float]) -> None:
        self.steps = tuple(dict.fromkeys(steps))
        self.expected = expected

    def in_words(self, done: dict[str, float]) -> str:
        """How much there is to do in one sentence, before the run."""
        left = Counter(step.kind for step in self.steps if not _is_in(step, done))
        parts = ", ".join(f"{n} {kind}" for kind, n in left.items())
        n_kept = len(self.steps) - sum(left.values())
        kept = f" ({n_kept} of an earlier run are kept)" if n_kept else ""
        what = f"{sum(left.values())} steps to do{kept}: {parts or 'none'}"
        if untimed := sorted(set(left) - set(self.expected)):
            return f"{what}; how long is not known: the recipe gives no seconds for {', '.join(untimed)}"
        like = "this one" if n_kept else "the one that the recipe was timed on"
        return (
            f"{what}; about {self.minutes_left(done):.0f} min of one process on a machine like {like}; several "
            f"processes in this folder share them"
        )

    def minutes_left(self, done: dict[str, float]) -> float:
        """Time of the steps that are not done, in minutes: as in the recipe, corrected by what the others took here."""
        took = should = left = 0.0
        for step in self.steps:
            expected = self.expected.get(step.kind, 0.0)
            if _is_in(step, done):
                took, should = took + max(done.get(name, 0.0) for name in step.names), should + expected
            else:
                left += expected
        return (took / should if took > 0 and should > 0 else 1.0) * left / 60


def _is_in(step: Step, done: dict[str, float]) -> bool:
    return any(name in done for name in step.names)


def seconds_done(folder: Path) -> dict[str, float]:
    """Seconds that each step took that any process finished in the folder of worlds."""
    done = {}
    for mark in (folder / "steps").glob("*.json"):
        with suppress(DataError):  # another process makes this step anew
            done[mark.stem] = read_json(mark)["seconds"]
    return done


def fewer_worlds(config: ExperimentConfig, brains: int | None, models: int | None) -> ExperimentConfig:
    """The same experiment on its first so many simulated brains and model seeds; None are all.

    Raises
    ------
    ConfigError
        If there are not so many.
    """
    return config.model_copy(
        update={
            "simulator_seeds": _first(config.simulator_seeds, brains, "--seeds", "brains"),
            "model_seeds": _first(config.model_seeds, models, "--model-seeds", "model seeds"),
        }
    )


def _first(seeds: tuple[int, ...], n: int | None, option: str, what: str) -> tuple[int, ...]:
    if n is not None and not 1 <= n <= len(seeds):
        raise ConfigError(
            f"reproduce: expected {option} of 1 to {len(seeds)}, the {what} of the configuration, found {n}"
        )
    return seeds[:n]
