import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bitllm.errors import TrainingError
from bitllm.training.callbacks import Choice, Validation
from bitllm.training.run import EpochOrder, OptimizerConfig, make_trainer
from bitllm.training.trainer import StageTrainer

FEW = OptimizerConfig(steps=6, batch_size=4, learning_rate=0.1, warmup_steps=0, log_every=2)


class Line(torch.nn.Module):
    """Fits y = w x; the loss can be made not a number."""

    def __init__(self, poison=0.0):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.poison = poison

    def forward(self, x):
        return {"loss": ((self.w - 2) ** 2 * (x**2).mean()) + self.poison}


def fit(folder, model=None, config=FEW, **more):
    seen = []

    def collate(pairs):
        seen.extend(pairs)
        return {"x": torch.ones(len(pairs))}

    model = model or Line()
    trainer = make_trainer(
        StageTrainer, model, config, folder, n_examples=10, collate=collate, seed=3, **more
    )
    trainer.train()
    return model, seen, trainer


@given(st.integers(1, 40), st.integers(0, 1000))
def test_each_epoch_is_a_permutation_of_all_examples(n_examples, seed):
    order = EpochOrder(n_examples, 3 * n_examples, seed=seed)
    items = [order[item] for item in range(len(order))]
    for epoch in range(3):
        own = items[epoch * n_examples : (epoch + 1) * n_examples]
        assert {number for number, _ in own} == {epoch}
        assert sorted(index for _, index in own) == list(range(n_examples))


def test_epochs_and_seeds_have_orders_of_their_own_and_a_seed_always_the_same():
    def epoch_of(seed, epoch):
        order = EpochOrder(50, 200, seed=seed)
        return [order[50 * epoch + place][1] for place in range(50)]

    assert epoch_of(1, 0) == epoch_of(1, 0)
    assert epoch_of(1, 0) != epoch_of(1, 1)
    assert epoch_of(1, 0) != epoch_of(2, 0)


def test_an_item_does_not_depend_on_what_was_asked_before():
    forward, backward = EpochOrder(7, 21, seed=0), EpochOrder(7, 21, seed=0)
    items = [forward[item] for item in range(21)]
    assert [backward[item] for item in reversed(range(21))] == items[::-1]


def test_the_trainer_sees_the_epoch_order_and_no_other(tmp_path):
    _, seen, _ = fit(tmp_path / "run")
    order = EpochOrder(10, 24, seed=3)
    assert seen == [order[item] for item in range(24)]


def test_the_log_is_json_lines_of_losses_and_a_new_run_starts_it_anew(tmp_path):
    for _ in range(2):
        fit(tmp_path / "run")
        rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [2, 4, 6]
        assert all({"step", "loss", "grad_norm", "learning_rate"} == set(row) for row in rows)
        assert rows[-1]["loss"] < rows[0]["loss"]


def test_no_checkpoint_of_the_trainer_is_left(tmp_path):
    fit(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"log.jsonl", "runs"}


def test_progress_counts_every_step(tmp_path):
    told = []
    fit(tmp_path / "run", what="align", progress=lambda *step: told.append(step))
    assert [step for _, *step in told] == [[step, 6] for step in range(1, 7)]
    assert told[1][0] == "align"
    assert re.fullmatch(r"align, loss \d\.\d{3}", told[-1][0])


def test_measurements_come_every_n_steps_and_at_the_last_one(tmp_path):
    measured = []
    trainer = make_trainer(
        StageTrainer,
        Line(),
        FEW,
        tmp_path / "run",
        n_examples=4,
        collate=lambda pairs: {"x": torch.ones(len(pairs))},
        seed=0,
    )
    choice = Choice("value", greater_is_better=True)
    trainer.add_callback(
        Validation(4, lambda: measured.append(1) or {"value": 1.5}, choice, log=trainer.log, keep_best=print)
    )
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row for row in rows if "value" in row] == [{"step": 4, "value": 1.5}, {"step": 6, "value": 1.5}]


@pytest.mark.parametrize(("poison", "name"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_loss_that_is_not_a_number_stops_the_run_before_the_weights_move(tmp_path, poison, name):
    model = Line(poison)
    with pytest.raises(
        TrainingError, match=rf"step 1: the loss is {name}; the last checkpoint is kept: lower the"
    ):
        fit(tmp_path / "run", model)
    assert model.w.item() == 0


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


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 1000))
def test_grouping_by_length_keeps_every_example_and_brings_like_lengths_together(n, batch_size, seed):
    def lengths(epoch):
        return np.random.default_rng([seed, epoch]).integers(5, 30, n)

    order = EpochOrder(n, 2 * n, seed=seed, batch_size=batch_size, lengths=lengths)
    for epoch in range(2):
        indices = [order[epoch * n + place][1] for place in range(n)]
        assert sorted(indices) == list(range(n))
        if batch_size <= n <= 16 * batch_size:  # one pool: batches hold neighbours of the sorted lengths
            batches = [lengths(epoch)[indices[i : i + batch_size]] for i in range(0, n, batch_size)]
            bounds = sorted((batch.min(), batch.max()) for batch in batches)
            if n % batch_size == 0:
                assert all(high <= low for (_, high), (low, _) in pairwise(bounds))


def test_groups_stand_together_within_a_batch_and_batches_hold_the_same_examples():
    groups = np.random.default_rng(0).integers(0, 3, 10)
    plain, grouped = (EpochOrder(10, 24, seed=1, batch_size=4, groups=given) for given in (None, groups))
    for start in range(0, 24, 4):
        ours = [grouped[start + place] for place in range(4)]
        assert sorted(ours) == sorted(plain[start + place] for place in range(4))
        assert [groups[index] for _, index in ours] == sorted(groups[index] for _, index in ours)
