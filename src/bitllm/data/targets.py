"""Targets of the align stage: embeddings of images and captions by a frozen CLIP, computed once per image.

Any checkpoint that `transformers.CLIPModel` loads can be used (``openai/clip-vit-large-patch14``, a local folder,
the small one of the demo).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPModel, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bitllm.data.io.models import model_loading, open_tensors
from bitllm.data.store import Store
from bitllm.errors import ConfigError, DataError
from bitllm.files import file_written_whole, sha256_of_json

_BATCH = 256
_MADE_FROM = "made_from"


@dataclass(frozen=True)
class ClipEmbedder:
    """A frozen CLIP with its tokenizer and image processor."""

    clip: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    processor: CLIPImageProcessorPil

    @torch.no_grad()
    def pictures(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """Unit embeddings of images."""
        rows = []
        for start in range(0, len(pictures), _BATCH):
            images = [Image.fromarray(picture) for picture in pictures[start : start + _BATCH]]
            pixels = self.processor(images, return_tensors="pt")["pixel_values"].to(self.clip.device)
            rows.append(F.normalize(self.clip.get_image_features(pixels).pooler_output, dim=-1).cpu())
        return torch.cat(rows).float().numpy()

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit embeddings of captions; longer ones are truncated to the model's context."""
        rows = []
        limit = self.clip.text_model.config.max_position_embeddings
        for start in range(0, len(captions), _BATCH):
            batch = self.tokenizer(
                list(captions[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.clip.device)
            features = self.clip.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"])
            rows.append(F.normalize(features.pooler_output, dim=-1).cpu())
        return torch.cat(rows).float().numpy()


def load_clip(path_or_hub_id: str | Path, *, device: torch.device | str = "cpu") -> ClipEmbedder:
    """A frozen CLIP from a local folder or a hub id, on a device."""
    with model_loading(path_or_hub_id, "a folder or hub id of a CLIPModel", error=ConfigError):
        model_type = AutoConfig.from_pretrained(path_or_hub_id).model_type
        if model_type != "clip":  # `CLIPModel` would load another model with random weights
            raise ConfigError(
                f"{path_or_hub_id}: expected model_type clip, found {model_type}; choose a CLIP, "
                "e.g. openai/clip-vit-large-patch14"
            )
        clip = CLIPModel.from_pretrained(path_or_hub_id).eval().requires_grad_(False).to(device)
        tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id)
        # the PIL processor by name: the torchvision one gives slightly other pixels, so other embeddings
        processor = CLIPImageProcessorPil.from_pretrained(path_or_hub_id)
    return ClipEmbedder(clip, tokenizer, processor)


@dataclass(frozen=True)
class Targets:
    """Unit embeddings of every image of a store.

    Attributes
    ----------
    nsd_id
        Image of each row, ascending.
    image, text
        Embedding of the image; normalized mean embedding of its captions.
    made_from
        Checksum of the images and captions (`pictures_and_captions`), or None.
    """

    nsd_id: Int[np.ndarray, " n"]
    image: Float[np.ndarray, "n d"]
    text: Float[np.ndarray, "n d"]
    made_from: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Checksum of the embeddings."""
        digest = hashlib.sha256()
        for array in (self.nsd_id, self.image, self.text):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def rows(self, nsd_id: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Row of each of these images."""
        rows = np.searchsorted(self.nsd_id, nsd_id).clip(max=len(self.nsd_id) - 1)
        wrong = np.asarray(nsd_id)[self.nsd_id[rows] != nsd_id]
        if len(wrong):
            raise DataError(
                f"targets: expected an embedding of image {wrong[0]}, found none ({len(wrong)} missing); "
                "make the targets of this store again"
            )
        return rows


def make_targets(
    store: Store,
    embedder: ClipEmbedder,
    *,
    rows_of: Callable[[int, Callable[[range], Tensor]], Tensor] = lambda n, compute: compute(range(n)),
) -> Targets:
    """Embed every image and every caption of a store.

    ``rows_of(n, compute)`` gives n rows, of which ``compute`` computes any range. With
    `bitllm.training.distributed.rows_of_all_ranks` each process embeds a part of the images; every process must then
    call this.
    """
    nsd_id = np.sort(store.stimuli.index.to_numpy())

    def image(part: range) -> Float[Tensor, "part d"]:
        chunks = _chunks(nsd_id[part.start : part.stop])
        return torch.from_numpy(
            np.concatenate([embedder.pictures(store.pictures(chunk)) for chunk in chunks])
        )

    def text(part: range) -> Float[Tensor, "part d"]:
        captions = [store.captions[int(image_id)] for image_id in nsd_id[part.start : part.stop]]
        flat = embedder.captions([caption for group in captions for caption in group])
        owner = np.repeat(np.arange(len(part)), [len(group) for group in captions])
        total = np.zeros((len(part), flat.shape[1]), dtype=np.float32)
        np.add.at(total, owner, flat)
        return torch.from_numpy(total / np.linalg.norm(total, axis=1, keepdims=True))

    image_rows, text_rows = (rows_of(len(nsd_id), compute).numpy() for compute in (image, text))
    return Targets(nsd_id, image_rows, text_rows, pictures_and_captions(store))


def pictures_and_captions(store: Store) -> str:
    """Checksum of the input of targets: the ids, images and captions of a store, without betas.

    It does not use the files of the tables, which also depend on the writer's version and on the choice of parts.
    """
    images = store.stimuli.index.tolist()
    captions = [store.captions[image] for image in images]
    return sha256_of_json([images, captions, store.manifest.sha256.get("pictures.npy")])


def save_targets(targets: Targets, path: Path) -> None:
    """Write targets as safetensors, completely or not at all."""
    arrays = {"nsd_id": targets.nsd_id, "image": targets.image, "text": targets.text}
    about = None if targets.made_from is None else {_MADE_FROM: targets.made_from}
    with file_written_whole(path) as unfinished:
        save_file(arrays, unfinished, metadata=about)


def load_targets(path: Path, *, store: Store | None = None) -> Targets:
    """Read targets that `save_targets` wrote.

    With ``store``, targets of other images or captions are refused; files without a record of them are accepted.
    """
    what = "the embeddings of pictures and captions"
    with open_tensors(path, what, framework="numpy") as file:
        made_from = (file.metadata() or {}).get(_MADE_FROM)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    expected_names = {"nsd_id", "image", "text"}
    if set(tensors) != expected_names:
        raise DataError(
            f"{path}: expected {what} ({', '.join(sorted(expected_names))}), found the tensors "
            f"{', '.join(sorted(tensors)) or 'none'}; make them with `bitllm embed`"
        )
    targets = Targets(**tensors, made_from=made_from)
    if store is not None and made_from is not None:
        expected = pictures_and_captions(store)
        if made_from != expected:
            raise DataError(
                f"{path}: expected the embeddings of the pictures and captions of {store.path} ({expected[:12]}), "
                f"found those of others ({made_from[:12]}); name those of this store, or make them with `bitllm embed`"
            )
    return targets


def _chunks(nsd_id: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " m"]]:
    return np.array_split(nsd_id, max(1, len(nsd_id) // 1024))
