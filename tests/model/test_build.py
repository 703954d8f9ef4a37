from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bitllm.errors import CheckpointError, ConfigError
from bitllm.model.build import (
    BaseLlm,
    build_bit_llm,
    is_ours,
    load_base_weights,
    load_llm,
    load_ours,
    load_trained,
    n_trainable,
    placeholder_token_id,
    save_trained,
    train_interface,
    weights_hash,
)
from bitllm.neighbours.vocabulary import make_word_tokenizer

ENCODER = {
    "n_queries": 16,
    "rank": 8,
    "n_brain_tokens": 5,
    "token_width": 12,
    "n_labels": [3, 4],
    "n_blocks": 1,
    "n_frequencies": 8,
}
SETTINGS = {"encoder": ENCODER, "interface": "cross_attention", "adapter_layers": [0, 2], "brain_token_id": 4}


@pytest.fixture
def base(llm):
    """The random Llama with a tokenizer and its checksum."""
    return BaseLlm(llm, make_word_tokenizer(["a dog"], wrap=False), "random", weights_hash(llm))


@pytest.fixture
def checkpoint(base, tmp_path):
    """A checkpoint of a BIT-LLM around it."""
    torch.manual_seed(5)
    save_trained(build_bit_llm(base.llm, **SETTINGS), tmp_path / "sft", base=base, about={"seed": 5})
    return tmp_path / "sft"


def change(checkpoint, alter):
    """Alter the tensors of a checkpoint."""
    tensors = load_file(checkpoint / "trained.safetensors")
    alter(tensors)
    save_file(tensors, checkpoint / "trained.safetensors")


def test_a_checkpoint_comes_back_with_the_same_logits_and_holds_no_llm(base, checkpoint):
    torch.manual_seed(5)
    model = build_bit_llm(base.llm, **SETTINGS).eval()
    again = load_trained(checkpoint, base).eval()
    ids, brain_tokens = torch.arange(3, 9)[None], torch.randn(1, 5, 12)
    assert torch.equal(
        model(input_ids=ids, brain_tokens=brain_tokens).logits,
        again(input_ids=ids, brain_tokens=brain_tokens).logits,
    )
    saved = set(load_file(checkpoint / "trained.safetensors"))
    assert saved == {name for name in model.state_dict() if is_ours(name)}
    assert not any("self_attn" in name or "embed_tokens" in name or "lm_head" in name for name in saved)


def test_a_checkpoint_that_is_not_there_is_named(base, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint with trained.safetensors, found none"):
        load_trained(tmp_path, base)


def test_a_checkpoint_of_another_base_llm_is_refused_with_both_names(base, checkpoint):
    torch.manual_seed(9)
    other = LlamaForCausalLM(base.llm.config)
    changed = BaseLlm(other, base.tokenizer, "other", weights_hash(other))
    with pytest.raises(
        CheckpointError, match=r"trained on the base LLM random \(sha256 [0-9a-f]{12}…\), found"
    ):
        load_trained(checkpoint, changed)


def test_a_missing_and_an_unexpected_weight_are_named(base, checkpoint):
    def rename(tensors):
        tensors["model.encoder.query"] = tensors.pop("model.encoder.queries")

    change(checkpoint, rename)
    with pytest.raises(
        CheckpointError,
        match=r"missing weights \['model.encoder.queries'\], unexpected \['model.encoder.query'\]",
    ):
        load_trained(checkpoint, base)


def test_a_weight_of_another_shape_is_named(base, checkpoint):
    def widen(tensors):
        tensors["model.encoder.queries"] = torch.zeros(17, 8)

    change(checkpoint, widen)
    with pytest.raises(
        CheckpointError, match=r"model.encoder.queries has shape \(17, 8\), expected \(16, 8\); the"
    ):
        load_trained(checkpoint, base)


def test_a_truncated_checkpoint_is_one_named_error(base, checkpoint):
    path = checkpoint / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"trained\.safetensors"):
        load_trained(checkpoint, base)


def test_only_the_named_weights_are_loaded(base):
    model = build_bit_llm(base.llm, **SETTINGS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gates = {name: torch.full_like(t, 0.25) for name, t in before.items() if name.endswith(".gate")}
    load_ours(model, gates, source="gates", only=lambda name: name.endswith(".gate"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, gates.get(name, before[name]))


def test_base_weights_of_a_deeper_llama_are_refused(base):
    model = build_bit_llm(base.llm, **SETTINGS)
    deeper = LlamaForCausalLM(LlamaConfig(**base.llm.config.to_dict() | {"num_hidden_layers": 5}))
    with pytest.raises(CheckpointError, match=r"base LLM: missing weights \[\], unexpected \['layers.4"):
        load_base_weights(model, deeper)


def test_everything_is_frozen_until_the_interface_may_learn(base):
    model = build_bit_llm(base.llm, **SETTINGS)
    assert n_trainable(model) == 0
    train_interface(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("model.interface.") or ".adapter." in name for name in learning)
    train_interface(model, with_encoder=True)
    more = {name for name, p in model.named_parameters() if p.requires_grad} - learning
    assert more == {name for name, _ in model.named_parameters() if name.startswith("model.encoder.")}


def test_a_checksum_is_of_the_weights_and_not_of_their_storage(llm, tmp_path):
    first = weights_hash(llm)
    llm.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weights_hash(LlamaForCausalLM.from_pretrained(tmp_path)) == first
    with torch.no_grad():
        llm.model.norm.weight[0] += 1e-3
    assert weights_hash(llm) != first


def test_an_llm_is_loaded_with_its_tokenizer_ready_for_decoding(llm, tmp_path):
    llm.save_pretrained(tmp_path)
    make_word_tokenizer(["a dog"], wrap=False).save_pretrained(tmp_path)
    base = load_llm(tmp_path)
    assert base.tokenizer.padding_side == "left"
    assert base.tokenizer.pad_token_id is not None
    assert Path(base.name).name == tmp_path.name
    assert base.sha256 == weights_hash(llm)
    assert not base.llm.training


def test_a_tokenizer_without_padding_pads_with_the_end_token(llm, tmp_path):
    llm.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")),
        eos_token="</s>",
    )
    tokenizer.save_pretrained(tmp_path)
    assert load_llm(tmp_path).tokenizer.pad_token_id == 1


def test_a_folder_that_is_not_there_or_empty_is_refused(tmp_path):
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="expected a folder or hub id of a Llama with its tokenizer"):
            load_llm(place)


def test_a_gpt2_is_refused_by_its_model_type(tmp_path):
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    make_word_tokenizer(["a dog"], wrap=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="expected model_type llama, found gpt2; choose a Llama"):
        load_llm(tmp_path)


def test_a_folder_of_a_llama_without_its_weights_is_refused(llm, tmp_path):
    llm.save_pretrained(tmp_path)
    make_word_tokenizer(["a dog"], wrap=False).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="expected a folder or hub id of a Llama"):
        load_llm(tmp_path)


def test_the_placeholder_is_a_special_token_that_no_caption_holds():
    tokenizer = make_word_tokenizer(["a dog"], wrap=False)
    assert placeholder_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("<brain>")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ConfigError, match="as placeholder of brain tokens, found none; add a special token"):
        placeholder_token_id(bare)


def test_saving_takes_the_log_along_and_replaces_what_was_there(base, checkpoint):
    log = checkpoint.with_name("log")
    log.mkdir()
    (log / "log.jsonl").write_text("{}\n")
    (checkpoint / "old.txt").write_text("old")
    save_trained(build_bit_llm(base.llm, **SETTINGS), checkpoint, base=base, log=log)
    assert {path.name for path in checkpoint.iterdir()} == {"trained.safetensors", "bitllm.json", "log.jsonl"}
    assert not log.exists()
