"""The sources of questions: their readers, files and licenses, and adding questions to a store."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bitllm.config import nearest
from bitllm.data.store import Store
from bitllm.data.store.write import replace_tasks
from bitllm.data.tasks.derive import derived_exchanges
from bitllm.data.tasks.dialogues import read_llava, read_visdial
from bitllm.data.tasks.exchange import Exchange, checked, exchanges, tasks_table
from bitllm.data.tasks.memory import memory_exchanges
from bitllm.data.tasks.own import read_own
from bitllm.data.tasks.questions import (
    read_aokvqa,
    read_cocoqa,
    read_nsd_vqa,
    read_visual_genome,
    read_vqa,
)
from bitllm.data.tasks.reading import UNKNOWN_LICENSE, Origin, StoreImages
from bitllm.errors import ConfigError, DataError

Reader = Callable[[Sequence[Path], StoreImages, Origin], Iterator[Exchange]]
COCO_LICENSE = "CC BY 4.0"
"""Of COCO's annotations."""
SIMULATED_LICENSE = "none needed (simulated)"


@dataclass(frozen=True)
class Source:
    """A published set of questions, or one's own."""

    read: Reader
    files: str
    """Its files, in words."""
    license: str = UNKNOWN_LICENSE
    """As its authors state it."""


_VQA_FILES = "OpenEnded_…_questions.json and …_annotations.json of one or more splits"
SOURCES: dict[str, Source] = {
    "vqa-v2": Source(read_vqa, f"v2_{_VQA_FILES}", "CC BY 4.0"),
    "ok-vqa": Source(read_vqa, _VQA_FILES),
    "tdiuc": Source(read_vqa, _VQA_FILES),
    "a-okvqa": Source(read_aokvqa, "aokvqa_v1p0_train.json, aokvqa_v1p0_val.json"),
    "visdial": Source(
        read_visdial,
        "visdial_1.0_train.json, and visdial_1.0_train_dense_sample.json for NDCG (the images of val are not COCO's)",
    ),
    "llava": Source(
        read_llava,
        "conversation_58k.json, detail_23k.json, complex_reasoning_77k.json",
        "CC BY 4.0, and OpenAI's terms of use",
    ),
    "coco-qa": Source(
        read_cocoqa, "folders with questions.txt, answers.txt, img_ids.txt and types.txt"
    ),
    "visual-genome": Source(read_visual_genome, "question_answers.json and image_data.json", "CC BY 4.0"),
    "nsd-vqa": Source(read_nsd_vqa, "nsd_vqa.parquet"),
    "table": Source(read_own, "a CSV with the columns image, question, answers"),
}  # fmt: skip


def read_source(
    name: str, files: Sequence[Path], stimuli: pd.DataFrame, where: object, *, license_name: str | None = None
) -> list[Exchange]:
    """The questions of a source about the images of a store; those about other images are left out.

    Parameters
    ----------
    name
        One of `SOURCES`.
    files
        Its files.
    stimuli
        ``coco_id``, ``part`` and optionally ``stimulus_name`` of the store's images, indexed by ``nsd_id``.
    where
        The store, to name in errors.
    license_name
        License of the files; by default that of the source.

    Raises
    ------
    ConfigError
        If there is no such source, or no file is given.
    DataError
        If a file is missing, damaged or of another layout, or has no question about an image of the store.
    """
    if name not in SOURCES:
        raise ConfigError(
            f"tasks: expected one of {', '.join(SOURCES)}, found `{name}`; {nearest(name, list(SOURCES))}"
        )
    source = SOURCES[name]
    if not files:
        raise ConfigError(f"tasks {name}: expected its files ({source.files}), found none; name them")
    paths = [Path(file) for file in files]
    origin = Origin(name, license_name or source.license)
    found = source.read(paths, StoreImages.of(stimuli, where), origin)
    return checked(found, ", ".join(map(str, paths)))


def license_of_objects(*, is_simulated: bool) -> str:
    """License of questions derived from the objects of images: that of COCO's or of simulated annotations."""
    return SIMULATED_LICENSE if is_simulated else COCO_LICENSE


def derive_from(store: Store, *, seed: int = 0) -> list[Exchange]:
    """Questions derived from the objects of a store.

    Raises
    ------
    DataError
        If the store has no objects.
    """
    license_name = license_of_objects(is_simulated=store.manifest.source == "simulated")
    return derived_exchanges(
        store.objects, store.captions, store.stimuli, license_name=license_name, seed=seed
    )


def memory_from(store: Store, *, seed: int = 0) -> list[Exchange]:
    """Questions about earlier trials, derived from the order of the trials and the objects of a store.

    Raises
    ------
    DataError
        If there are none: no image has two showings in a run, and the store has no objects.
    """
    license_name = license_of_objects(is_simulated=store.manifest.source == "simulated")
    return checked(memory_exchanges(store, license_name=license_name, seed=seed), store.path)


def add_tasks(store: Store, found: Sequence[Exchange]) -> Store:
    """Add exchanges to a store; those of the same sources that it has are replaced. Returns the store opened again."""
    sources = {one.source for one in found}
    already = exchanges(store, of_trials=None) if store.has_tasks else ()
    before = [one for one in already if one.source not in sources]
    ids = {one.id for one in before}
    twice = next((one for one in found if one.id in ids), None)
    if twice is not None:
        raise DataError(
            f"{store.path}: expected ids that no other source has, found {twice.id} of {twice.source}; give the "
            "questions another `task`"
        )
    return replace_tasks(store, tasks_table([*before, *found]))
