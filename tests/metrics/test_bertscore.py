import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from bitllm.errors import BitLlmError, DataError, ModelError
from bitllm.evaluation.scoring.score_file import ScoreOptions, score_file
from bitllm.metrics.bertscore import BertScorer, load_bert_scorer

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "man", "dog", "on", "the", "wave", "two", "cats"]
CAPTIONS = ["a man on the wave", "two cats", "", "a dog on two cats on the man", "zebra"]
REFERENCES = [
    ["a man", "a wave on the man", "the dog"],
    ["two cats"],
    ["a dog"],
    ["a dog", "the two cats on the wave a man"],
    ["a dog on", "two"],
]


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


@pytest.fixture
def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, **sizes)).eval()


@torch.no_grad()
def f1_by_a_loop(encode, tokenizer, caption, reference):
    """One pair, one token at a time; special tokens may be matched but are not counted."""
    sides = []
    for text in (caption, reference):
        ids = tokenizer(text)["input_ids"]
        states = encode(torch.tensor([ids]))[0]
        sides.append(
            [(state / state.norm(), token not in (1, 2)) for state, token in zip(states, ids, strict=True)]
        )
    ours, theirs = sides
    if not any(counts for _, counts in ours) or not any(counts for _, counts in theirs):
        return 0.0
    precision = np.mean([max(float(x @ y) for y, _ in theirs) for x, counts in ours if counts])
    recall = np.mean([max(float(x @ y) for x, _ in ours) for y, counts in theirs if counts])
    return 100 * 2 * precision * recall / (precision + recall)


def expected(encode, tokenizer):
    return [
        max(f1_by_a_loop(encode, tokenizer, caption, text) for text in texts)
        for caption, texts in zip(CAPTIONS, REFERENCES, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_best_f1_equals_a_loop_written_out(bert, tokenizer, batch_size):
    found = BertScorer(bert, tokenizer, batch_size=batch_size).score(CAPTIONS, REFERENCES)
    by_loop = expected(lambda ids: bert(input_ids=ids).last_hidden_state, tokenizer)
    # float32, padded against unpadded batches
    assert found == pytest.approx(by_loop, abs=2e-3)
    assert found[2] == 0


def test_a_layer_may_be_chosen(bert, tokenizer):
    found = BertScorer(bert, tokenizer, layer=1).score(CAPTIONS, REFERENCES)
    by_loop = expected(lambda ids: bert(input_ids=ids, output_hidden_states=True).hidden_states[1], tokenizer)
    assert found == pytest.approx(by_loop, abs=2e-3)


def test_a_clip_is_used_through_its_text_model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(
            text_config={"vocab_size": len(WORDS), "eos_token_id": 2, "bos_token_id": 1, **sizes},
            vision_config={"image_size": 8, "patch_size": 4, **sizes},
        )
    ).eval()
    found = BertScorer(clip, tokenizer).score(CAPTIONS, REFERENCES)
    by_loop = expected(lambda ids: clip.text_model(input_ids=ids).last_hidden_state, tokenizer)
    assert found == pytest.approx(by_loop, abs=2e-3)


def test_a_caption_equal_to_a_reference_scores_100(bert, tokenizer):
    assert BertScorer(bert, tokenizer).score(["two cats"], [["a dog", "two cats"]])[0] == pytest.approx(100)


def test_references_are_encoded_once(bert, tokenizer, monkeypatch):
    scorer = BertScorer(bert, tokenizer)
    first = scorer.score(CAPTIONS, REFERENCES)
    encoded = []
    monkeypatch.setattr(
        scorer, "_encode", lambda texts, encode=scorer._encode: encoded.append(set(texts)) or encode(texts)
    )
    assert np.array_equal(scorer.score(CAPTIONS, REFERENCES), first)
    assert encoded == [set(CAPTIONS)]


def test_scores_do_not_depend_on_what_was_scored_before(bert, tokenizer):
    used = BertScorer(bert, tokenizer)
    used.score(CAPTIONS[2:], REFERENCES[2:])
    used.score(CAPTIONS[:1], [["two cats", "a dog on the man", "a"]])
    fresh = BertScorer(bert, tokenizer)
    assert np.array_equal(used.score(CAPTIONS, REFERENCES), fresh.score(CAPTIONS, REFERENCES))


def test_a_small_cache_changes_nothing(bert, tokenizer):
    small = BertScorer(bert, tokenizer, max_cached=1)
    assert np.array_equal(small.score(CAPTIONS, REFERENCES), small.score(CAPTIONS, REFERENCES))
    assert len(small._cache) == 1


def test_a_caption_longer_than_the_encoder_reads_is_cut(bert, tokenizer):
    found = BertScorer(bert, tokenizer).score([" ".join(["a man"] * 100)], [["a man"]])
    assert 0 < found[0] <= 100.001


def test_nothing_to_score_gives_nothing_and_bad_references_are_refused(bert, tokenizer):
    scorer = BertScorer(bert, tokenizer)
    assert scorer.score([], []).shape == (0,)
    with pytest.raises(DataError, match="found none for 1 of 1"):
        scorer.score(["a"], [[]])


def test_a_saved_model_is_loaded_and_a_missing_one_is_named(bert, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    loaded = load_bert_scorer(tmp_path / "bert")
    assert loaded.score(["a dog"], [["a dog"]])[0] == pytest.approx(100)
    with pytest.raises(BitLlmError, match="nowhere: expected a folder or hub id of an encoder"):
        load_bert_scorer(tmp_path / "nowhere")


def test_a_negative_layer_counts_from_the_last(bert, tokenizer):
    for layer, same in ((-1, 2), (-3, 0)):
        found = BertScorer(bert, tokenizer, layer=layer).score(CAPTIONS, REFERENCES)
        assert np.array_equal(found, BertScorer(bert, tokenizer, layer=same).score(CAPTIONS, REFERENCES))
    for layer in (3, -4):
        with pytest.raises(ModelError, match=str(layer)):
            BertScorer(bert, tokenizer, layer=layer)


def test_weights_of_an_encoder_that_are_a_pointer_or_damaged_are_named(bert, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for content, word in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "damaged"),
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(DataError, match=rf"model\.safetensors: .*{word}"):
            load_bert_scorer(tmp_path)


def test_an_encoder_that_cannot_be_used_is_not_run_and_the_others_are(bert, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "captions.json").write_text('{"1": "a man", "2": "two cats"}')
    (tmp_path / "references.json").write_text('{"1": ["the man"], "2": ["two cats"]}')

    def scored(layer):
        return score_file(
            tmp_path / "captions.json",
            tmp_path / "references.json",
            options=ScoreOptions(bertscore=str(tmp_path), bertscore_layer=layer),
        )

    assert "99" in scored(99).not_run["BERTScore"]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    scores = scored(None)
    assert "pad_token" in scores.not_run["BERTScore"]
    assert "CIDEr" in scores.metrics and "BERTScore" not in scores.metrics
