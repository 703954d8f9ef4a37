"""What all readers of questions share: the images of a store, the source, and the form of a single question."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bitllm.data.tasks.derive import NUMBER_WORDS
from bitllm.data.tasks.exchange import Exchange

UNKNOWN_LICENSE = "unknown"
_NUMBER = re.compile(rf"\d+|{'|'.join(NUMBER_WORDS)}")
_LONGEST_PHRASE = 5
"""Words; a longer answer is a text."""


@dataclass(frozen=True)
class StoreImages:
    """The images of a store, found by the ids that sources use."""

    where: str
    """The store, to name in errors."""
    part: dict[int, str]
    """Part of each image, by ``nsd_id``."""
    by_coco_id: dict[int, tuple[int, ...]]
    by_name: dict[str, int]
    """Images by ``stimulus_name``; empty if the store has no names."""

    @classmethod
    def of(cls, stimuli: pd.DataFrame, where: object) -> "StoreImages":
        """Images of the table ``stimuli``, indexed by ``nsd_id``."""
        by_coco_id: dict[int, tuple[int, ...]] = {}
        for nsd_id, coco_id in stimuli["coco_id"].items():
            if coco_id >= 0:
                by_coco_id[int(coco_id)] = (*by_coco_id.get(int(coco_id), ()), int(str(nsd_id)))
        names = stimuli["stimulus_name"] if "stimulus_name" in stimuli else pd.Series(dtype=object)
        return cls(
            str(where),
            {int(str(nsd_id)): str(part) for nsd_id, part in stimuli["part"].items()},
            by_coco_id,
            {str(name): int(str(nsd_id)) for nsd_id, name in names.items()},
        )

    def of_coco_id(self, coco_id: int) -> Iterator[tuple[int, str]]:
        """``nsd_id`` of each image of a photograph, and a suffix that makes ids of exchanges unique."""
        found = self.by_coco_id.get(coco_id, ())
        for nsd_id in found:
            yield nsd_id, f":{nsd_id}" if len(found) > 1 else ""


@dataclass(frozen=True)
class Origin:
    """Where questions come from."""

    source: str
    license: str

    def single(
        self,
        ident: str,
        nsd_id: int,
        question: str,
        answers: Iterable[str],
        *,
        options: Iterable[str] = (),
        answer_type: str | None = None,
        **about: str,
    ) -> Exchange:
        """An exchange of one question; ``about`` are other fields of it, such as the task."""
        accepted, chosen = tuple(answers), tuple(options)
        fields: dict[str, Any] = {"task": self.source, "license": self.license} | about
        kind = answer_type or ("choice" if chosen else answer_type_of(accepted[0] if accepted else ""))
        return Exchange(
            id=f"{fields['task']}:{ident}",
            nsd_id=nsd_id,
            questions=(question,),
            answers=(accepted,),
            options=(chosen,),
            answer_type=kind,
            source=self.source,
            **fields,
        )


def answer_type_of(answer: str) -> str:
    """The form of an open answer."""
    words = answer.lower().rstrip(".").split()
    if words in (["yes"], ["no"]):
        return "yes/no"
    if len(words) == 1 and _NUMBER.fullmatch(words[0]):
        return "number"
    return "phrase" if len(words) <= _LONGEST_PHRASE else "text"


def most_common_first(answers: Sequence[str], preferred: str | None = None) -> tuple[str, ...]:
    """All answers, repetitions too, with the most common one first; ``preferred`` is first among equals."""
    if not answers:
        return ()
    counts = Counter(answers)
    first = max(counts, key=lambda answer: (counts[answer], answer == preferred))
    rest = list(answers)
    rest.remove(first)
    return (first, *rest)


def stem_of(path: Path) -> str:
    """Name of a file without folder and extensions."""
    return path.name.partition(".")[0]
