"""Sft that goes on from a finished sft."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bitllm.data.dataset import select_trials
from bitllm.data.splits import with_few_trials, within_subject
from bitllm.errors import CheckpointError
from bitllm.model.build import load_trained
from bitllm.model.checkpoint.base import load_llm
from bitllm.stages.examples import InstructedTrials
from bitllm.stages.sft import SftConfig, sft_fingerprint, train_sft, validation_loss
from bitllm.training.loop import OptimizerConfig


def go_on(easy, folder, *, split=None, start=None, steps=3, rate=1e-3, **changes):
    """Some steps from the finished sft of the easy brain."""
    layers = json.loads((easy.folder / "sft" / "config.json").read_text())["adapter_layers"]
    config = SftConfig.parse({"adapter_layers": layers} | changes)
    optimizer = OptimizerConfig(steps=steps, batch_size=8, learning_rate=rate, warmup_steps=0, log_every=1)
    train_sft(
        easy.store,
        split or easy.split,
        folder,
        start=start or easy.folder / "sft",
        encoder_arguments=easy.encoder.arguments(easy.store),
        atlases=easy.encoder.atlases,
        llm_path=easy.folder / "llm",
        config=config.model_copy(update={"optimizer": optimizer, "validate_every": 1}),
        seed=0,
    )
    return folder


def weights(folder):
    saved = load_file(folder / "model.safetensors")
    of_encoder = {name for name in saved if name.startswith("model.encoder.")}
    return [{name: saved[name] for name in part} for part in (of_encoder, saved.keys() - of_encoder)]


def test_it_starts_with_the_weights_of_the_finished_one(easy, tmp_path):
    """At a rate of nearly nothing they stay what they were, interface and encoder."""
    folder = go_on(easy, tmp_path / "same", steps=1, rate=1e-12, encoder="trained")
    for before, now in zip(weights(easy.folder / "sft"), weights(folder), strict=True):
        assert before.keys() == now.keys()
        assert all(torch.allclose(now[name], value, atol=1e-7) for name, value in before.items())
    base = load_llm(easy.folder / "llm")
    model = load_trained(easy.folder / "sft", base)
    trials = select_trials(easy.store, easy.split, "validation", averaged=False)
    examples = InstructedTrials.of(trials, model, base.tokenizer, atlases=easy.encoder.atlases, seed=0)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert found == pytest.approx(
        [validation_loss(model, examples)["validation_loss"]] * len(found), abs=1e-5
    )
    assert found


@pytest.mark.parametrize("encoder", ["frozen", "trained"])
def test_a_few_trials_of_one_subject_move_the_interface_and_the_encoder_where_asked(easy, tmp_path, encoder):
    (held_out,) = easy.split.test_subjects
    few = with_few_trials(easy.store, within_subject(easy.store, (held_out,)), 16)
    folder = go_on(easy, tmp_path / "adapted", split=few, encoder=encoder)
    (encoder_before, interface_before), (encoder_now, interface_now) = map(
        weights, (easy.folder / "sft", folder)
    )
    moved = [name for name, value in interface_before.items() if not torch.equal(value, interface_now[name])]
    assert len(moved) == len(interface_before)
    is_same = all(torch.equal(value, encoder_now[name]) for name, value in encoder_before.items())
    assert is_same == (encoder == "frozen")
    record = json.loads((folder / "run.json").read_text())
    assert record["selection"]["subjects"] == [held_out]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interface": "prefix"}, "expected a checkpoint of the interface prefix, found cross_attention"),
        ({"adapter_layers": [0]}, r"expected an sft with the adapter_layers .*\[0\]"),
    ],
)
def test_another_model_than_the_configuration_describes_is_refused(easy, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        go_on(easy, tmp_path / "other", **changes)
    assert not (tmp_path / "other").exists()


def test_its_record_names_the_weights_that_it_started_from(easy):
    parts = {"llm_sha256": "", "config": SftConfig(), "seed": 0}
    record = sft_fingerprint(easy.store, easy.split, start=easy.folder / "sft", **parts)
    assert len(record["sft to start from"]) == 64
    assert "encoder" not in record
