"""All end tokens that the LLM's folder names stop a caption, in every decoder."""

import json
from collections import Counter

import pytest
import torch

from bitllm.data.prompt import INSTRUCTIONS, Prompter
from bitllm.model.build import build_bit_llm, save_trained
from bitllm.model.captioner import Captioner
from bitllm.model.checkpoint.base import end_token_ids, load_llm
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.toy_models import make_word_tokenizer

EOS = 3  # the word tokenizer's; 2 is its unknown word, and the default of `LlamaConfig`
LENGTH = 8


@pytest.fixture
def tokenizer():
    """A tokenizer with a word for each of the LLM's 50 ids."""
    made = make_word_tokenizer([" ".join(f"w{n:02d}" for n in range(60))], wrap=False)
    assert len(made) >= 50
    return made


@pytest.fixture
def folder(llm, tokenizer, tmp_path):
    """The random Llama in a folder of its own."""
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def state(folder, **config):
    (folder / "generation_config.json").write_text(json.dumps(config))
    return load_llm(folder)


@torch.no_grad()
def raw(model, prompter, brain_tokens):
    """Greedy token ids that nothing ends."""
    ids = torch.tensor([prompter.prompt_ids(INSTRUCTIONS[0])] * len(brain_tokens))
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        brain_tokens=brain_tokens,
        do_sample=False,
        max_new_tokens=LENGTH,
        suppress_tokens=[EOS],
        eos_token_id=EOS,
    )
    return out[:, ids.shape[1] :].tolist()


def cut(ids, ends):
    """The ids before the first end, and whether there is one."""
    first = min((ids.index(end) for end in ends if end in ids), default=len(ids))
    return ids[:first], first < len(ids)


@pytest.fixture
def talking(open_model, tokenizer):
    """A model, its prompter, three brain inputs and a token that its raw captions hold past their first."""
    prompter, brain_tokens = Prompter(tokenizer), 3 * torch.randn(3, 5, 12)
    found = raw(open_model, prompter, brain_tokens)
    ordinary = [token for ids in found for token in ids[1:] if token > 6]
    return open_model, prompter, brain_tokens, Counter(ordinary).most_common(1)[0][0]


def test_generation_config_adds_end_tokens_to_the_tokenizers(folder, tokenizer):
    base = state(folder, eos_token_id=[9, 7], temperature=0.6, do_sample=True, repetition_penalty=1.3)
    assert end_token_ids(base.llm, tokenizer) == [EOS, 7, 9]
    assert base.llm.generation_config.repetition_penalty is None
    assert end_token_ids(state(folder, eos_token_id=7).llm, tokenizer) == [EOS, 7]


def test_the_default_end_token_of_llama_does_not_count_unless_it_is_stated(folder, tokenizer):
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2
    assert end_token_ids(load_llm(folder).llm, tokenizer) == [EOS]
    (folder / "generation_config.json").unlink()
    assert end_token_ids(load_llm(folder).llm, tokenizer) == [EOS]
    assert end_token_ids(state(folder, eos_token_id=2).llm, tokenizer) == [2, EOS]


def test_a_checkpoint_takes_the_end_tokens_of_its_base_llm(folder, tokenizer, encoder_sizes):
    base = state(folder, eos_token_id=[7, 9])
    model = build_bit_llm(base.llm, encoder=encoder_sizes, adapter_layers=[0])
    assert end_token_ids(model, tokenizer) == [EOS, 7, 9]
    save_trained(model, folder.parent / "sft", base=base)
    (folder.parent / "sft" / "generation_config.json").unlink()
    loaded = BitLlmForCausalLM.from_pretrained(folder.parent / "sft")
    assert end_token_ids(loaded, tokenizer) == [EOS, 7, 9]
    loaded.save_pretrained(folder.parent / "whole", with_base_llm=True)
    whole = BitLlmForCausalLM.from_pretrained(folder.parent / "whole")
    assert whole.generation_config.eos_token_id == [EOS, 7, 9]


def test_greedy_and_streamed_captions_end_at_the_first_end_token(talking):
    model, prompter, brain_tokens, other = talking
    expected = [cut(ids, {other, EOS})[0] for ids in raw(model, prompter, brain_tokens)]
    model.generation_config.eos_token_id = [EOS, other]
    model.generation_config._from_model_config = False
    found = Captioner(model, prompter).greedy(brain_tokens, max_new_tokens=LENGTH)
    # with the tokenizer's own end token, which `raw` never says
    texts = prompter.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert found == [text.strip() for text in texts]
    assert any(len(ids) < LENGTH for ids in expected)
    said = []
    for row, caption in enumerate(found):
        (streamed,) = Captioner(model, prompter).greedy(
            brain_tokens[row : row + 1], on_text=said.append, max_new_tokens=LENGTH
        )
        assert streamed == caption == said[-1]


def test_rollouts_end_at_any_end_token_and_say_so(talking):
    model, prompter, brain_tokens, _ = talking
    how = {"n_captions": 4, "max_new_tokens": LENGTH, "seeds": range(3), "temperature": 1.0}
    start = len(prompter.prompt_ids(INSTRUCTIONS[0]))

    def sampled():
        rollout = Captioner(model, prompter).sample(brain_tokens, **how)
        return rollout, rollout.input_ids[:, start:].tolist()

    free = sampled()[1]
    other = Counter(token for ids in free for token in ids[1:] if token > 6).most_common(1)[0][0]
    model.generation_config.eos_token_id = [EOS, other]
    model.generation_config._from_model_config = False
    rollout, _ = sampled()
    before, ended = zip(*(cut(ids, {other, EOS}) for ids in free), strict=True)
    assert rollout.has_ended.tolist() == list(ended)
    assert any(other in ids for ids in free)
    texts = prompter.tokenizer.batch_decode(list(before), skip_special_tokens=True)
    assert rollout.captions == [text.strip() for text in texts]
    lengths = [len(ids) + has_ended for ids, has_ended in zip(before, ended, strict=True)]
    assert (rollout.labels != -100).sum(-1).tolist() == lengths
