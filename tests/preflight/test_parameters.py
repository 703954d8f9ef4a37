"""The parameter table against the poster's and against counting by hand."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from bitllm.cli import main
from bitllm.errors import ConfigError
from bitllm.model.build import build_bit_llm, n_trainable, train_interface
from bitllm.preflight.config import SystemConfig, read_system_config
from bitllm.preflight.made_up import make_aligner, make_model
from bitllm.preflight.parameters import count_parameters
from bitllm.stages.rft import with_lora

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
POSTER = {"prefix": 3_148_800, "prefix_mlp": 100_666_368, "cross_attention": 103_824_388}


def counted(config: Path, capsys: pytest.CaptureFixture) -> dict:
    main(["params", str(config), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("interface", POSTER)
def test_the_posters_trainable_parameters_come_out_exactly(interface, capsys):
    found = counted(PAPER / f"{interface}.yaml", capsys)
    assert found["interface"] == interface
    assert found["trainable"]["sft"] == POSTER[interface]
    assert found["parts"]["llm"] == 3_212_749_824  # as published: 3.21B, tied weights once
    assert found["total"] == sum(found["parts"].values())
    if interface == "cross_attention":
        assert found["parts"]["projection"] == 1024 * 3072 + 3072
        attention = 2 * 3072 * 3072 + 2 * 3072 * 1024
        assert found["parts"]["adapters"] == 4 * (attention + 3072 + 1)


def test_lora_and_encoder_are_what_their_shapes_say(capsys):
    found = counted(PAPER / "cross_attention.yaml", capsys)["parts"]
    into_out = [(3072, 3072)] * 2 + [(3072, 1024)] * 2 + [(3072, 8192)] * 2 + [(8192, 3072)]
    assert found["lora"] == 28 * sum(16 * (wide + out) for wide, out in into_out)
    queries, keys = 1024 * 128 + 1, (2 * 96 + 6 * 16) * 128 + 16 * (8 + 6 + 4 + 5 + 6 + 8)
    blocks = 4 * (1024 * 1024 + 1024 + 2 * 1024) + 2 * 1024
    head = 1024 * 128 * 1024 + 128 * 1024 + 2 * 1024
    assert found["encoder"] == queries + keys + blocks + head
    assert found["align_heads"] == 2 * (1024 * 768 + 768) + 2 * 1024 + 1


def test_the_table_in_the_terminal_names_the_stages(capsys):
    main(["params", str(PAPER / "prefix.yaml")])
    said = capsys.readouterr().out
    assert "3,148,800" in said and "Trainable: align" in said and "adapters" not in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_table_from_the_configuration_alone_is_that_of_the_built_model(tiny_system):
    config = SystemConfig.parse(tiny_system)
    table, model = count_parameters(config), make_model(config, dtype=torch.float32)
    assert sum(p.numel() for p in make_aligner(config).parameters()) == table.trainable["align"]
    train_interface(model)
    assert n_trainable(model) == table.trainable["sft"]
    assert n_trainable(with_lora(model, config.rft)) == table.trainable["rft"]


def test_an_encoder_that_sft_trains_is_counted_in_sft(tiny_system, tmp_path, capsys):
    frozen = count_parameters(SystemConfig.parse(tiny_system))
    tiny_system["sft"]["encoder"] = "trained"
    config = SystemConfig.parse(tiny_system)
    table, model = count_parameters(config), make_model(config, dtype=torch.float32)
    train_interface(model, with_encoder=True)
    assert table.trainable["sft"] == n_trainable(model)
    assert table.trainable["sft"] - frozen.trainable["sft"] == frozen.parts["encoder"]
    path = tmp_path / "system.yaml"
    path.write_text(yaml.safe_dump(tiny_system))
    main(["params", str(path)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["encoder"])
    assert "align, sft" in line


def test_what_sft_trains_is_what_the_table_says_for_a_loaded_llm(easy, easy_sft):
    card = json.loads((easy.folder / "sft" / "bitllm.json").read_text())
    saved = json.loads((easy.folder / "sft" / "config.json").read_text())
    sizes = {key: saved["text_config"][key] for key in SIZES}
    config = SystemConfig.parse(
        {
            "llm": {"name": "llm", "sizes": sizes},
            "voxels": {"subj01": 10},
            "atlas_labels": dict(zip(easy.encoder.atlases, saved["encoder"]["n_labels"], strict=True)),
            "embedding_width": 16,
            "encoder": easy.encoder.model_dump(),
            "sft": {"interface": saved["interface"], "adapter_layers": saved["adapter_layers"]},
        }
    )
    assert count_parameters(config).trainable["sft"] == card["n_trainable"]


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)

WRONG = {
    "a layer beyond the depth": (
        ("sft", {"adapter_layers": [1, 9]}),
        "expected different layers from 0 to 2 (the LLM has 3), found [1, 9]",
    ),
    "the same layer twice": (
        ("sft", {"adapter_layers": [1, 1]}),
        "expected different layers from 0 to 2 (the LLM has 3), found [1, 1]",
    ),
    "another architecture": (
        ("llm", {"name": "gpt2", "sizes": {"model_type": "gpt2"}}),
        "llm.sizes.model_type: expected llama, found gpt2; choose a Llama",
    ),
    "an atlas without labels": (
        ("atlas_labels", {"stream": 7}),
        "expected the number of labels of `streams`, found none; did you mean `stream`?",
    ),
    "no subject": (("voxels", {}), "expected at least one subject with voxels, found {}"),
    "no voxel": (("voxels", {"subj01": 0}), "expected at least one subject with voxels, found {'subj01': 0}"),
    "an unknown key": (("voxel", {}), "unknown key `voxel`; did you mean `voxels`?"),
    "an unknown size": (
        ("llm", {"name": "x", "sizes": {"hidden_sizes": 3}}),
        "unknown key `llm.sizes.hidden_sizes`; did you mean `hidden_size`?",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_system_is_one_line_that_names_the_file(case, tiny_system, tmp_path):
    (key, value), message = WRONG[case]
    if isinstance(value, dict) and key == "llm":
        value = {**value, "sizes": {**tiny_system["llm"]["sizes"], **value["sizes"]}}
    path = tmp_path / "system.yaml"
    path.write_text(yaml.safe_dump({**tiny_system, key: value}))
    with pytest.raises(ConfigError) as refused:
        read_system_config(path)
    assert str(path) in str(refused.value) and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_llm_of_a_plan_and_a_real_llama_have_the_same_shapes(llm_folder, tiny_system):
    from bitllm.model.checkpoint.base import load_llm

    base = load_llm(llm_folder)
    sizes = {key: getattr(base.llm.config, key) for key in SIZES}
    config = SystemConfig.parse({**tiny_system, "llm": {"name": "llm", "sizes": sizes}})
    arguments = config.encoder_arguments()
    built = build_bit_llm(base.llm, encoder=arguments, adapter_layers=[0, 1], brain_token_id=4)
    planned = make_model(config, dtype=base.llm.dtype)
    assert {n: p.shape for n, p in built.named_parameters()} == {
        n: p.shape for n, p in planned.named_parameters()
    }
