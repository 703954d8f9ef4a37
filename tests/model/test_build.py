import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from bitllm.errors import CheckpointError
from bitllm.model.build import (
    build_bit_llm,
    load_trained,
    n_trainable,
    save_trained,
    train_interface,
)
from bitllm.model.checkpoint.base import BaseLlm, weights_hash
from bitllm.model.checkpoint.weights import is_ours
from bitllm.toy_models import make_word_tokenizer
from tiny_model import ENCODER

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
    tensors = load_file(checkpoint / "model.safetensors")
    alter(tensors)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_comes_back_with_the_same_logits_and_holds_no_llm(base, checkpoint):
    torch.manual_seed(5)
    model = build_bit_llm(base.llm, **SETTINGS).eval()
    again = load_trained(checkpoint, base).eval()
    ids, brain_tokens = torch.arange(3, 9)[None], torch.randn(1, 5, 12)
    assert torch.equal(
        model(input_ids=ids, brain_tokens=brain_tokens).logits,
        again(input_ids=ids, brain_tokens=brain_tokens).logits,
    )
    saved = set(load_file(checkpoint / "model.safetensors"))
    assert saved == {name for name in model.state_dict() if is_ours(name)}
    assert not any("self_attn" in name or "embed_tokens" in name or "lm_head" in name for name in saved)


def test_a_checkpoint_that_is_not_there_is_named(base, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint with model.safetensors, found none"):
        load_trained(tmp_path, base)


def test_a_checkpoint_of_another_base_llm_is_refused_with_both_names(base, checkpoint):
    torch.manual_seed(9)
    other = LlamaForCausalLM(base.llm.config)
    changed = BaseLlm(other, base.tokenizer, "other", weights_hash(other))
    with pytest.raises(CheckpointError, match=r"random \(sha256 [0-9a-f]{12}…\), found"):
        load_trained(checkpoint, changed)


def test_a_missing_and_an_unexpected_weight_are_named(base, checkpoint):
    def rename(tensors):
        tensors["model.encoder.query"] = tensors.pop("model.encoder.queries")

    change(checkpoint, rename)
    with pytest.raises(
        CheckpointError,
        match=r"missing weights: model.encoder.queries; unexpected weights: model.encoder.query;",
    ):
        load_trained(checkpoint, base)


def test_a_weight_of_another_shape_is_named(base, checkpoint):
    def widen(tensors):
        tensors["model.encoder.queries"] = torch.zeros(17, 8)

    change(checkpoint, widen)
    with pytest.raises(
        CheckpointError, match=r"\(16, 8\) of the weight model.encoder.queries, found \(17, 8\)"
    ):
        load_trained(checkpoint, base)


def test_a_truncated_checkpoint_is_one_named_error(base, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_trained(checkpoint, base)


def test_base_weights_of_a_deeper_llama_are_refused(base):
    deeper = LlamaForCausalLM(LlamaConfig(**base.llm.config.to_dict() | {"num_hidden_layers": 5}))
    deeper.config.num_hidden_layers = 4
    with pytest.raises(
        CheckpointError,
        match=r"base LLM: .*missing weights: none; unexpected weights: model\.language_model\.layers\.4.* and 1 more;",
    ):
        build_bit_llm(deeper, **SETTINGS)


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
