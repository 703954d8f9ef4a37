"""A run that was killed at any step resumes bit for bit; the fingerprint that it must match; early stopping."""

import json
import os
import signal

import pytest
import torch

from bitllm.errors import StoppedError, TrainingError
from bitllm.stages.workspace import is_finished, workspace
from bitllm.training.logging import read_log
from bitllm.training.loop import (
    Loop,
    OptimizerConfig,
    RunContext,
    TrainerSettings,
    TrainingData,
    Validation,
    batch_shares,
)

SETTINGS = TrainerSettings(save_every=4, keep_checkpoints=2, if_changed="refuse", report_to=())
FINGERPRINT = {"stage": "toy", "rate": 0.1, "seed": 3}


class Killed(BaseException):
    """A kill: not even ``except Exception`` sees it."""


class Toy(torch.nn.Module):
    """A network with dropout, so that its steps draw from the global generator."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.calls, self.stop_at = 0, stop_at

    def forward(self, x, y):
        self.calls += 1
        if self.calls == self.stop_at:
            raise Killed
        return {"loss": ((self.layers(x)[:, 0] - y) ** 2).mean(), "largest": float(x.max())}


def collate(pairs):
    rows = [torch.randn(4, generator=torch.Generator().manual_seed(100 * epoch + i)) for epoch, i in pairs]
    x = torch.stack(rows)
    return {"x": x, "y": x.sum(1)}


def run(folder, *, stop_at=None, measure=None, fingerprint=FINGERPRINT, steps=14, micro_batch=None, **more):
    """Train the toy in ``folder``; the state of the global generator at the start is another each time."""
    torch.manual_seed(os.getpid() + (stop_at or 0))
    config = OptimizerConfig(
        steps=steps, batch_size=4, learning_rate=0.05, warmup_steps=2, log_every=3, **more
    )
    about = config.selection("validation_loss", ["subj01"])
    with workspace(folder, fingerprint, about=about, settings=SETTINGS) as work:
        torch.manual_seed(0)
        model = Toy(stop_at)

        def measured():
            return measure(model) if measure else {"validation_loss": model.layers[2].bias.item()}

        loop = Loop(
            model,
            TrainingData(10, collate),
            config,
            work.folder,
            3,
            context=RunContext(SETTINGS),
            micro_batch=micro_batch,
            validation=Validation(5, measured, "validation_loss", greater_is_better=False),
        )
        loop.fit()
        torch.save(model.layers.state_dict(), work.folder / "weights")
    return model


def outcome(folder):
    return torch.load(folder / "weights"), (folder / "log.jsonl").read_text()


def equal(one, other):
    (weights, log), (others, other_log) = one, other
    assert log == other_log
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "toy"
    run(folder)
    return outcome(folder)


@pytest.mark.parametrize("stops", [[1], [4], [5], [6], [13], [14], [3, 4, 2, 5]])
def test_a_stopped_run_ends_with_the_weights_and_the_log_of_one_that_was_not(tmp_path, whole, stops):
    for stop_at in stops:
        with pytest.raises(Killed):
            run(tmp_path / "toy", stop_at=stop_at)
        assert not (tmp_path / "toy").exists()
    run(tmp_path / "toy")
    equal(outcome(tmp_path / "toy"), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]
    assert not (tmp_path / "toy" / "checkpoints").exists()


def test_it_goes_on_from_its_checkpoint_and_not_from_the_beginning(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "toy", stop_at=11)
    assert run(tmp_path / "toy").calls == 14 - 8


@pytest.mark.parametrize(("settings", "stop_at"), [({"micro_batch": 2}, 17), ({"matrices": "muon"}, 11)])
def test_micro_batches_and_muon_resume_exactly_too(tmp_path, settings, stop_at):
    run(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        run(tmp_path / "toy", stop_at=stop_at, **settings)
    run(tmp_path / "toy", **settings)
    equal(outcome(tmp_path / "toy"), outcome(tmp_path / "whole"))


def test_the_log_has_means_of_the_steps_since_the_last_row_and_no_half_line(tmp_path, whole):
    rows = [json.loads(line) for line in whole[1].splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "validation_loss" in row] == [5, 10, 14]
    assert all({"largest", "grad_norm", "learning_rate"} <= set(row) for row in rows if "loss" in row)
    log = tmp_path / "log.jsonl"
    log.write_text(whole[1] + '{"step": 15, "lo')
    assert read_log(log) == rows


def test_sigterm_stops_after_a_checkpoint_and_the_run_goes_on(tmp_path, whole):
    def measure(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"validation_loss": model.layers[2].bias.item()}

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        StoppedError, match=r"toy.training: stopped at step 6 of 14 after a checkpoint; the same"
    ):
        run(tmp_path / "toy", measure=measure)
    assert signal.getsignal(signal.SIGTERM) is before
    kept = tmp_path / "toy.training" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["step-00000004", "step-00000006"]
    assert {file.suffix for file in (kept / "step-00000006").iterdir()} == {".safetensors", ".json"}
    run(tmp_path / "toy")
    equal(outcome(tmp_path / "toy"), whole)


def test_other_settings_are_refused_with_what_differs(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "toy", stop_at=9)
    with pytest.raises(TrainingError, match=r"\(rate: 0.1 → 0.2\)"):
        run(tmp_path / "toy", fingerprint=FINGERPRINT | {"rate": 0.2})
    record = json.loads((tmp_path / "toy.training" / "run.json").read_text())
    assert record["selection"]["part"] == "validation"
    record["versions"]["torch"] = "1.0"
    (tmp_path / "toy.training" / "run.json").write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=r'\(version.torch: "1.0" → "'):
        run(tmp_path / "toy")


def test_what_makes_the_rest_of_a_run_another_is_told(tmp_path, caplog):
    def begin(precision):
        with (
            pytest.raises(Killed),
            workspace(
                tmp_path / "toy", FINGERPRINT, about={"precision": precision}, settings=TrainerSettings()
            ) as work,
        ):
            (work.checkpoints.folder / "step-00000001").mkdir(parents=True, exist_ok=True)
            raise Killed

    begin("bf16")
    begin("bf16")
    assert caplog.text == ""
    place = tmp_path / "toy.training" / "run.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"processes": 3}))
    begin("fp32")
    assert "started with 3 processes, resumes with 1" in caplog.text
    assert "started with the LLM in bf16, resumes in fp32" in caplog.text


def test_other_settings_begin_anew_where_that_was_asked_for(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "toy", stop_at=9)
    restart = SETTINGS.model_copy(update={"if_changed": "restart"})
    with workspace(tmp_path / "toy", FINGERPRINT | {"seed": 4}, about={}, settings=restart) as work:
        assert work.checkpoints.all() == []


def test_a_finished_stage_is_known_and_one_of_other_settings_refused(tmp_path):
    assert not is_finished(tmp_path / "toy", FINGERPRINT)
    run(tmp_path / "toy")
    assert is_finished(tmp_path / "toy", FINGERPRINT)
    with pytest.raises(TrainingError, match=r"finished .*\(seed: 3 → 4\)"):
        is_finished(tmp_path / "toy", FINGERPRINT | {"seed": 4})


def test_an_error_before_the_first_checkpoint_leaves_nothing(tmp_path):
    def fail():
        raise TrainingError("at step 5")

    with pytest.raises(TrainingError), workspace(tmp_path / "a", FINGERPRINT, about={}, settings=SETTINGS):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("keep", "kept"), [("best", 10), ("last", 20)])
def test_the_weights_that_were_best_on_validation_are_kept_where_asked_for(tmp_path, keep, kept):
    losses, weights = {5: 3.0, 10: 1.0, 15: 2.0, 20: 2.5}, {}

    def measure(model):
        weights[model.calls] = [parameter.detach().clone() for parameter in model.parameters()]
        return {"validation_loss": losses[model.calls]}

    model = run(tmp_path / "toy", measure=measure, keep=keep, steps=20)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), weights[kept], strict=True))
    assert not (tmp_path / "toy" / "best.safetensors").exists()


def test_the_best_weights_survive_a_kill(tmp_path):
    def measure(model):
        return {"validation_loss": float(model.layers[2].bias.detach() ** 2)}

    model = run(tmp_path / "whole", measure=measure, keep="best", steps=20)
    with pytest.raises(Killed):
        run(tmp_path / "toy", measure=measure, keep="best", steps=20, stop_at=18)
    again = run(tmp_path / "toy", measure=measure, keep="best", steps=20)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))


def test_a_run_that_learns_no_more_ends_and_is_not_taken_up_again(tmp_path):
    def measure(model):
        return {"validation_loss": 1.0}

    model = run(tmp_path / "toy", measure=measure, patience=1)
    assert model.calls == 10  # the first value at step 5 was the best
    rows = read_log(tmp_path / "toy" / "log.jsonl")
    assert [row["step"] for row in rows if "validation_loss" in row] == [5, 10]


@pytest.mark.parametrize(
    ("batch", "micro", "shares"), [(8, None, (8, 1)), (8, 2, (2, 4)), (8, 100, (8, 1)), (6, 3, (3, 2))]
)
def test_batches_are_shared_out_evenly(batch, micro, shares):
    assert batch_shares(batch, micro) == shares


def test_batches_that_cannot_be_shared_out_are_refused(monkeypatch):
    with pytest.raises(TrainingError.__base__, match="micro_batch: expected a divisor of the 8 examples"):
        batch_shares(8, 3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError.__base__, match="multiple of the 3 processes, found 8; choose 6 or 9"):
        batch_shares(8, None)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    with workspace(tmp_path / "toy", FINGERPRINT, about={}, settings=SETTINGS) as work:
        (work.folder / "log.jsonl").write_text("mine")
        with (
            pytest.raises(TrainingError, match=r"toy\.training: .*wait for its end"),
            workspace(tmp_path / "toy", FINGERPRINT, about={}, settings=SETTINGS),
        ):
            pass
        assert (work.folder / "log.jsonl").read_text() == "mine"
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"run.json", "log.jsonl"}
