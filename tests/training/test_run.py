import json
import re

import pytest
import torch
from pydantic import ValidationError

from bitllm.data.dataset import EpochOrder
from bitllm.errors import ConfigError, TrainingError
from bitllm.training.loop import (
    Loop,
    OptimizerConfig,
    RunContext,
    TrainerSettings,
    TrainingData,
    Validation,
    default_optimizers,
)

FEW = OptimizerConfig(steps=6, batch_size=4, learning_rate=0.1, warmup_steps=0, log_every=2)


class Line(torch.nn.Module):
    """Fits y = w x; the loss can be made not a number."""

    def __init__(self, poison=0.0):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.poison = poison

    def forward(self, x):
        return {"loss": ((self.w - 2) ** 2 * (x**2).mean()) + self.poison}


NO_CHECKPOINTS = TrainerSettings(save_minutes=None)


def fit(folder, model=None, config=FEW, *, settings=NO_CHECKPOINTS, progress=None, **more):
    seen = []

    def collate(pairs):
        seen.extend(pairs)
        return {"x": torch.ones(len(pairs))}

    model = model or Line()
    loop = Loop(
        model, TrainingData(10, collate), config, folder, 3, context=RunContext(settings, progress), **more
    )
    loop.fit()
    return model, seen, loop


def test_the_loop_follows_the_epoch_order(tmp_path):
    _, seen, _ = fit(tmp_path / "run")
    order = EpochOrder(10, 24, seed=3)
    assert seen == [order[item] for item in range(24)]


def test_the_log_is_json_lines_of_losses_and_a_new_run_starts_a_new_log(tmp_path):
    for _ in range(2):
        fit(tmp_path / "run")
        rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [2, 4, 6]
        assert all({"step", "loss", "grad_norm", "learning_rate"} == set(row) for row in rows)
        assert rows[-1]["loss"] < rows[0]["loss"]


def test_without_checkpoints_only_the_log_is_written(tmp_path):
    fit(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"log.jsonl", "runs"}


def test_progress_counts_every_step(tmp_path):
    told = []
    fit(tmp_path / "run", name="align", progress=lambda *step: told.append(step))
    assert [step for _, *step in told] == [[step, 6] for step in range(1, 7)]
    assert told[1][0] == "align"
    assert re.fullmatch(r"align, loss \d\.\d{3}", told[-1][0])


def test_measurements_come_every_n_steps_and_after_the_last_one(tmp_path):
    validation = Validation(4, lambda: {"value": 1.5}, "value")
    fit(tmp_path / "run", validation=validation)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row for row in rows if "value" in row] == [{"step": 4, "value": 1.5}, {"step": 6, "value": 1.5}]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_stops_the_run_before_anything_is_saved(tmp_path, poison):
    class Poisoned(Line):
        def forward(self, x, nsd_id):
            self.calls = getattr(self, "calls", 0) + 1
            return {"loss": super().forward(x)["loss"] + (poison if self.calls == 4 else 0.0)}

    def collate(pairs):
        return {"x": torch.ones(len(pairs)), "nsd_id": torch.tensor([index for _, index in pairs])}

    settings = TrainerSettings(save_every=2)
    loop = Loop(Poisoned(), TrainingData(10, collate), FEW, tmp_path, 3, context=RunContext(settings))
    images = [EpochOrder(10, 24, seed=3)[item][1] for item in range(12, 16)]
    with pytest.raises(TrainingError, match=rf"step 4: .*{', '.join(map(str, images))}"):
        loop.fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_checkpoints_come_by_minutes(tmp_path, monkeypatch):
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr("bitllm.training.loop.time.monotonic", lambda: next(now))
    written = []

    def save(loop):
        written.append(loop.step)
        loop.saved_at = next(now)

    monkeypatch.setattr(Loop, "_save", save)
    fit(tmp_path / "run", settings=TrainerSettings(save_minutes=1.0))
    assert written == [4, 6]  # each look at the clock is 20 s later than the one before


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(tmp_path):
    config = OptimizerConfig(steps=20, batch_size=1, learning_rate=0.1, warmup_steps=5, log_every=1)
    fit(tmp_path / "run", config=config)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows]
    assert rates[:6] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.01


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"log_every": 0}])
def test_sizes_must_be_positive(wrong):
    with pytest.raises(ValidationError, match="greater than 0"):
        OptimizerConfig(**({"steps": 1, "batch_size": 1, "learning_rate": 1.0} | wrong))


def test_weight_decay_spares_biases_and_norms():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.RMSNorm(3))
    (optimizer,) = default_optimizers(model, FEW.model_copy(update={"weight_decay": 0.3}))
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [names[parameter] for parameter in decayed["params"]] == ["0.weight"]
    assert [names[parameter] for parameter in others["params"]] == [
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
    ]


def test_a_step_of_the_loop_is_that_of_adamw_written_out(tmp_path):
    """Adam's first step moves a weight by the learning rate; decoupled decay shrinks it before."""
    config = OptimizerConfig(steps=1, batch_size=4, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    model = Line()
    with torch.no_grad():
        model.w.fill_(1.0)
    fit(tmp_path / "run", model, config)
    assert model.w.item() == pytest.approx(1.0 * (1 - 0.1 * 0.5) + 0.1, abs=1e-6)


class Mean(torch.nn.Module):
    """The mean of the targets of a batch, as sft's loss is one over tokens: batches differ in their number."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, mask):
        return {"loss": self.w * (x * mask).sum() / mask.sum()}


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_the_loss_of_a_step_is_the_mean_over_its_targets_in_any_micro_batches(tmp_path, micro_batch):
    def collate(pairs):
        x = torch.tensor([[float(index), 1.0, 2.0] for _, index in pairs])
        return {"x": x, "mask": torch.tensor([[1, index % 2, index % 3 == 0] for _, index in pairs])}

    config = FEW.model_copy(update={"steps": 1, "log_every": 1, "learning_rate": 1e-9})
    data = TrainingData(10, collate, n_targets=lambda batch: int(batch["mask"].sum()))
    context = RunContext(NO_CHECKPOINTS)
    Loop(Mean(), data, config, tmp_path, 3, context=context, micro_batch=micro_batch).fit()
    batch = collate([EpochOrder(10, 4, seed=3)[item] for item in range(4)])
    expected = float((batch["x"] * batch["mask"]).sum() / batch["mask"].sum())
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["grad_norm"] == pytest.approx(expected, abs=1e-6)  # the loss is w times the mean
    assert row["loss"] == pytest.approx(expected, abs=1e-6)


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bitllm.training.logging.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb"):
        fit(tmp_path / "run", settings=TrainerSettings(save_minutes=None, report_to=("wandb",)))
