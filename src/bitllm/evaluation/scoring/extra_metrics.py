"""Metrics other than BLEU, ROUGE-L and CIDEr for the caption scorer: METEOR, SPICE, BERTScore, CLIP-S."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bitllm.data.io.models import model_running
from bitllm.data.io.pictures import PictureFolder, decode_picture, names_of
from bitllm.errors import DataError
from bitllm.evaluation.scoring.caption_scores import Batch, ExtraMetric
from bitllm.metrics.java import Meteor, meteor_from_statistics, spice
from bitllm.training.distributed import device

_PROMPT = "A photo depicts "  # put before every text by the authors of CLIPScore


def meteor_metric(meteor: Meteor) -> ExtraMetric:
    """METEOR, computed by a running Java process."""
    return ExtraMetric(
        "METEOR",
        lambda batch: meteor.statistics(batch.words, batch.reference_words),
        lambda sums, _: meteor_from_statistics(sums),
    )


def spice_metric() -> ExtraMetric:
    """SPICE; not computed for floors, each of which would take as long as the captions."""
    return ExtraMetric(
        "SPICE", lambda batch: spice(batch.words, batch.reference_words)[:, None], _mean, is_on_floors=False
    )


def bertscore_metric(path_or_hub_id: str, layer: int | None = None) -> ExtraMetric:
    """BERTScore F1, best over the references, with any encoder."""
    from bitllm.metrics.bertscore import load_bert_scorer

    scorer = load_bert_scorer(model_place(path_or_hub_id), layer=layer, device=device())

    def numbers(batch: Batch) -> Float[np.ndarray, "n 1"]:
        with model_running(path_or_hub_id, "embedding captions"):
            scorer.remember({*batch.captions, *(text for texts in batch.references for text in texts)})
            return scorer.score(batch.captions, batch.references)[:, None]

    return ExtraMetric("BERTScore", numbers, _mean)


def clip_metrics(path_or_hub_id: str, images: Path, ids: Sequence[str]) -> list[ExtraMetric]:
    """CLIP-S and RefCLIP-S with any CLIP; images are found by ``ids`` in a folder or a store."""
    from bitllm.data.targets import load_clip
    from bitllm.metrics.clipscore import clip_score, ref_clip_score

    place = model_place(path_or_hub_id)
    files = (
        None
        if (images / "manifest.json").is_file()
        else PictureFolder(images).find_all(names_of(i) for i in ids)
    )
    embedder = load_clip(place, device=device())
    pictures = embedder.pictures
    with model_running(place, "embedding pictures"):
        rows = (
            _of_store(pictures, images, ids)
            if files is None
            else np.stack([pictures(decode_picture(file, file)[None])[0] for file in files])
        )
    known: dict[str, np.ndarray] = {}

    def embedded(texts: Iterable[str]) -> np.ndarray:
        texts = list(texts)
        new = sorted({text for text in texts if text not in known})
        if new:
            with model_running(place, "embedding captions"):
                embeddings = embedder.captions([_PROMPT + text for text in new])
            known.update(zip(new, embeddings, strict=True))
        return np.stack([known[text] for text in texts])

    def with_references(batch: Batch) -> np.ndarray:
        embedded(text for texts in batch.references for text in texts)
        sets = [embedded(texts) for texts in batch.references]
        return ref_clip_score(rows, embedded(batch.captions), sets)[:, None]

    return [
        ExtraMetric("CLIP-S", lambda batch: clip_score(rows, embedded(batch.captions))[:, None], _mean),
        ExtraMetric("RefCLIP-S", with_references, _mean),
    ]


def model_place(path_or_hub_id: str) -> str:
    """The local folder of a model (a path, or the hub's cache), else its hub id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(path_or_hub_id).expanduser().is_dir():
        return str(Path(path_or_hub_id).expanduser())
    try:
        config = try_to_load_from_cache(path_or_hub_id, "config.json")
    except HFValidationError:
        config = None
        is_path = True
    else:
        is_path = path_or_hub_id.startswith((".", "~", "/"))
    if is_path:
        raise DataError(f"{path_or_hub_id}: expected a folder with a model, found none; check the path")
    folder = Path(config).parent if isinstance(config, str) else None
    # a download that was cut off has its configuration and no weights
    is_whole = folder is not None and any(folder.glob("*.safetensors"))
    return str(folder) if is_whole else path_or_hub_id


def _of_store(embed, folder: Path, ids: Sequence[str]) -> np.ndarray:  # type: ignore[no-untyped-def]
    from bitllm.data.store import open_store

    store = open_store(folder)
    numbers = {str(nsd_id): nsd_id for nsd_id in store.stimuli.index.tolist()}
    names = dict(zip(store.stimuli.get("stimulus_name", ()), numbers.values(), strict=False))
    known = names if all(i in names for i in ids) else numbers
    unknown = [i for i in ids if i not in numbers and i not in names] or [i for i in ids if i not in known]
    if unknown:
        raise DataError(
            f"{folder}: expected ids that are nsd_ids or names of the store's images, found {unknown[0]} "
            f"({len(unknown)} of {len(ids)}); give a folder of pictures named for the ids"
        )
    return embed(store.pictures([known[i] for i in ids]))


def _mean(sums: np.ndarray, n: float) -> float:
    return float(sums[0] / n)
