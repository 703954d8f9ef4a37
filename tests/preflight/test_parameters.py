"""The parameter table against the poster's and against counting by hand."""

import json

import pytest
import torch
import yaml

from bitllm.cli import main
from bitllm.errors import ConfigError
from bitllm.model.build import build_bit_llm, n_trainable, train_interface
from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.cost import count_parameters, encoder_arguments, make_aligner
from bitllm.preflight.steps import make_model
from bitllm.stages.rft import with_lora

POSTER = {"prefix": 3_148_800, "prefix_mlp": 100_666_368, "cross_attention": 103_824_388}


def counted(capsys: pytest.CaptureFixture, *words: str) -> dict:
    main(["params", "poster", *words, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("interface", POSTER)
def test_the_posters_trainable_parameters_come_out_exactly(interface, capsys):
    found = counted(capsys, "--sft.interface", interface)
    assert found["interface"] == interface
    assert found["trainable"]["sft"] == POSTER[interface]
    assert found["parts"]["llm"] == 3_212_749_824  # as published: 3.21B, tied weights once
    assert found["total"] == sum(found["parts"].values())
    if interface == "cross_attention":
        assert found["parts"]["projection"] == 1024 * 3072 + 3072
        attention = 2 * 3072 * 3072 + 2 * 3072 * 1024
        assert found["parts"]["adapters"] == 4 * (attention + 3072 + 1)


def test_lora_and_encoder_are_what_their_shapes_say(capsys):
    found = counted(capsys)["parts"]
    into_out = [(3072, 3072)] * 2 + [(3072, 1024)] * 2 + [(3072, 8192)] * 2 + [(8192, 3072)]
    assert found["lora"] == 28 * sum(16 * (wide + out) for wide, out in into_out)
    queries, keys = 1024 * 128 + 1, (2 * 96 + 6 * 16) * 128 + 16 * (8 + 6 + 4 + 5 + 6 + 8)
    blocks = 4 * (1024 * 1024 + 1024 + 2 * 1024) + 2 * 1024
    head = 1024 * 128 * 1024 + 128 * 1024 + 2 * 1024
    assert found["encoder"] == queries + keys + blocks + head
    assert found["align_heads"] == 2 * (1024 * 768 + 768) + 2 * 1024 + 1


def test_the_table_in_the_terminal_names_the_stages(capsys):
    main(["params", "poster", "--sft.interface", "prefix"])
    said = capsys.readouterr().out
    assert "3,148,800" in said and "Trainable: align" in said and "adapters" not in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_table_from_the_configuration_alone_is_that_of_the_built_model(tiny_recipe):
    config = Recipe.parse(tiny_recipe)
    table, model = count_parameters(config), make_model(config, dtype=torch.float32)
    assert sum(p.numel() for p in make_aligner(config).parameters()) == table.trainable["align"]
    train_interface(model)
    assert n_trainable(model) == table.trainable["sft"]
    assert n_trainable(with_lora(model, config.rft)) == table.trainable["rft"]


def test_an_encoder_that_sft_trains_is_counted_in_sft(tiny_recipe, tmp_path, capsys):
    frozen = count_parameters(Recipe.parse(tiny_recipe))
    tiny_recipe["sft"]["encoder"] = "trained"
    config = Recipe.parse(tiny_recipe)
    table, model = count_parameters(config), make_model(config, dtype=torch.float32)
    train_interface(model, with_encoder=True)
    assert table.trainable["sft"] == n_trainable(model)
    assert table.trainable["sft"] - frozen.trainable["sft"] == frozen.parts["encoder"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    main(["params", str(path)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["encoder"])
    assert "align, sft" in line


def test_what_sft_trains_is_what_the_table_says_for_a_loaded_llm(easy, easy_sft):
    card = json.loads((easy.folder / "sft" / "bitllm.json").read_text())
    saved = json.loads((easy.folder / "sft" / "config.json").read_text())
    sizes = {key: saved["text_config"][key] for key in SIZES}
    config = Recipe.parse(
        {
            "llm": {"source": "llm", "sizes": sizes},
            "data": {
                "atlas_labels": dict(zip(easy.encoder.atlases, saved["encoder"]["n_labels"], strict=True))
            },
            "clip": {"embedding_width": 16},
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
    "a layer beyond the depth": (("sft", {"adapter_layers": [1, 9]}), r"from 0 to 2 .*found \[1, 9\]"),
    "the same layer twice": (("sft", {"adapter_layers": [1, 1]}), r"from 0 to 2 .*found \[1, 1\]"),
    "an atlas without labels": (
        ("data", {"atlas_labels": {"stream": 7}}),
        "`streams`, .* did you mean `stream`",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_do_not_fit_are_one_line(case, tiny_recipe, tmp_path, capsys):
    (key, value), message = WRONG[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tiny_recipe, key: value}))
    with pytest.raises(ConfigError, match=message):
        count_parameters(Recipe.read(path))
    with pytest.raises(SystemExit) as stopped:
        main(["params", str(path)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_llm_of_a_plan_and_a_real_llama_have_the_same_shapes(llm_folder, tiny_recipe):
    from bitllm.model.checkpoint.base import load_llm

    base = load_llm(llm_folder)
    sizes = {key: getattr(base.llm.config, key) for key in SIZES}
    config = Recipe.parse({**tiny_recipe, "llm": {"source": "llm", "sizes": sizes}})
    arguments = encoder_arguments(config)
    built = build_bit_llm(base.llm, encoder=arguments, adapter_layers=[0, 1], brain_token_id=4)
    planned = make_model(config, dtype=base.llm.dtype)
    assert {n: p.shape for n, p in built.named_parameters()} == {
        n: p.shape for n, p in planned.named_parameters()
    }
