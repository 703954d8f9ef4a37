"""Checkpoints in the Hugging Face layout: both kinds, by every door, and what they refuse."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from bitllm.errors import CheckpointError, ConfigError
from bitllm.model.build import build_bit_llm, load_trained, save_trained
from bitllm.model.checkpoint.base import BaseLlm, load_llm, weights_hash
from bitllm.model.checkpoint.weights import is_ours
from bitllm.model.modeling import BitLlmForCausalLM, BitLlmModel
from bitllm.toy_models import make_word_tokenizer

IDS = torch.arange(3, 9)[None].repeat(3, 1)


@pytest.fixture
def base(llm, tmp_path) -> BaseLlm:
    """The random Llama in a folder of its own."""
    llm.save_pretrained(tmp_path / "llm")
    make_word_tokenizer(["a dog"], wrap=False).save_pretrained(tmp_path / "llm")
    return load_llm(tmp_path / "llm")


@pytest.fixture
def model(base, encoder_sizes) -> BitLlmForCausalLM:
    """A BIT-LLM whose adapters say something."""
    torch.manual_seed(5)
    built = build_bit_llm(base.llm, encoder=encoder_sizes, adapter_layers=[0, 2]).eval()
    for layer in (0, 2):
        torch.nn.init.normal_(built.model.language_model.layers[layer].adapter.o_proj.weight)
    return built


@pytest.fixture
def trained(model, base, tmp_path):
    """A checkpoint of what was trained, beside its base LLM."""
    save_trained(model, tmp_path / "sft", base=base)
    return tmp_path / "sft"


def logits(model: Any, brain: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **brain).logits


def test_a_checkpoint_finds_its_base_llm_beside_it(model, trained, brain):
    for loaded in (
        BitLlmForCausalLM.from_pretrained(trained),
        AutoModelForCausalLM.from_pretrained(trained),
        BitLlmForCausalLM.from_pretrained(trained, base_llm=trained.parent / "llm"),
    ):
        assert torch.equal(logits(loaded, brain), logits(model, brain))
        assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert AutoConfig.from_pretrained(trained).interface == "cross_attention"


def test_a_checkpoint_holds_no_weight_of_the_llm_and_no_path(trained, base):
    saved = load_file(trained / "model.safetensors")
    assert saved and all(is_ours(name) for name in saved)
    for name in ("config.json", "bitllm.json"):
        text = (trained / name).read_text()
        assert str(trained.parent) not in text
        assert json.loads(text)["base_llm"] == base.reference()


def test_a_whole_checkpoint_needs_no_base_llm(model, trained, brain, tmp_path):
    model.save_pretrained(tmp_path / "whole", with_base_llm=True)
    (tmp_path / "llm").rename(tmp_path / "elsewhere")
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    assert not ("lm_head.weight" in saved and "model.language_model.embed_tokens.weight" in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(logits(again, brain), logits(model, brain))
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert model.config.base_llm is not None


def test_the_model_without_its_head_comes_from_either_kind(model, trained, brain, tmp_path):
    model.save_pretrained(tmp_path / "whole", with_base_llm=True)
    with torch.no_grad():
        expected = model.model(input_ids=IDS, **brain).last_hidden_state
        for folder in (trained, tmp_path / "whole"):
            for door in (AutoModel, BitLlmModel):
                assert torch.equal(
                    door.from_pretrained(folder)(input_ids=IDS, **brain).last_hidden_state, expected
                )


def test_first_values_are_written_and_not_what_memory_held(base, encoder_sizes):
    """`from_pretrained` leaves missing parameters empty; each must be set by `_init_weights`."""
    built = build_bit_llm(base.llm, encoder=encoder_sizes, adapter_layers=[0, 2], gate_start=0.5)
    encoder = built.model.encoder
    assert float(encoder.log_sharpness.exp()) == pytest.approx(12.0)
    assert 0.05 < float(encoder.keys.positions.frequencies.std()) < 0.12  # 1 / 12 mm
    assert 0.8 < float(encoder.queries.std()) < 1.2
    for layer in (0, 2):
        adapter = built.model.language_model.layers[layer].adapter
        assert float(adapter.gate) == 0.5
        assert not adapter.o_proj.weight.any()
        assert torch.equal(adapter.norm.weight, torch.ones(32))


def test_adapters_can_start_as_their_layers_own_self_attention(base, encoder_sizes):
    built = build_bit_llm(
        base.llm, encoder=encoder_sizes, adapter_layers=[1, 3], adapter_start="self_attention"
    )
    for slot, layer in enumerate((1, 3)):
        own = built.model.language_model.layers[layer]
        assert torch.equal(own.adapter.q_proj.weight, own.self_attn.q_proj.weight)
        assert torch.equal(built.model.interface.memory.k_proj[slot].weight, own.self_attn.k_proj.weight)
        assert torch.equal(built.model.interface.memory.v_proj[slot].weight, own.self_attn.v_proj.weight)
        assert torch.equal(own.adapter.norm.weight, own.input_layernorm.weight)
        assert own.adapter.q_proj.weight.data_ptr() != own.self_attn.q_proj.weight.data_ptr()
    tokens = torch.randn(3, 5, 12)
    with torch.no_grad():
        assert torch.equal(built.eval()(input_ids=IDS, brain_tokens=tokens).logits, base.llm(IDS).logits)


def test_building_leaves_the_llm_and_its_configuration_as_they_were(base, encoder_sizes):
    before = base.llm.config.to_dict(), base.llm.config._attn_implementation, weights_hash(base.llm)
    build_bit_llm(base.llm, base_dtype=torch.bfloat16, encoder=encoder_sizes, adapter_layers=[0])
    assert before == (base.llm.config.to_dict(), base.llm.config._attn_implementation, weights_hash(base.llm))


def test_the_llm_is_shared_and_not_copied_in_its_own_precision(base, encoder_sizes):
    built = build_bit_llm(base.llm, encoder=encoder_sizes, adapter_layers=[0])
    ours, theirs = built.model.language_model.layers[1], base.llm.model.layers[1]
    assert ours.self_attn.q_proj.weight.data_ptr() == theirs.self_attn.q_proj.weight.data_ptr()


def damage(folder, alter) -> None:
    tensors = load_file(folder / "model.safetensors")
    alter(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["trained", "whole"])
def test_missing_and_unexpected_weights_are_an_error_that_lists_them(model, trained, kind, tmp_path):
    model.save_pretrained(tmp_path / "whole", with_base_llm=True)

    def rename(tensors):
        tensors["model.encoder.query"] = tensors.pop("model.encoder.queries")

    damage(tmp_path / {"trained": "sft", "whole": "whole"}[kind], rename)
    with pytest.raises(
        CheckpointError,
        match=r"missing weights: model\.encoder\.queries; unexpected weights: model\.encoder\.query;",
    ):
        BitLlmForCausalLM.from_pretrained(tmp_path / {"trained": "sft", "whole": "whole"}[kind])


def test_a_weight_of_another_shape_is_named_in_a_whole_checkpoint_too(model, trained, tmp_path):
    model.save_pretrained(tmp_path / "whole", with_base_llm=True)
    damage(tmp_path / "whole", lambda tensors: tensors.update({"model.encoder.queries": torch.zeros(17, 8)}))
    with pytest.raises(CheckpointError, match=r"\(16, 8\) of the weight .*queries, found \(17, 8\)"):
        BitLlmForCausalLM.from_pretrained(tmp_path / "whole")


def test_a_checkpoint_of_another_interface_is_refused(trained, base):
    with pytest.raises(CheckpointError, match=r"unexpected weights: .*memory\.k_proj"):
        BitLlmForCausalLM.from_pretrained(trained, interface="prefix", brain_token_id=4)
    with pytest.raises(CheckpointError, match=r"of the interface prefix, found cross_attention; name the"):
        load_trained(trained, base, interface="prefix")


def test_another_base_llm_is_refused_with_both_names(trained, base, tmp_path):
    torch.manual_seed(9)
    LlamaForCausalLM(base.llm.config).save_pretrained(tmp_path / "other")
    make_word_tokenizer(["a dog"], wrap=False).save_pretrained(tmp_path / "other")
    with pytest.raises(
        CheckpointError,
        match=r"llm \(sha256 [0-9a-f]{12}…\), found other \([0-9a-f]{12}…\);",
    ):
        BitLlmForCausalLM.from_pretrained(trained, base_llm=tmp_path / "other")


def test_a_base_llm_that_is_nowhere_is_asked_for(trained, tmp_path):
    (tmp_path / "llm").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"base LLM llm .*base_llm=PATH"):
        BitLlmForCausalLM.from_pretrained(trained)
    loaded = BitLlmForCausalLM.from_pretrained(trained, base_llm=tmp_path / "elsewhere")
    assert loaded.config.base_llm["name"] == "llm"


def test_a_folder_without_weights_or_with_a_foreign_configuration_is_named(trained, base, tmp_path):
    (trained / "model.safetensors").rename(trained / "weights")
    with pytest.raises(CheckpointError, match=r"checkpoint with model\.safetensors, found none"):
        BitLlmForCausalLM.from_pretrained(trained)
    (trained / "weights").rename(trained / "model.safetensors")
    (trained / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json of a BIT-LLM"):
        load_trained(trained, base)
    with pytest.raises(
        CheckpointError, match=r"expected a checkpoint of a stage, found config\.json of another"
    ):
        load_trained(tmp_path / "llm", base)


def test_a_bf16_llm_keeps_encoder_and_interface_in_float32(trained, brain, model):
    loaded = BitLlmForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype is (torch.float32 if is_ours(name) else torch.bfloat16), name
    found, expected = logits(loaded, brain).float(), logits(model, brain)
    # bfloat16 has 8 bits: relative error 2⁻⁸ on each of a few sums
    assert torch.allclose(found, expected, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"dtype": torch.float16}, torch.float16),
        ({"dtype": "float32"}, torch.float32),
        ({"dtype": "auto"}, torch.float32),  # as it is stored
    ],
)
def test_the_precision_may_be_named_as_in_transformers(trained, named, expected):
    loaded = AutoModelForCausalLM.from_pretrained(trained, **named)
    assert loaded.lm_head.weight.dtype is expected


def test_a_precision_that_is_none_is_named(trained):
    with pytest.raises(ConfigError, match="int8"):
        BitLlmForCausalLM.from_pretrained(trained, dtype="int8")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("content", [POINTER, b"\x08\0\0\0\0\0\0\0{}", b""], ids=["pointer", "cut", "empty"])
def test_weights_that_are_a_pointer_or_damaged_are_named(trained, base, content):
    for place, doors in (
        (trained, (lambda: BitLlmForCausalLM.from_pretrained(trained), lambda: load_trained(trained, base))),
        (trained.parent / "llm", (lambda: load_llm(trained.parent / "llm"),)),
    ):
        (place / "model.safetensors").write_bytes(content)
        for door in doors:
            with pytest.raises((CheckpointError, ConfigError), match=r"model\.safetensors") as caught:
                door()
            assert "\n" not in str(caught.value)
            assert ("git lfs pull" in str(caught.value)) == (content == POINTER)


def test_other_formats_of_the_same_weights_may_be_pointers(trained):
    (trained.parent / "llm" / "pytorch_model.bin").write_bytes(POINTER)
    (trained.parent / "llm" / "consolidated.safetensors").write_bytes(POINTER)
    BitLlmForCausalLM.from_pretrained(trained)
