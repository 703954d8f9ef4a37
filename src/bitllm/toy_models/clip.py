"""A small CLIP, trained from scratch on the *training* pictures and captions of a simulated release.

It stands in for ``openai/clip-vit-*`` where no hub is reachable, is loaded by the same code, and sees no brain and
no validation or test image.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bitllm.config import StrictConfig
from bitllm.data.prompt import choose
from bitllm.data.store import Store
from bitllm.files import folder_written_whole
from bitllm.toy_models.vocabulary import make_word_tokenizer
from bitllm.training.logging import Progress
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainerSettings, TrainingData


class SmallClipConfig(StrictConfig):
    """Sizes and schedule of the small CLIP."""

    image_px: int = 64
    """Side of the pictures it sees, in pixels."""
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
    """How it learns."""


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

    with folder_written_whole(folder, replace=True) as unfinished:
        Loop(
            model,
            TrainingData(len(nsd_ids), collate),
            config.optimizer,
            unfinished,
            seed,
            name="small CLIP",
            context=RunContext(TrainerSettings(save_every=None), progress),
        ).fit()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)


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
