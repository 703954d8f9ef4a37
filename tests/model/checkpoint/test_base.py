from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from bitllm.errors import ConfigError
from bitllm.model.checkpoint.base import load_llm, placeholder_token_id, weights_hash
from bitllm.toy_models import make_word_tokenizer


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
