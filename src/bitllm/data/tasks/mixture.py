"""A mixture of tasks: which exchanges about its image a training example has."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    questions_each
        Most exchanges in a `conversation`, as in `sft.questions_each`.
    """

    weights: Mapping[str, float]
    exchanges: Mapping[int | Trial, Mapping[str, tuple[Exchange, ...]]]
    questions_each: int = 1

    @classmethod
    def of(
        cls,
        store: Store,
        weights: Mapping[str, float],
        images: Iterable[int],
        *,
        by_trial: bool = True,
        questions_each: int = 1,
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
            questions_each,
        )

    def draw(
        self, nsd_id: int, *, seed: int, epoch: int, index: int, trial: Trial | None = None
    ) -> Exchange | None:
        """The exchange of an example, or ``None`` for a caption: a pure function of (seed, epoch, index).

        An image without exchanges of the tasks gets a caption. Questions about a trial are drawn if it is given.
        """
        by_task = self._about(nsd_id, trial)
        if not by_task:
            return None
        tasks = [task for task in self.weights if task == CAPTION or task in by_task]
        return self._drawn(by_task, tasks, "", seed=seed, epoch=epoch, index=index)

    def conversation(
        self, nsd_id: int, *, seed: int, epoch: int, index: int, trial: Trial | None = None
    ) -> tuple[Exchange, ...]:
        """The exchanges of an example in turn, at most ``questions_each``; none for a caption.

        The first is that of `draw`. Others of single questions follow, drawn in the same way but without captions; one
        that is drawn again is left out. A dialogue stays alone.
        """
        here = {"seed": seed, "epoch": epoch, "index": index}
        first = self.draw(nsd_id, trial=trial, **here)
        if first is None:
            return ()
        if len(first.questions) > 1:
            return (first,)
        by_task = self._about(nsd_id, trial)
        tasks = [task for task in self.weights if task in by_task]
        found = {first.id: first}
        for number in range(1, self.questions_each):
            one = self._drawn(by_task, tasks, str(number), **here)
            if one is not None and len(one.questions) == 1:
                found.setdefault(one.id, one)
        return tuple(found.values())

    def _about(self, nsd_id: int, trial: Trial | None) -> Mapping[str, tuple[Exchange, ...]]:
        """Exchanges about an image and, if one is given, about a trial, by task."""
        by_task = self.exchanges.get(nsd_id, {})
        return by_task if trial is None else {**by_task, **self.exchanges.get(trial, {})}

    def _drawn(
        self, by_task: Mapping[str, tuple[Exchange, ...]], tasks: Sequence[str], place: str, **here: int
    ) -> Exchange | None:
        """One exchange of one of the tasks, or ``None`` for a caption; ``place`` tells draws of an example apart."""
        ends = np.cumsum([self.weights[task] for task in tasks])
        number = drawn_number(purpose=f"{place}task", **here) * ends[-1]
        task = tasks[min(int(np.searchsorted(ends, number, side="right")), len(tasks) - 1)]
        if task == CAPTION:
            return None
        return by_task[task][choose(len(by_task[task]), purpose=f"{place}question", **here)]

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
