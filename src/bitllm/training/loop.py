"""The training loop of all stages, on accelerate: accumulation, clipping, DDP or FSDP2, validation, exact resume.

The order of examples and every random choice about an example are functions of (seed, epoch, index), the learning
rate is a function of the step, and a checkpoint contains everything else that the next step depends on. A run that
was killed and resumed therefore gives, bit for bit, the result of an uninterrupted run.
"""

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, send_to_device, set_seed
from jaxtyping import Int
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bitllm.config import StrictConfig
from bitllm.data.batch import describe_images
from bitllm.data.dataset import EpochOrder
from bitllm.errors import ConfigError, StoppedError, TrainingError
from bitllm.files import file_written_whole, read_json, write_json
from bitllm.training import checkpoint as saved
from bitllm.training.distributed import (
    any_rank,
    barrier,
    device,
    is_main,
    mean_over_ranks,
    rank,
    shard,
    unsharded,
    world_size,
)
from bitllm.training.logging import Progress, StageLog, require_trackers
from bitllm.training.optimizers import Matrices, make_optimizers

Batch = dict[str, Any]
# the loop scales the losses of micro-batches itself; accelerate must not divide them again
_LOSS_AS_IT_IS = GradientAccumulationPlugin(num_steps=1)


class OptimizerConfig(StrictConfig):
    """Number of steps, learning rate and related settings of a stage."""

    steps: int = Field(gt=0)
    """Optimizer steps."""
    batch_size: int = Field(gt=0)
    """Examples in a step, over all processes."""
    learning_rate: float = Field(gt=0)
    """Learning rate after the warmup."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay."""
    # recorded only if it is set, so that records of runs without it remain valid
    matrices: Matrices = Field(default="adamw", exclude_if=lambda matrices: matrices == "adamw")
    """What trains the weights of linear layers: adamw as all other parameters, or muon, which needs fewer steps."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises linearly; it then falls along a cosine."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    log_every: int = Field(default=10, gt=0)
    """Steps between two rows of the log."""
    keep: Literal["last", "best"] = "last"
    """Which weights to save: those of the last step, or those with the best validation value."""
    patience: int | None = Field(default=None, gt=0)
    """Number of validations without improvement after which a stage stops; null to never stop early."""

    def selection(self, metric: str, subjects: Sequence[str]) -> dict[str, Any]:
        """Entry of ``run.json`` on how the weights are selected, which the leak audit reads."""
        found = {"part": "validation", "subjects": list(subjects), "metric": metric, "rule": self.keep}
        return {"selection": found | {"patience": self.patience}}

    def rate_factor(self, step: int) -> float:
        """Learning rate of a step (from 0) as a fraction of the largest: linear warmup, then half a cosine to 0."""
        if step < self.warmup_steps:
            return step / max(1, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


class TrainerSettings(StrictConfig):
    """How a stage is run. None of it changes the result, except micro_batch with ``rft.loss_type=bnpo``."""

    save_minutes: float | None = Field(default=10.0, gt=0)
    """Minutes between two checkpoints; null to save by steps only."""
    save_every: int | None = Field(default=None, gt=0)
    """Steps between two checkpoints, in addition to ``save_minutes``; if both are null, there are none."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Number of checkpoints on disk."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Examples per forward pass of one process in sft and rft; null for its whole share of the batch."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a copy of the model in each (ddp), or shards of it (fsdp)."""
    processes: int = Field(default=1, gt=0)
    """Processes of this machine that share the work of `bitllm demo` and its cores; always 1 with a GPU."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Trackers that get the rows of log.jsonl."""
    if_changed: Literal["refuse", "restart"] = "restart"
    """What to do with an unfinished stage that was started with other settings."""

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written."""
        return self.save_every is not None or self.save_minutes is not None


@dataclass(frozen=True)
class RunContext:
    """Settings of the trainer, and the function that receives its progress."""

    settings: TrainerSettings = TrainerSettings()  # noqa: RUF009 - frozen
    progress: Progress | None = None


class TrainingData(NamedTuple):
    """Training examples; ``collate`` turns a list of (epoch, index) pairs into arguments of ``forward``."""

    n_examples: int
    collate: Callable[[list[tuple[int, int]]], Batch]
    lengths: Callable[[int], Int[np.ndarray, " n"]] | None = None
    """See `EpochOrder`."""
    groups: Int[np.ndarray, " n"] | None = None
    """See `EpochOrder`; used with several processes only."""
    n_targets: Callable[[Batch], int] | None = None
    """Number of targets (tokens) over which the loss of a batch is averaged. If given, the loss of a step is the mean
    over the targets of all its micro-batches and processes; otherwise micro-batches have equal weight."""


class Validation(NamedTuple):
    """A measurement on validation images, every ``every`` steps and after the last one."""

    every: int
    measure: Callable[[], dict[str, float]]
    """Called in every process; returns a row of the log."""
    metric: str
    """Key of the value that decides which weights are best (`OptimizerConfig.keep` and ``patience``)."""
    greater_is_better: bool = True


class StopAfterCheckpointError(TrainingError):
    """An error in a forward pass that stops training after a checkpoint is written."""


@dataclass
class Loop:
    """Trains a module whose ``forward`` returns ``loss`` and, optionally, further numbers for the log.

    Attributes
    ----------
    folder
        Folder for ``log.jsonl``, ``runs`` (TensorBoard), ``checkpoints`` and ``best.safetensors``.
    name
        Name of this training in the progress bar.
    micro_batch
        Examples per forward pass of one process; None for its full share of the batch.
    make_optimizers
        Called after sharding; by default without weight decay on biases and norms.
    """

    module: nn.Module
    data: TrainingData
    config: OptimizerConfig
    folder: Path
    seed: int
    name: str = "training"
    context: RunContext = RunContext()
    micro_batch: int | None = None
    make_optimizers: Callable[[], list[torch.optim.Optimizer]] | None = None
    validation: Validation | None = None
    step: int = field(default=0, init=False)
    best_step: int = field(default=0, init=False)
    best_value: float | None = field(default=None, init=False)

    def fit(self) -> None:
        """Train from the newest intact checkpoint to the last step; the module then has the selected weights."""
        self._prepare()
        saves = self.context.settings.saves
        checkpoint = self.checkpoints.newest_intact() if saves else None
        if checkpoint is not None:
            self._restore(checkpoint)
        self.settled_step, self.saved_at = self.step, time.monotonic()
        with self.log.opened(self.step), _sigterm_as_request(saves) as stop_request:
            while self.step < self.config.steps and not self._patience_is_over():
                self._train_step()
                # Clocks and signals differ between processes, but all must stop or save at the same step.
                must_stop, is_time = any_rank(bool(stop_request), is_main() and self._minutes_are_over())
                self._after_step(must_stop=must_stop, is_time_to_save=is_time)
            self._settle()
        if self.config.keep == "best" and self.best_file.is_file():
            saved.load_trainable(self.module, self.best_file)

    def _prepare(self) -> None:
        settings = self.context.settings
        require_trackers(settings.report_to)
        self.checkpoints = saved.Checkpoints(self.folder / "checkpoints", keep=settings.keep_checkpoints)
        self.best_file = self.folder / "best.safetensors"
        self.order = EpochOrder(
            self.data.n_examples,
            self.config.steps * self.config.batch_size,
            seed=self.seed,
            batch_size=self.config.batch_size,
            lengths=self.data.lengths,
            groups=self.data.groups if world_size() > 1 else None,
        )
        self.n_at_once, self.accumulate = batch_shares(self.config.batch_size, self.micro_batch)
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",  # the model autocasts its frozen LLM itself (`bitllm.model.precision`)
            gradient_accumulation_plugin=_LOSS_AS_IT_IS,
            log_with=list(settings.report_to) or None,
            project_config=ProjectConfiguration(str(self.folder), logging_dir=str(self.folder / "runs")),
        )
        self.log = StageLog(self.folder / "log.jsonl", self.accelerator)
        self.since_last_row: dict[str, list[float | Tensor]] = defaultdict(list)
        self.last_loss = ""
        # Seeds the dropout; examples and captions have generators of their own.
        set_seed(self.seed)
        # The DataLoader of version 0.1 drew one number here: with it, dropout masks are those of published runs.
        torch.empty((), dtype=torch.int64).random_()
        if settings.parallel == "fsdp" and world_size() > 1:
            shard(self.module)
            self.model = self.module
        else:
            self.model = self.accelerator.prepare_model(self.module.to(device()), device_placement=False)
        # After sharding, because FSDP2 replaces the parameters.
        make = self.make_optimizers or partial(default_optimizers, self.module, self.config)
        self.optimizers = make()
        self.base_rates = [group["lr"] for group in self.groups]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all optimizers; loading a checkpoint replaces them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _micro_batch(self, step: int, number: int) -> Batch:
        """Micro-batch ``number`` of this process in the step that follows ``step`` steps."""
        # Micro-batches are dealt to processes in turn, so a step has the same examples however many processes
        # there are.
        first = step * self.config.batch_size + (number * world_size() + rank()) * self.n_at_once
        return self.data.collate([self.order[item] for item in range(first, first + self.n_at_once)])

    def _train_step(self) -> None:
        """One optimizer step. Losses stay on the device until `_settle`, so that the host does not wait for it."""
        self.model.train()
        batches = [self._micro_batch(self.step, number) for number in range(self.accumulate)]
        for number, (batch, share) in enumerate(zip(batches, self._shares(batches), strict=True)):
            is_last = number == self.accumulate - 1
            # Gradients are exchanged once per step, in the backward pass of the last micro-batch.
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                outputs = self._forward(send_to_device(batch, device(), non_blocking=True))
                loss = outputs["loss"] * share
                self.accelerator.backward(loss)
            # The mean of these over micro-batches is the loss of the step.
            self.since_last_row["loss"].append(loss.detach() * self.accumulate)
            for name, value in outputs.items():
                is_number = isinstance(value, float) or (torch.is_tensor(value) and value.ndim == 0)
                if name != "loss" and is_number:
                    self.since_last_row[name].append(value)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.since_last_row["grad_norm"] = [norm.full_tensor() if isinstance(norm, DTensor) else norm]
        for group, rate in zip(self.groups, self.base_rates, strict=True):
            group["lr"] = rate * self.config.rate_factor(self.step)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def _shares(self, batches: list[Batch]) -> list[float]:
        """Factor of each micro-batch's loss in the loss of the step."""
        if self.data.n_targets is None:
            return [1 / len(batches)] * len(batches)
        own = [self.data.n_targets(batch) for batch in batches]
        total = mean_over_ranks({"targets": float(sum(own))})["targets"]
        # relative to the mean of all processes, because gradients are averaged over them
        return [n / total for n in own]

    def _forward(self, batch: Batch) -> Any:
        try:
            return self.model(**batch)
        except StopAfterCheckpointError:
            if self.context.settings.saves:
                self._save()
            raise

    def _settle(self) -> None:
        """Fetch the values of the steps since the last call in one transfer, and require finite losses.

        Every process calls this before anything is logged, validated or saved, so that weights after a loss that is
        not finite are never saved.
        """
        rows, n_steps = self.since_last_row, self.step - self.settled_step
        on_device = [value for values in rows.values() for value in values if torch.is_tensor(value)]
        if on_device:
            fetched = iter(torch.stack([value.detach().double() for value in on_device]).tolist())
            for values in rows.values():
                values[:] = [next(fetched) if torch.is_tensor(value) else value for value in values]
        losses = rows["loss"][len(rows["loss"]) - n_steps * self.accumulate :]
        self.settled_step = self.step
        bad = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
        if not any_rank(bool(bad))[0]:
            return
        step, number = divmod(bad[0] if bad else len(losses) - 1, self.accumulate)
        step += self.step - n_steps
        at = describe_images(self._micro_batch(step, number)) if bad else " in another process"
        raise TrainingError(
            f"step {step + 1}: expected a finite loss, found {losses[bad[0]] if bad else math.nan}{at}; lower the "
            "learning rate, or look at these betas with `bitllm inspect` (the last checkpoint is intact)"
        )

    def _minutes_are_over(self) -> bool:
        minutes = self.context.settings.save_minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _after_step(self, *, must_stop: bool, is_time_to_save: bool) -> None:
        """Progress, validation, log and checkpoint, if due."""
        settings, n_steps = self.context.settings, self.config.steps
        if self.context.progress is not None and is_main():
            self.context.progress(self.name + self.last_loss, self.step, n_steps)
        if self.validation and (self.step % self.validation.every == 0 or self.step == n_steps):
            self._validate(self.validation)
        if self.step % self.config.log_every == 0:
            self._log_means()
        is_end = self.step == n_steps or must_stop or self._patience_is_over()
        is_due = settings.save_every is not None and self.step % settings.save_every == 0
        if settings.saves and (is_due or is_time_to_save or is_end):
            self._save()
        if must_stop and self.step < n_steps:
            raise StoppedError(
                f"{self.folder}: stopped at step {self.step} of {n_steps} after a checkpoint; the same command resumes"
            )

    def _validate(self, validation: Validation) -> None:
        self._settle()
        with unsharded(self.module):
            row = validation.measure()
        self.log.write(self.step, row)
        # Only a strictly better value counts: of equal ones the earliest is selected.
        sign = 1 if validation.greater_is_better else -1
        value = row[validation.metric]
        if self.best_value is None or sign * value > sign * self.best_value:
            self.best_value, self.best_step = value, self.step
            if self.config.keep == "best":
                self._save_best()

    def _save_best(self) -> None:
        tensors = saved.trainable_tensors(self.module)
        if is_main():
            with file_written_whole(self.best_file) as unfinished:
                save_file(tensors, unfinished)
        barrier()

    def _patience_is_over(self) -> bool:
        if self.validation is None or self.config.patience is None:
            return False
        return (self.step - self.best_step) / self.validation.every >= self.config.patience

    def _log_means(self) -> None:
        """Log the mean of every value since the last row, over all processes."""
        self._settle()
        means = mean_over_ranks({name: float(sum(v) / len(v)) for name, v in self.since_last_row.items()})
        self.since_last_row.clear()
        self.last_loss = f", loss {means['loss']:.3f}"
        rate = self.groups[0]["lr"]
        row = {"loss": means["loss"], "grad_norm": means["grad_norm"], "learning_rate": rate}
        self.log.write(self.step, row | means)

    def _save(self) -> None:
        """Write a checkpoint; every process must call this."""
        self._settle()
        weights = saved.trainable_tensors(self.module)
        optimizer = saved.optimizer_tensors(self.optimizers, self.module)
        own = {"random": saved.random_state(), "since_last_row": self.since_last_row}
        with self.checkpoints.writing(self.step) as folder:
            write_json(folder / f"rank-{rank()}.json", own)
            if is_main():
                save_file(weights, folder / "weights.safetensors")
                save_file(optimizer, folder / "optimizer.safetensors")
                best = {"best_step": self.best_step, "best_value": self.best_value}
                write_json(folder / "state.json", {"step": self.step} | best)
        self.saved_at = time.monotonic()

    def _restore(self, checkpoint: Path) -> None:
        saved.load_trainable(self.module, checkpoint / "weights.safetensors")
        saved.load_optimizers(self.optimizers, self.module, checkpoint / "optimizer.safetensors")
        state = read_json(checkpoint / "state.json")
        self.step, self.best_step, self.best_value = state["step"], state["best_step"], state["best_value"]
        own = checkpoint / f"rank-{rank()}.json"
        if own.is_file():  # not if the run had fewer processes
            saved.restore_random_state(read_json(own)["random"])
            self.since_last_row.update(read_json(own)["since_last_row"])


def batch_shares(batch_size: int, micro_batch: int | None) -> tuple[int, int]:
    """Examples per forward pass of one process, and number of passes in a step."""
    n = world_size()
    share, left = divmod(batch_size, n)
    if left or share == 0:
        raise ConfigError(
            f"batch_size: expected a multiple of the {n} processes, found {batch_size}; choose "
            f"{max(1, share) * n} or {(share + 1) * n}, or start another number of processes"
        )
    micro = min(micro_batch or share, share)
    if share % micro:
        raise ConfigError(
            f"micro_batch: expected a divisor of the {share} examples of each process, found {micro_batch}; change it"
        )
    return micro, share // micro


def default_optimizers(module: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Optimizers without weight decay on biases and norms."""
    norms = [m for m in module.modules() if "norm" in type(m).__name__.lower()]
    of_norms = {parameter for norm in norms for parameter in norm.parameters()}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (others if parameter in of_norms or "bias" in name else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return make_optimizers(module, groups, lr=config.learning_rate, matrices=config.matrices)


@contextmanager
def _sigterm_as_request(listens: bool) -> Iterator[list[int]]:
    """Yield a list that receives SIGTERM (which SLURM sends before it kills), so that the signal does not end the
    process.
    """
    request: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: request.append(number)) if listens else None
    except ValueError:  # not the main thread, the only one that receives signals
        before = None
    try:
        yield request
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
