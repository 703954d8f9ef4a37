"""Score a file of captions and its floors, for the command line."""

import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from bitllm.config import LARGEST_SEED, require_number
from bitllm.data.io.models import model_running
from bitllm.data.io.pictures import PictureFolder, decode_picture, names_of
from bitllm.errors import BitLlmError, DataError, ModelError
from bitllm.evaluation.scoring.caption_scorer import (
    Batch,
    CaptionScorer,
    ExtraMetric,
    PerCaption,
    score_differences,
    score_estimates,
)
from bitllm.evaluation.scoring.captions_file import CaptionPairs, in_order_of, read_input, read_references
from bitllm.evaluation.scoring.floors import (
    best_constant_caption,
    human_ceiling,
    mean_metrics,
    permuted_captions,
)
from bitllm.evaluation.verdict import CAPTIONS_ALONE, judge
from bitllm.files import file_written_whole
from bitllm.metrics.diversity import distinct_n, mean_length, n_distinct_captions
from bitllm.metrics.intervals import Estimate
from bitllm.metrics.java import (
    JAVA_TOKENIZER,
    Meteor,
    java_version,
    meteor_from_statistics,
    spice,
    why_no_meteor,
    why_no_spice,
)
from bitllm.training.distributed import device

_ORACLE_SEARCH = 5000  # captions and images among which the oracle's constant caption is looked for
_PROMPT = "A photo depicts "  # put before every text by the authors of CLIPScore
_PACKAGES = ("bitllm", "numpy", "nltk")


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `bitllm score`: further metrics and their models."""

    tokenizer: Literal["auto", "java", "python"] = "python"
    """``"auto"`` is Java if it is installed, else Python."""
    meteor: bool = False
    """METEOR, if Java and its jar are installed."""
    spice: bool = False
    """SPICE, if Java and its jars are installed."""
    bertscore: str | None = None
    """Folder or hub id of an encoder."""
    bertscore_layer: int | None = None
    """Hidden layer of the encoder; by default the last one."""
    clip: str | None = None
    """Folder or hub id of a CLIP."""
    images: Path | None = None
    """Folder of images named by id, or a store."""
    seed: int = 0
    """Seed of the bootstrap and the permutations."""


@dataclass(frozen=True)
class CaptionScores:
    """The scores of a file of captions, with what is needed to interpret and reproduce them."""

    name: str
    """Name of the file."""
    pairs: CaptionPairs
    words: list[str]
    """The captions, tokenized."""
    scores: dict[str, Estimate]
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr and the requested metrics, in points, with intervals over images; CIDEr's
    idf is fixed from all references."""
    per_caption: PerCaption
    """The numbers of each caption."""
    floors: dict[str, dict[str, Any]]
    """Scores of "constant" and "permuted" captions, and of "human" ones if every image has two references."""
    differences: dict[str, dict[str, Estimate]]
    """Paired differences: "real - permuted", "real - constant", and from another system if one was given."""
    references_sha256: str
    """Checksum of the references, independent of the order of images; compare scores only if it is equal."""
    tokenizer: str
    versions: dict[str, str]
    """Versions of the software that computed the scores."""
    not_run: dict[str, str]
    """Metrics and floors that were not computed, with the reason."""
    notes: list[str]
    """What a reader must know: empty captions, another tokenizer than usual."""

    @property
    def metrics(self) -> dict[str, float]:
        """Every score in points."""
        return {name: one.value for name, one in self.scores.items()}

    @property
    def n_images(self) -> int:
        """Number of different images."""
        return len(set(self.pairs.ids))

    @property
    def n_distinct(self) -> int:
        """Number of different captions."""
        return n_distinct_captions(self.pairs.captions)

    @property
    def diversity(self) -> dict[str, float]:
        """Different words and different word pairs as a fraction of all, and words per caption."""
        return {
            "distinct_1": distinct_n(self.words, 1),
            "distinct_2": distinct_n(self.words, 2),
            "mean_length": mean_length(self.words),
        }

    @property
    def summary(self) -> str:
        """The verdict."""
        leads = {floor: self.differences[f"real - {floor}"]["CIDEr"] for floor in ("permuted", "constant")}
        images = f"{self.n_images:,} images"
        found = judge(self.name, leads, images=images, n_distinct=self.n_distinct, wording=CAPTIONS_ALONE)
        return found.sentence

    def to_json(self) -> dict[str, Any]:
        """Everything but the captions and the numbers of each, as JSON values."""
        names = ("n_images", "references_sha256", "tokenizer", "versions", "floors", "not_run", "notes")
        return {
            "metrics": self.metrics,
            "intervals": {name: [one.low, one.high] for name, one in self.scores.items()},
            "differences": {
                pair: {name: one._asdict() for name, one in found.items()}
                for pair, found in self.differences.items()
            },
            "distinct": self.n_distinct,
            **self.diversity,
            **{name: getattr(self, name) for name in (*names, "summary")},
        }

    def write_per_image(self, path: Path) -> None:
        """Write a Parquet file with one row per caption: ``id``, ``caption`` and every metric."""
        named = {"id": self.pairs.ids, "caption": self.pairs.captions}
        with file_written_whole(path) as unfinished:
            pd.DataFrame(named | self.per_caption.of_each()).to_parquet(unfinished, index=False)


def score_file(
    captions: Path,
    references: Path | None,
    *,
    training_references: Path | None = None,
    compare: Path | None = None,
    options: ScoreOptions = ScoreOptions(),
) -> CaptionScores:
    """Scores of a file of captions, with the floors "constant", "permuted" and "human".

    Parameters
    ----------
    captions
        Our ``captions.jsonl``, or one of the formats of `bitllm.data.io.captions`.
    references
        References in one of these formats, if the captions do not contain them.
    training_references
        References of training images, to choose the constant caption; without them it is chosen on the test
        references and labeled oracle.
    compare
        Captions of another system on the same images.
    options
        Further metrics and their models.
    """
    require_number("--seed", options.seed, least=0, most=LARGEST_SEED)
    notes, not_run = list[str](), dict[str, str]()
    pairs = read_input(captions, references, notes)
    training = None
    if training_references is not None:
        training = list(read_references(training_references, notes).values())
    other = None
    if compare is not None:
        other = in_order_of(compare, read_input(compare, references, notes), pairs.ids)
    with ExitStack() as stack:
        extras = _extras(options, pairs, stack, not_run)
        scorer = _scorer(pairs, extras, options, notes)
        own = scorer.per_caption(pairs.captions, is_floor=False)
        scores = score_estimates(own, seed=options.seed)
        floors, differences = _floors(scorer, own, pairs, training, options.seed)
        if other is not None and compare is not None:
            theirs = _numbers_of_other(scorer, pairs, other, extras, options)
            found = score_differences(own, theirs, names=list(scores), seed=options.seed)
            differences[f"{captions.name} - {compare.name}"] = found
    if "human" not in floors:
        not_run["human ceiling"] = "expected at least 2 references for every image, found 1"
    if n_empty := sum(not text.strip() for text in pairs.captions):
        notes.append(f"{n_empty} of {len(pairs.captions)} captions are empty; they are scored as they are")
    return CaptionScores(
        captions.name,
        pairs,
        scorer.tokenized(pairs.captions),
        scores,
        own,
        floors,
        differences,
        scorer.references_sha256,
        scorer.tokenizer,
        _versions(options, scorer.tokenizer),
        not_run | scorer.not_run,
        [*dict.fromkeys(notes)],
    )


def _extras(
    options: ScoreOptions, pairs: CaptionPairs, stack: ExitStack, not_run: dict[str, str]
) -> list[ExtraMetric]:
    _require_pictures(options, pairs)
    found = []
    if options.meteor:
        try:  # it reads its tables while we go on
            found.append(meteor_metric(stack.enter_context(Meteor())))
        except BitLlmError as error:
            not_run["METEOR"] = str(error).removeprefix("METEOR: ")
    else:
        not_run["METEOR"] = "left out (--no-meteor)"
    if (problem := why_no_spice() if options.spice else "left out (--no-spice)") is not None:
        not_run["SPICE"] = problem
    else:
        found.append(spice_metric())
    if options.bertscore is None:
        not_run["BERTScore"] = "no model given (--bertscore MODEL)"
    else:
        try:
            found.append(bertscore_metric(options.bertscore, options.bertscore_layer))
        except ModelError as error:
            not_run["BERTScore"] = str(error)
    if options.clip is None or options.images is None:
        not_run["CLIP-S"] = not_run["RefCLIP-S"] = "no model given (--clip MODEL --images FOLDER)"
    else:
        try:
            found += clip_metrics(options.clip, options.images, pairs.ids)
        except ModelError as error:
            not_run["CLIP-S"] = not_run["RefCLIP-S"] = str(error)
    return found


def _require_pictures(options: ScoreOptions, pairs: CaptionPairs) -> None:
    if options.clip is not None and options.images is None:
        raise DataError("--clip: expected images for CLIP-S, found none; give them with --images FOLDER")
    if pairs.are_coco_ids and options.images is not None and (options.images / "manifest.json").is_file():
        raise DataError(
            f"{options.images}: expected a folder of pictures named for COCO's ids, as the captions have them, found a "
            "store, which counts by nsd_id; name that folder, or write captions and references by nsd_id"
        )


def _scorer(
    pairs: CaptionPairs, extras: list[ExtraMetric], options: ScoreOptions, notes: list[str]
) -> CaptionScorer:
    """The scorer; a note says why it has another tokenizer than Java's."""
    if options.tokenizer != "auto":
        return CaptionScorer(
            pairs.references, image_ids=pairs.ids, tokenizer=options.tokenizer, extras=extras
        )
    try:
        return CaptionScorer(pairs.references, image_ids=pairs.ids, tokenizer="java", extras=extras)
    except DataError:
        raise
    except BitLlmError as error:
        reason = str(error).removesuffix("; or use the tokenizer `python`")
        notes.append(f"words are by the Python tokenizer, since Java's does not run: {reason}")
        return CaptionScorer(pairs.references, image_ids=pairs.ids, tokenizer="python", extras=extras)


def _floors(
    scorer: CaptionScorer,
    own: PerCaption,
    pairs: CaptionPairs,
    training: list[tuple[str, ...]] | None,
    seed: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Estimate]]]:
    """Scores of the floors, and CIDEr of the captions minus that of each floor, paired over images."""
    constant = best_constant_caption(
        scorer.image_references if training is None else training,
        n_candidates=_ORACLE_SEARCH,
        n_images=_ORACLE_SEARCH,
        tokenize=scorer.tokenized,
        seed=seed,
    )
    chosen_on = "oracle: the references of the test" if training is None else "training references"
    same = scorer.per_caption([constant] * len(pairs.captions))
    rounds = [scorer.per_caption(texts) for texts in permuted_captions(pairs.captions, pairs.ids, seed=seed)]
    permuted = replace(rounds[0], cider=np.mean([one.cider for one in rounds], axis=0))
    floors: dict[str, dict[str, Any]] = {
        "constant": {"caption": constant, "chosen_on": chosen_on, **same.total()},
        "permuted": mean_metrics([one.total() for one in rounds]),
    }
    if min(len(texts) for texts in scorer.references) > 1:
        floors["human"] = human_ceiling(scorer, seed=seed)
    differences = {
        f"real - {name}": score_differences(own, floor, names=("CIDEr",), seed=seed)
        for name, floor in (("permuted", permuted), ("constant", same))
    }
    return floors, differences


def _numbers_of_other(
    scorer: CaptionScorer,
    pairs: CaptionPairs,
    other: CaptionPairs,
    extras: list[ExtraMetric],
    options: ScoreOptions,
) -> PerCaption:
    """The numbers of another system's captions, on the same images and references."""
    if (other.ids, other.references) == (pairs.ids, pairs.references):
        return scorer.per_caption(other.captions, is_floor=False)
    # other trials or references than this scorer's: the images of CLIP-S would be in another order
    its_scorer = _scorer(other, [one for one in extras if "CLIP" not in one.name], options, [])
    if its_scorer.references_sha256 != scorer.references_sha256:
        raise DataError(
            f"comparison: expected the same references in both systems, found {scorer.references_sha256[:8]} and "
            f"{its_scorer.references_sha256[:8]}; score both on the same references"
        )
    return its_scorer.per_caption(other.captions, is_floor=False)


def _versions(options: ScoreOptions, tokenizer: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    if tokenizer == JAVA_TOKENIZER:
        found["java"] = java_version() or "unknown"
    if options.bertscore:
        layer = "last layer" if options.bertscore_layer is None else f"layer {options.bertscore_layer}"
        found["BERTScore"] = f"{options.bertscore}, {layer}"
    if options.clip:
        found["CLIP"] = options.clip
    if options.meteor and why_no_meteor() is None:
        found["METEOR"] = "1.5"
    return found


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
