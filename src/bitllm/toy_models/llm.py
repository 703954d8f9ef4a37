"""A small Llama, trained on text only: the captions of training images and instruction documents.

It stands in for ``meta-llama/Llama-3.2-3B-Instruct`` where no hub is reachable, and is loaded by the same code. A
frozen LLM must already know how to be conditioned: part of its documents put words of the image's captions in front of
the instruction, so that it has learnt to say what it is told. It sees no brain, and no caption of a validation or test
image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from bitllm.config import StrictConfig
from bitllm.data.prompt import INSTRUCTIONS, Prompter, pad_answers, plain_caption
from bitllm.data.store import Store
from bitllm.files import folder_written_whole
from bitllm.toy_models.vocabulary import make_word_tokenizer
from bitllm.training.logging import Progress
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainerSettings, TrainingData

FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "on",
        "in",
        "at",
        "to",
        "is",
        "are",
        "with",
        "and",
        "by",
        "near",
        "next",
        "it",
        "its",
        "there",
        "that",
        "this",
        "some",
        "from",
        "for",
        "as",
        "while",
        "has",
    ]
)
"""Words that say nothing about the image, never used as keywords."""


class SmallLlmConfig(StrictConfig):
    """Sizes and schedule of the small Llama."""

    width: int = 128
    """Width of the hidden states."""
    layers: int = 6
    """Number of decoder layers."""
    heads: int = 4
    """Attention heads; half as many for keys and values."""
    keyword_share: float = 0.8
    """Share of documents that begin with keywords."""
    keyword_keep: float = 0.5
    """Probability with which a word is kept as a keyword."""
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=400, batch_size=96, learning_rate=3e-3, warmup_steps=30
    )
    """How it learns."""


def train_small_llm(
    store: Store, folder: Path, config: SmallLlmConfig, *, seed: int, progress: Progress | None = None
) -> None:
    """Train the small Llama on the training captions of ``store`` and save it as a `LlamaForCausalLM` folder."""
    nsd_ids = store.stimuli.index[store.stimuli["part"] == "train"]
    captions = [[plain_caption(caption) for caption in store.captions[int(nsd_id)]] for nsd_id in nsd_ids]
    tokenizer = make_word_tokenizer((caption for group in captions for caption in group), wrap=False)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_llama_config(config, tokenizer))
    prompter = Prompter(tokenizer)

    def collate(pairs: list[tuple[int, int]]) -> dict[str, Any]:
        documents = [
            _document(captions[index], config, np.random.default_rng([seed, epoch, index, 1]))
            for epoch, index in pairs
        ]
        batch = pad_answers(
            [prompter.prompt_ids(question) for question, _ in documents],
            [prompter.answer_ids(answer) for _, answer in documents],
            tokenizer.pad_token_id,
        )
        return batch | {"use_cache": False}

    with folder_written_whole(folder, replace=True) as unfinished:
        Loop(
            model,
            TrainingData(len(captions), collate),
            config.optimizer,
            unfinished,
            seed,
            name="small Llama",
            context=RunContext(TrainerSettings(save_every=None), progress),
        ).fit()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _document(captions: Sequence[str], config: SmallLlmConfig, rng: np.random.Generator) -> tuple[str, str]:
    """A question, with or without keywords, and a caption as its answer."""
    question = INSTRUCTIONS[int(rng.integers(len(INSTRUCTIONS)))]
    answer = captions[int(rng.integers(len(captions)))]
    if rng.random() < config.keyword_share:
        words = sorted({word for caption in captions for word in caption.split()} - FUNCTION_WORDS)
        kept = [word for word in rng.permutation(words) if rng.random() < config.keyword_keep]
        question = " ".join([*kept, question])
    return question, answer


def _llama_config(config: SmallLlmConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=3 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads // 2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
