"""What the stages share on top of `transformers.Trainer`: settings, order of examples, log and progress.

The order of examples and every random choice is a pure function of (seed, epoch, index), so that a resumed run is
the run that was never stopped.
"""

import json
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from bitllm.config import StrictConfig
from bitllm.errors import TrainingError

Progress = Callable[[str, int, int], None]
"""Called with what is under way, how much is done, how much there is."""


class OptimizerConfig(StrictConfig):
    """How long and how fast a stage learns."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Examples in a step."""
    learning_rate: float = Field(gt=0)
    """Largest learning rate of AdamW."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's weight decay."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises; it then falls along a cosine."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    log_every: int = Field(default=10, gt=0)
    """Steps between two rows of the log."""


class EpochOrder(Dataset):
    """Item k is the (epoch, index) of the k-th example that a run sees.

    Parameters
    ----------
    n_examples
        Size of the training set.
    n_items
        Number of examples that the run sees in all: steps × batch size.
    seed
        Seed of the order; each epoch has its own.
    """

    def __init__(self, n_examples: int, n_items: int, *, seed: int) -> None:
        self.n_examples, self.n_items, self.seed = n_examples, n_items, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.n_items

    def __getitem__(self, item: int) -> tuple[int, int]:
        epoch, position = divmod(item, self.n_examples)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng([self.seed, epoch]).permutation(self.n_examples),
            )
        return epoch, int(self._order[position])


class StageTrainer(Trainer):
    """`transformers.Trainer` that keeps our order of examples and stops at a loss that is not a number."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(cast(Sized, train_dataset or self.train_dataset))

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Any:
        """One step of `Trainer`, refused when its loss is not finite.

        Raises
        ------
        TrainingError
            If the loss is NaN or infinite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {float(loss)}; lower the learning rate "
                "or look at the betas of this batch with `bitllm inspect`"
            )
        return loss


TrainerT = TypeVar("TrainerT", bound=StageTrainer)


class JsonLinesLog(TrainerCallback):
    """Every row that the Trainer logs, as one JSON object a line in ``log.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.path.write_text("", encoding="utf-8")

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
        if kept:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **kept}) + "\n")


class StepProgress(TrainerCallback):
    """Tells the caller how many steps are done."""

    def __init__(self, what: str, progress: Progress) -> None:
        self.what, self.progress = what, progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.progress(self.what, state.global_step, state.max_steps)


class EveryNSteps(TrainerCallback):
    """Calls ``measure`` every n steps and at the last one; what it returns goes into the log."""

    def __init__(self, every: int, measure: Callable[[], dict[str, float]], log: Path) -> None:
        self.every, self.measure, self.log = every, measure, log

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **self.measure()}) + "\n")


def training_arguments(config: OptimizerConfig, folder: Path, *, seed: int) -> TrainingArguments:
    """The Trainer's settings for one stage."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        report_to=["tensorboard"],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def make_trainer(  # noqa: PLR0913 - the parts of one run
    trainer_class: type[TrainerT],
    model: torch.nn.Module,
    config: OptimizerConfig,
    folder: Path,
    *,
    n_examples: int,
    collate: Callable[[list[tuple[int, int]]], dict[str, Any]],
    seed: int,
    what: str = "training",
    progress: Progress | None = None,
    **more: Any,
) -> TrainerT:
    """A trainer with our order, log and progress; ``collate`` makes a batch of (epoch, index) pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    callbacks: list[TrainerCallback] = [JsonLinesLog(folder / "log.jsonl")]
    if progress is not None:
        callbacks.append(StepProgress(what, progress))
    trainer = trainer_class(
        model=model,
        args=training_arguments(config, folder, seed=seed),
        data_collator=collate,
        train_dataset=EpochOrder(n_examples, config.steps * config.batch_size, seed=seed),
        callbacks=callbacks,
        **more,
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    return trainer
