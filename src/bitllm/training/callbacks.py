"""What happens between the steps of a stage: log, progress, validation, an orderly stop."""

import json
import signal
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bitllm.files import file_written_whole
from bitllm.training.ranks import any_rank

Progress = Callable[[str, int, int], None]
"""Called with what is under way (with the last loss), how much is done, how much there is."""


class JsonLinesLog(TrainerCallback):
    """Every row that is logged, as one JSON object a line; a resumed run takes back what it will do again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        kept = [row for row in read_log(self.path) if row["step"] <= state.global_step]
        with file_written_whole(self.path) as unfinished:
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        kept = {
            key: value
            for key, value in (logs or {}).items()
            if not key.startswith("train_") and key not in ("epoch", "total_flos")
        }
        if kept and state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **kept}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; a last line that a killed process did not finish is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class StepProgress(TrainerCallback):
    """Tells the caller how many steps are done, and the loss."""

    def __init__(self, what: str, progress: Progress) -> None:
        self.what, self.progress, self.loss = what, progress, ""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if "loss" in (logs or {}):
            self.loss = f", loss {(logs or {})['loss']:.3f}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress(self.what + self.loss, state.global_step, state.max_steps)


class Choice(NamedTuple):
    """How the weights of a run are chosen among its steps, on validation images only."""

    metric: str
    """Key of the validation row."""
    greater_is_better: bool
    rule: str = "last"
    """``last``: those of the last step; ``best``: those with the best value."""
    patience: int | None = None
    """Validations without a better value after which the run ends."""

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether ``value`` is better than the best before."""
        return best is None or (value > best if self.greater_is_better else value < best)

    def has_ended(self, step: int, best_step: int | None, every: int) -> bool:
        """Whether the run waited long enough for a better value."""
        return self.patience is not None and (step - (best_step or 0)) / every >= self.patience

    def about(self, subjects: Sequence[str]) -> dict[str, Any]:
        """What ``run.json`` says of it: the audit looks whether anything was chosen on test."""
        chosen = {"part": "validation", "subjects": list(subjects), "metric": self.metric, "rule": self.rule}
        return {"selection": chosen | {"patience": self.patience}}


class Validation(TrainerCallback):
    """Measures every n steps and at the last one; keeps the best value, and ends a run that learns no more.

    Parameters
    ----------
    every
        Steps between two measurements.
    measure
        Values of the validation images; called in every process.
    choice
        Which value counts, and how.
    keep_best
        Called where the value is the best so far and the rule is ``best``.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[], dict[str, float]],
        choice: Choice,
        *,
        log: Callable[[dict[str, float]], None],
        keep_best: Callable[[int], None],
    ) -> None:
        self.every, self.measure, self.choice = every, measure, choice
        self.log, self.keep_best = log, keep_best

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step
        if step % self.every and step != state.max_steps:
            return
        row = self.measure()
        loss_is_due = control.should_log
        self.log(row)
        control.should_log = loss_is_due  # the Trainer thinks that this row was it
        if self.choice.is_better(row[self.choice.metric], state.best_metric):
            state.best_metric, state.best_global_step = row[self.choice.metric], step
            if self.choice.rule == "best":
                self.keep_best(step)
        if self.choice.has_ended(step, state.best_global_step, self.every):
            control.should_training_stop = control.should_save = True


class StopOrderly(TrainerCallback):
    """Stops after a checkpoint when the process is asked to end (SIGTERM, as SLURM sends before it kills)."""

    def __init__(self) -> None:
        self.asked = self.stopped = False

    @contextmanager
    def listening(self) -> Any:
        """While inside, SIGTERM asks for a stop instead of ending the process."""

        def ask(_signal: int, _frame: FrameType | None) -> None:
            self.asked = True

        try:
            before = signal.signal(signal.SIGTERM, ask)
        except ValueError:  # not the main thread: signals go elsewhere
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if any_rank(self.asked):
            self.stopped = control.should_training_stop = control.should_save = True
