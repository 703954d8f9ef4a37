"""What the stages share: settings, order of examples, and one way to train, to go on and to finish."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from bitllm.config import StrictConfig
from bitllm.errors import ConfigError, StoppedError
from bitllm.files import read_json
from bitllm.training.callbacks import Choice, JsonLinesLog, Progress, StepProgress, StopOrderly, Validation
from bitllm.training.checkpoint import Checkpoints
from bitllm.training.ranks import n_ranks
from bitllm.training.sharding import gathered, shard
from bitllm.training.trainer import StageTrainer
from bitllm.training.workspace import RunSettings, Workspace

_POOL = 16  # batches that examples of like length are gathered from


class OptimizerConfig(StrictConfig):
    """How long and how fast a stage learns."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Examples in a step, over all processes."""
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
    keep: Literal["last", "best"] = "last"
    """Whether the weights of the last step are kept, or those that were best on validation images."""
    patience: int | None = Field(default=None, gt=0)
    """Validations without a better value after which a stage ends; none where it is not given."""


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
    batch_size, lengths
        Where ``lengths`` gives the length of each example in an epoch, examples of like length stand together in
        batches of this size: sorted within pools of 16 batches, whose batches then come in random order.
    groups
        Where it gives the group (subject) of each example, those of one group stand together within each batch: a
        process that gets a share of the batch then has few groups to compute what they have in common.
    """

    def __init__(
        self,
        n_examples: int,
        n_items: int,
        *,
        seed: int,
        batch_size: int = 1,
        lengths: Callable[[int], Int[np.ndarray, " n"]] | None = None,
        groups: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        self.n_examples, self.n_items, self.seed = n_examples, n_items, seed
        self.batch_size, self.lengths, self.groups = batch_size, lengths, groups
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._batch, self._pairs = -1, [(0, 0)]

    def __len__(self) -> int:
        return self.n_items

    def __getitem__(self, item: int) -> tuple[int, int]:
        if self.groups is None:
            return self._at(item)
        batch, place = divmod(item, self.batch_size)
        if batch != self._batch:
            pairs = [self._at(batch * self.batch_size + other) for other in range(self.batch_size)]
            order = np.argsort([self.groups[index] for _, index in pairs], kind="stable")
            self._batch, self._pairs = batch, [pairs[int(place)] for place in order]
        return self._pairs[place]

    def _at(self, item: int) -> tuple[int, int]:
        epoch, position = divmod(item, self.n_examples)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return epoch, int(self._order[position])

    def _order_of(self, epoch: int) -> Int[np.ndarray, " n"]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.n_examples)
        if self.lengths is None:
            return order
        lengths, grouped = self.lengths(epoch), []
        for start in range(0, len(order), _POOL * self.batch_size):
            pool = order[start : start + _POOL * self.batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches = np.split(pool, range(self.batch_size, len(pool), self.batch_size))
            grouped += [batches[number] for number in rng.permutation(len(batches))]
        return np.concatenate(grouped)


TrainerT = TypeVar("TrainerT", bound=StageTrainer)


def training_arguments(
    config: OptimizerConfig, folder: Path, *, seed: int, settings: RunSettings | None = None, **more: Any
) -> TrainingArguments:
    """The Trainer's settings for one stage."""
    how = settings or RunSettings()
    has_cuda = torch.cuda.is_available()
    saving = {"save_strategy": "steps", "save_steps": how.save_every} if settings else {"save_strategy": "no"}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        seed=seed,
        data_seed=seed,
        report_to=list(how.report_to),
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=not has_cuda,
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if n_ranks() > 1 and not has_cuda else None,
        **saving,
        **more,
    )


def batch_shares(batch_size: int, micro_batch: int | None) -> tuple[int, int]:
    """Examples that a process computes at once, and how often in a step.

    Raises
    ------
    ConfigError
        If the batch cannot be shared out evenly.
    """
    share, left = divmod(batch_size, n_ranks())
    if left or share == 0:
        raise ConfigError(
            f"batch_size: expected a multiple of the {n_ranks()} processes, found {batch_size}; choose "
            f"{max(1, share) * n_ranks()} or {(share + 1) * n_ranks()}, or start another number of processes"
        )
    micro = min(micro_batch or share, share)
    if share % micro:
        raise ConfigError(
            f"micro_batch: expected a divisor of the {share} examples of each process, found {micro_batch}"
        )
    return micro, share // micro


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
    """A trainer with our order, log and progress; ``collate`` makes a batch of (epoch, index) pairs.

    Besides ``micro_batch``, ``lengths`` and ``groups`` (see `EpochOrder`), what is given more goes to
    `training_arguments`; without ``settings`` nothing is saved on the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    callbacks: list[TrainerCallback] = [JsonLinesLog(folder / "log.jsonl")]
    if progress is not None:
        callbacks.append(StepProgress(what, progress))
    lengths, groups = more.pop("lengths", None), more.pop("groups", None)
    micro, accumulate = batch_shares(config.batch_size, more.pop("micro_batch", None))
    arguments = training_arguments(
        config,
        folder,
        seed=seed,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        **more,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = (
            1  # several GPUs are for torchrun: nn.DataParallel would copy the model at each step
        )
    settings: RunSettings | None = more.get("settings")
    if settings is not None and settings.parallel == "fsdp" and n_ranks() > 1:
        shard(model)
    trainer = trainer_class(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=EpochOrder(
            n_examples,
            config.steps * config.batch_size,
            seed=seed,
            batch_size=config.batch_size,
            lengths=lengths,
            groups=groups if n_ranks() > 1 else None,
        ),
        callbacks=callbacks,
    )
    trainer.checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    return trainer


def train_to_the_end(
    trainer: StageTrainer,
    work: Workspace,
    *,
    every: int,
    measure: Callable[[], dict[str, float]],
    choice: Choice,
) -> None:
    """Train from the newest whole checkpoint, validate on the way, and leave the chosen weights in the module.

    Parameters
    ----------
    trainer
        Made by `make_trainer` in the folder of ``work``.
    every, measure, choice
        When and what is measured on validation images, and how it chooses the weights.

    Raises
    ------
    StoppedError
        If the process was asked to end; a checkpoint was written.
    """
    trainer.checkpoints = work.checkpoints
    stop = StopOrderly()
    trainer.add_callback(stop)

    def measure_whole() -> dict[str, float]:
        with gathered(trainer.plain_module()):
            return measure()

    trainer.add_callback(
        Validation(
            every, measure_whole, choice, log=trainer.log, keep_best=lambda _: trainer.keep_weights(work.best)
        )
    )
    newest = work.checkpoints.newest_whole()
    with stop.listening():
        if newest is not None and choice.has_ended(*_progress(newest), every):
            trainer.put_weights(newest / "weights.safetensors")
        else:
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise StoppedError(
            f"{work.folder}: stopped at step {trainer.state.global_step} of {trainer.state.max_steps} after a "
            "checkpoint; the same command goes on from there"
        )
    if choice.rule == "best" and work.best.is_file():
        trainer.put_weights(work.best)


def _progress(checkpoint: Path) -> tuple[int, int | None]:
    """Step of a checkpoint, and that of the best validation before it."""
    state = read_json(checkpoint / "trainer_state.json")
    return state["global_step"], state["best_global_step"]
