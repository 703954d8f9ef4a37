"""Preflight at a tiny size: every step runs, what does not fit is said, the estimate is arithmetic."""

import json

import pytest
import torch
import yaml
from rich.console import Console

from bitllm.cli import main
from bitllm.model.interface import INTERFACES
from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.cost import count_parameters, estimate_memory
from bitllm.preflight.steps import PeakMemory, make_betas, make_model, render_preflight, run_preflight
from bitllm.training.loop import Loop


def preflight(config: Recipe, **more):
    return run_preflight(config, console=Console(quiet=True), **more)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_stage_takes_a_step_with_every_interface(tiny_recipe, interface, precision):
    tiny_recipe["sft"] |= {"interface": interface, "precision": precision}
    found = preflight(Recipe.parse(tiny_recipe))
    assert list(found.measured) == ["align", "encode", "sft", "decode", "rft"]
    assert found.not_run == {}
    for stage in ("align", "sft", "rft"):
        assert found.measured[stage].n_trainable == found.parameters.trainable[stage]
        assert found.measured[stage].loss == pytest.approx(found.measured[stage].loss)  # not NaN
    assert 3.0 < found.measured["sft"].loss < 7.0  # about log 60: random words under random weights


def test_the_steps_are_those_of_the_training_loop(tiny_recipe, monkeypatch):
    tiny_recipe["sft"]["optimizer"] = {
        "steps": 7,
        "batch_size": 3,
        "learning_rate": 0.5,
        "weight_decay": 0.25,
    }
    taken, step = [], Loop._train_step

    def recorded(loop):
        step(loop)
        decays = {group["weight_decay"] for group in loop.groups}
        taken.append(
            (
                type(loop.module).__name__,
                loop.config.batch_size,
                max(decays),
                loop.since_last_row["grad_norm"][0] > 0,
            )
        )

    monkeypatch.setattr(Loop, "_train_step", recorded)
    preflight(Recipe.parse(tiny_recipe))
    assert taken == [
        ("BrainAligner", 16, 0.05, True),
        ("SftObjective", 2, 0.25, True),
        ("RftObjective", 1, 0.0, True),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_sft_can_train_the_encoder(tiny_recipe, precision):
    before = preflight(Recipe.parse(tiny_recipe))
    tiny_recipe["sft"] |= {"encoder": "trained", "precision": precision}
    found = preflight(Recipe.parse(tiny_recipe))
    assert found.measured["sft"].n_trainable == found.parameters.trainable["sft"]
    assert (
        found.measured["sft"].n_trainable - before.measured["sft"].n_trainable
        == found.parameters.parts["encoder"]
    )
    assert 3.0 < found.measured["sft"].loss < 7.0  # about log 60, as beside a frozen encoder
    assert found.measured["rft"].n_trainable == before.measured["rft"].n_trainable
    for part in ("learning", "activations") if precision == "fp32" else ("learning",):
        assert getattr(found.planned["sft"], part) > getattr(before.planned["sft"], part)
        assert getattr(found.planned["rft"], part) == getattr(before.planned["rft"], part)


def test_the_command_prints_tables_of_80_columns_and_json(tiny_recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    main(["preflight", str(path)])
    said = capsys.readouterr().out
    assert "Measured here" in said and "Every stage fits" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    main(["preflight", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found["measured"]) == {"align", "encode", "sft", "decode", "rft"}
    assert set(found["gpu_estimate_gb"]) == {"align", "sft", "rft"}


def test_what_does_not_fit_is_said_and_not_tried(tiny_recipe):
    tiny_recipe["llm"]["sizes"] |= {"hidden_size": 4096, "num_hidden_layers": 40, "vocab_size": 128_000}
    found = preflight(Recipe.parse(tiny_recipe), limit_gb=1.0)
    assert list(found.measured) == ["align"]
    assert set(found.not_run) == {"sft", "decode", "rft"}
    assert "would not fit: needs about" in found.not_run["sft"]
    assert "1.0 GB are free; run it on a larger machine" in found.not_run["sft"]
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render_preflight(found))
    assert "would not fit" in console.export_text()


def test_a_model_too_large_for_a_gpu_has_a_largest_batch_of_nought(tiny_recipe):
    tiny_recipe["llm"]["sizes"] |= {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    tiny_recipe["llm"]["sizes"] |= {"num_attention_heads": 64, "num_key_value_heads": 8}
    found = preflight(Recipe.parse(tiny_recipe), limit_gb=0.5)
    assert found.largest_batch["sft"] == {"24": 0, "40": 0, "80": 0}
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render_preflight(found))
    assert "Would not fit at the configuration's batch: sft (batch 64) on 24 GB" in " ".join(
        console.export_text().split()
    )


def test_weights_and_optimiser_are_counted_to_the_byte(tiny_recipe):
    tiny_recipe["sft"]["precision"] = "bf16"
    config = Recipe.parse(tiny_recipe)
    table = count_parameters(config)
    memory = estimate_memory(config, table, n_tokens=64, batch={"align": 4, "sft": 2, "rft": 1})
    model = make_model(config, dtype=torch.bfloat16)
    held = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    assert memory["sft"].weights == sum(held.values())
    assert memory["sft"].learning == 12 * table.trainable["sft"]
    doubled = estimate_memory(config, table, n_tokens=64, batch={"align": 4, "sft": 4, "rft": 1})
    assert doubled["sft"].activations == 2 * memory["sft"].activations


def test_checkpointing_lowers_the_estimate_of_rft_alone(tiny_recipe):
    plain = Recipe.parse(tiny_recipe)
    tiny_recipe["rft"]["gradient_checkpointing"] = True
    saving = Recipe.parse(tiny_recipe)
    batch = {"align": 4, "sft": 2, "rft": 1}
    before, after = (
        estimate_memory(c, count_parameters(c), n_tokens=64, batch=batch) for c in (plain, saving)
    )
    assert after["rft"].activations < before["rft"].activations
    assert after["sft"] == before["sft"]


def test_made_up_models_hold_numbers_everywhere(tiny_recipe):
    model = make_model(Recipe.parse(tiny_recipe), dtype=torch.bfloat16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert bool(torch.isfinite(tensor).all()), name
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not model.model.language_model.layers[0].adapter.o_proj.weight.any()
    assert float(model.model.language_model.rotary_emb.inv_freq[0]) == 1.0


def test_made_up_betas_have_the_real_numbers_of_voxels(tiny_recipe):
    betas, subject_index, anatomy = make_betas(Recipe.parse(tiny_recipe), 5, seed=0)
    assert anatomy.voxel_mask.sum(1).tolist() == [40, 30]
    assert betas.shape == (5, 40) and subject_index.tolist() == [0, 1, 0, 1, 0]


def test_the_peak_sees_what_was_allocated_and_freed():
    with PeakMemory() as before:
        pass
    with PeakMemory() as peak:
        del_me = torch.ones(50_000_000)
        del_me.add_(1)
        del del_me
    assert peak.gb - before.gb > 0.15
