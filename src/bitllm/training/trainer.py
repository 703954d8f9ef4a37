"""`transformers.Trainer` with our order of examples, our checkpoints and our log.

The order of examples and every random choice is a pure function of (seed, epoch, index), and a checkpoint holds
everything else that the next step depends on, so that a resumed run is the run that was never stopped, bit by bit.
"""

from collections import defaultdict
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer

from bitllm.errors import TrainingError
from bitllm.files import file_written_whole, read_json, write_json
from bitllm.training.checkpoint import Checkpoints, random_state, restore_random_state
from bitllm.training.ranks import is_main, mean_over_ranks, rank, wait_for_all
from bitllm.training.sharding import shared_out_like, whole

_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


class StageTrainer(Trainer):
    """One stage: a module whose ``forward`` gives ``loss``, and beside it values for the log."""

    checkpoints: Checkpoints
    """Where the checkpoints of this run lie."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.model_accepts_loss_kwargs = False  # micro-batches are averaged
        self.since_last_log: dict[str, list[float]] = defaultdict(list)
        """Loss and other values of the steps since the last row of the log."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(cast(Sized, train_dataset or self.train_dataset))

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if isinstance(model, FSDPModule):
            return _Sharded(
                cast(nn.Module, model)
            )  # anything else than the module itself is not wrapped for DDP
        return super()._wrap_model(model, training=training, dataloader=dataloader)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss that the module gives; its other values are kept for the log."""
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss" and (isinstance(value, float) or (torch.is_tensor(value) and value.ndim == 0)):
                self.since_last_log[name].append(float(value))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One step of `Trainer`, refused when its loss is not finite.

        Raises
        ------
        TrainingError
            If the loss is NaN or infinite, in any process.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        value = float(loss)
        mean = mean_over_ranks({"loss": value})["loss"]
        if not bool(torch.isfinite(torch.tensor(mean))):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {mean}{self._blame(inputs)}; the last checkpoint is "
                "kept: lower the learning rate, or look at these betas with `bitllm inspect`"
            )
        self.since_last_log["loss"].append(
            value * self.current_gradient_accumulation_steps
        )  # micro-batches add up
        return loss

    def _blame(self, inputs: dict[str, Any]) -> str:
        """Which examples of the batch are to be looked at, where the batch says what they are."""
        if "nsd_id" not in inputs:
            return ""
        nsd_id = inputs["nsd_id"].tolist()
        for name in ("betas", "brain_tokens"):
            if name in inputs:
                bad = ~torch.isfinite(inputs[name]).flatten(1).all(1)
                if bool(bad.any()):
                    return f" ({name} of image {nsd_id[int(bad.nonzero()[0])]} are not numbers)"
        shown = ", ".join(str(image) for image in nsd_id[:8])
        return f" (images of the batch: {shown}{', …' if len(nsd_id) > 8 else ''})"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row; the loss and what else the steps gave are means since the last row, over all processes."""
        if "loss" in logs:
            means = {name: sum(values) / len(values) for name, values in self.since_last_log.items()}
            logs = {**logs, **mean_over_ranks(means)}
            self.since_last_log.clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        learning, optimizer = self._learning(), self._optimizer_tensors()
        with self.checkpoints.written(self.state.global_step) as folder:
            log = {f"log/{name}": torch.tensor(row).double() for name, row in self.since_last_log.items()}
            save_file(random_state() | log, folder / _own_file())
            if is_main():
                save_file(learning, folder / _WEIGHTS)
                save_file(optimizer, folder / _OPTIMIZER)
                write_json(folder / _STATE, self._rest_of_state())
                self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.put_weights(Path(resume_from_checkpoint) / _WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved, rest = load_file(Path(checkpoint) / _OPTIMIZER), read_json(Path(checkpoint) / _STATE)
        optimizer = self._plain_optimizer()
        names = self._names()
        groups = optimizer.state_dict()["param_groups"]
        states: dict[int, dict[str, Tensor]] = {}
        index = 0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = names[id(parameter)] + "/"
                found = {key[len(prefix) :]: value for key, value in saved.items() if key.startswith(prefix)}
                states[index] = {key: shared_out_like(value, parameter) for key, value in found.items()}
                index += 1
        for group, rates in zip(groups, rest["rates"], strict=True):
            group.update(rates)
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(scheduler.state_dict() | rest["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        own = Path(checkpoint or "") / _own_file()
        if checkpoint is None or not own.is_file():  # a process that the run did not have before
            return
        saved = load_file(own)
        restore_random_state(saved)
        for name, values in saved.items():
            if name.startswith("log/"):
                self.since_last_log[name.removeprefix("log/")] = values.tolist()

    def put_weights(self, path: Path) -> None:
        """Load what learns from a file of `keep_weights` or of a checkpoint, on every process."""
        saved = load_file(path)
        with torch.no_grad():
            for name, parameter in self._learning_parameters().items():
                parameter.copy_(shared_out_like(saved[name], parameter))

    def keep_weights(self, path: Path) -> None:
        """Write what learns, whole or not at all; every process comes here."""
        learning = self._learning()
        if is_main():
            with file_written_whole(path) as unfinished:
                save_file(learning, unfinished)
        wait_for_all()

    def plain_module(self) -> Any:
        """The module under what wraps it for several processes."""
        return self.accelerator.unwrap_model(self.model)

    def _learning_parameters(self) -> dict[str, nn.Parameter]:
        named = self.plain_module().named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def _learning(self) -> dict[str, Tensor]:
        return {name: whole(parameter) for name, parameter in self._learning_parameters().items()}

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self._learning_parameters().items()}

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = self._names()
        return {
            f"{names[id(parameter)]}/{key}": whole(value)
            for parameter, state in self._plain_optimizer().state.items()
            for key, value in state.items()
        }

    def _rest_of_state(self) -> dict[str, Any]:
        scheduler: Any = self.lr_scheduler
        plain = {
            key: value
            for key, value in scheduler.state_dict().items()
            if isinstance(value, int | float | list)
        }
        return {
            "rates": [
                {key: group[key] for key in ("lr", "initial_lr")}
                for group in self._plain_optimizer().param_groups
            ],
            "scheduler": {key: value for key, value in plain.items() if key != "lr_lambdas"},
        }


class _Sharded(nn.Module):
    """A module that is shared out over processes already."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def _own_file() -> str:
    return f"rank-{rank()}.safetensors"
