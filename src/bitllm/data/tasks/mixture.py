"""A mixture of tasks: which exchange about its image a training example has."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from bitllm.data.prompt import choose, drawn_number
from bitllm.data.store import Store
from bitllm.data.tasks.exchange import Exchange, Question, exchanges

Trial = tuple[str, int]
"""Subject, and row of its betas."""
CAPTION = "caption"
"""The task of captions, which every image has."""
CAPTIONS_ALONE: Mapping[str, float] = {CAPTION: 1.0}


def _checked(weights: dict[str, float]) -> dict[str, float]:
    if min(weights.values(), default=0) < 0 or not any(weights.values()):
        raise ValueError("expected weights from 0 with one above 0; set caption to 1")
    return weights


TaskWeights = Annotated[dict[str, float], AfterValidator(_checked)]
"""Weight of each task of a store (`bitllm tasks STORE` lists them) and of `caption`."""


@dataclass(frozen=True)
class TaskMixture:
    """Weights of tasks, and the exchanges of each image and of single trials.

    Parameters
    ----------
    weights
        Weight of each task above 0. The tasks that an image has are drawn in proportion to their weights.
    exchanges
        Exchanges of each image, or of a trial (subject and row), by task.
    """

    weights: Mapping[str, float]
    exchanges: Mapping[int | Trial, Mapping[str, tuple[Exchange, ...]]]

    @classmethod
    def of(
        cls, store: Store, weights: Mapping[str, float], images: Iterable[int], *, by_trial: bool = True
    ) -> "TaskMixture":
        """The mixture for some images of a store, which needs no questions for captions alone.

        Parameters
        ----------
        by_trial
            Whether a question about a trial is drawn for this trial alone; else for its image, where there are no
            trials, as in training on text.

        Raises
        ------
        DataError
            If the store has no questions of a task with a weight.
        """
        used = {task: weight for task, weight in weights.items() if weight > 0}
        asked = [task for task in used if task != CAPTION]
        chosen, found = frozenset(images), dict[int | Trial, dict[str, list[Exchange]]]()
        for exchange in exchanges(store, tasks=asked, of_trials=None) if asked else ():
            if exchange.nsd_id in chosen:
                place = exchange.trial if by_trial and exchange.trial is not None else exchange.nsd_id
                found.setdefault(place, {}).setdefault(exchange.task, []).append(exchange)
        return cls(
            used,
            {
                place: {task: tuple(of_task) for task, of_task in by_task.items()}
                for place, by_task in found.items()
            },
        )

    def draw(
        self, nsd_id: int, *, seed: int, epoch: int, index: int, trial: Trial | None = None
    ) -> Exchange | None:
        """The exchange of an example, or ``None`` for a caption: a pure function of (seed, epoch, index).

        An image without exchanges of the tasks gets a caption. Questions about a trial are drawn if it is given.
        """
        by_task = self.exchanges.get(nsd_id, {})
        if trial is not None:
            by_task = {**by_task, **self.exchanges.get(trial, {})}
        if not by_task:
            return None
        here = {"seed": seed, "epoch": epoch, "index": index}
        tasks = [task for task in self.weights if task == CAPTION or task in by_task]
        ends = np.cumsum([self.weights[task] for task in tasks])
        number = drawn_number(purpose="task", **here) * ends[-1]
        task = tasks[min(int(np.searchsorted(ends, number, side="right")), len(tasks) - 1)]
        if task == CAPTION:
            return None
        return by_task[task][choose(len(by_task[task]), purpose="question", **here)]

    def all(self) -> Iterator[Exchange]:
        """Every exchange."""
        return (one for by_task in self.exchanges.values() for of_task in by_task.values() for one in of_task)

    def question(self, nsd_id: int, *, seed: int, epoch: int, index: int) -> Question | None:
        """One turn of the exchange of an example, or ``None`` for a caption; drawn like `draw`."""
        exchange = self.draw(nsd_id, seed=seed, epoch=epoch, index=index)
        if exchange is None:
            return None
        n_turns = len(exchange.questions)
        return Question(exchange, choose(n_turns, purpose="turn", seed=seed, epoch=epoch, index=index))


def tasks_with_questions(weights: Mapping[str, float]) -> tuple[str, ...]:
    """The tasks with a weight, without captions."""
    return tuple(task for task, weight in weights.items() if weight > 0 and task != CAPTION)


def is_captions_alone(weights: Mapping[str, float]) -> bool:
    """Whether no other task than captions has a weight."""
    return not tasks_with_questions(weights)
