"""What questions will train, and how long it will take here: said before the run, and again from what the run took."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bitllm.experiments.brain import data_name
from bitllm.experiments.systems import Trained
from bitllm.experiments.world import World
from bitllm.files import read_json


class Step(NamedTuple):
    """One step that a run needs."""

    name: str
    kind: str
    """data, clip, llm, targets, align, sft, sft with encoder, rft, judge or encoder."""


def steps_of_world(world: World) -> list[Step]:
    """The steps that all systems of a world share."""
    return [
        Step(f"{data_name(world.simulator_seed)} prepare", "data"),
        *(Step(world.step(kind), kind) for kind in ("clip", "llm", "targets")),
    ]


def steps_of_system(trained: Trained) -> list[Step]:
    """The steps of one system, besides those that all share."""
    world, learner = trained.world, trained.learner
    found = [Step(trained.step, trained.kind), Step(trained.judging_step, "judge")]
    if trained.before is not None:
        return [*steps_of_system(trained.before), *found]
    if learner.simulation:
        found.append(Step(f"{data_name(world.simulator_seed, learner)} prepare", "data"))
    if learner.encoder == "aligned":
        found.append(Step(world.align_step(trained.split, learner), "align"))
    if trained.config.diagnostics and trained.split == "poster":
        found.append(Step(trained.encoder_step, "encoder"))
    return found


class Plan:
    """All steps of a run, each once.

    Parameters
    ----------
    steps
        Steps of every system; repeated ones count once.
    expected
        Seconds of each kind of step on one core of the machine that the recipe was timed on.
    """

    def __init__(self, steps: Iterable[Step], expected: dict[str, float]) -> None:
        self.kinds = {step.name: step.kind for step in steps}
        self.expected = expected

    def in_words(self, done: dict[str, float]) -> str:
        """How much there is to do in one sentence, before the run."""
        left = Counter(kind for name, kind in self.kinds.items() if name not in done)
        parts = ", ".join(f"{n} {kind}" for kind, n in left.items())
        n_kept = len(self.kinds) - sum(left.values())
        kept = f" ({n_kept} of an earlier run are kept)" if n_kept else ""
        return (
            f"{sum(left.values())} steps to do{kept}: {parts or 'none'}; about {self.minutes_left(done):.0f} min of "
            f"one core like {'this one' if done else 'that of the recipe'}, several processes in this folder share them"
        )

    def minutes_left(self, done: dict[str, float]) -> float:
        """Time of the steps that are not done, in minutes: as in the recipe, corrected by what the others took here."""
        took = sum(seconds for name, seconds in done.items() if name in self.kinds)
        should = sum(self._seconds(name) for name in done if name in self.kinds)
        speed = took / should if should > 0 and took > 0 else 1.0
        return speed * sum(self._seconds(name) for name in self.kinds if name not in done) / 60

    def _seconds(self, name: str) -> float:
        return self.expected.get(self.kinds[name], 0.0)


def seconds_done(folder: Path) -> dict[str, float]:
    """Seconds that each step took that any process finished in the folder of worlds."""
    return {mark.stem: read_json(mark)["seconds"] for mark in (folder / "steps").glob("*.json")}
