"""Questions derived from the objects of the images: license-free, checkable, and balanced by construction.

What is not annotated may still be in an image. An object therefore counts as absent only if no caption names it
either. Objects are those on NSD's crop (`bitllm.data.nsd.objects`).

References
----------
Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models" (POPE): questions about presence with
as many objects that are absent. Ours differ: yes and no are balanced for each category, so that no answer can be
guessed from the question.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from zlib import crc32

import numpy as np
import pandas as pd

from bitllm.data.tasks.exchange import DERIVED, Exchange

_SIDE_MARGIN = 0.1
"""Least distance of an object's center from the middle of the image, in fractions of its width, to be on one side."""
_ROUNDS_OF_CHOICES = 2
CATEGORY = "category"
"""The task whose answers are lists."""
T = TypeVar("T")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PLURALS = {"person": "people", "man": "men", "woman": "women", "mouse": "mice", "knife": "knives"} | {
    name: name for name in ("sheep", "cattle", "skis", "scissors", "broccoli")
}
_ALWAYS_PLURAL = frozenset({"skis", "scissors"})


@dataclass(frozen=True)
class Scene:
    """What annotations and captions say about one image."""

    nsd_id: int
    part: str
    boxes: Mapping[str, list[tuple[float, float]]]
    """Center (left to right, 0 to 1) and area of each object, by category, crowds left out."""
    present: frozenset[str]
    """Categories, crowds included."""
    named: frozenset[str]
    """Categories that a caption names."""
    crowds: frozenset[str]

    def lacks(self, category: str) -> bool:
        """Whether the image surely does not show a category."""
        return category not in self.present and category not in self.named


def derived_exchanges(
    objects: pd.DataFrame,
    captions: Mapping[int, Sequence[str]],
    stimuli: pd.DataFrame,
    *,
    license_name: str,
    seed: int = 0,
) -> list[Exchange]:
    """Questions about presence, number, choice, category and side of objects.

    ``presence``: yes and no equally often for each category and part. ``count``: at most half of the answers of a part
    are 1. ``choice``: which of two objects is shown; the same question is asked about two images with different
    answers. ``category``: all categories, the largest first. ``left_right``: side of a single object, both equally
    often for each category and part.

    Parameters
    ----------
    objects
        The objects of the images with the columns ``OBJECT_COLUMNS``, as `Store.objects`.
    captions
        Captions of each image.
    stimuli
        ``part`` of each image, indexed by ``nsd_id``.
    license_name
        License of the annotations.
    seed
        Of every draw; the same seed gives the same questions.
    """
    scenes = scenes_of(objects, captions, stimuli)
    found = []
    for task, ask in _TASKS.items():
        rng = np.random.default_rng([seed, crc32(task.encode())])
        for part in ("train", "validation", "test"):
            of_part = [scene for scene in scenes if scene.part == part]
            found += [
                Exchange(f"{task}:{asked.nsd_id}:{asked.about}", asked.nsd_id, task, (asked.question,),
                         (asked.answers,), (asked.options,), asked.answer_type, DERIVED, license_name)
                for asked in ask(of_part, rng)
            ]  # fmt: skip
    return found


@dataclass(frozen=True)
class _Asked:
    nsd_id: int
    about: str
    """What distinguishes it from other questions of the task about the image."""
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    answer_type: str = "choice"


def scenes_of(
    objects: pd.DataFrame, captions: Mapping[int, Sequence[str]], stimuli: pd.DataFrame
) -> list[Scene]:
    """The scene of every image, by ascending ``nsd_id``; parameters as of `derived_exchanges`."""
    rows: dict[int, list[tuple[str, bool, float, float]]] = {}
    # in the precision of the store, so that questions derived before and after it is written are the same
    boxes_of = objects.astype(dict.fromkeys(("x", "w", "area"), "float32"))
    columns = (boxes_of[name].tolist() for name in ("category", "is_crowd", "x", "w", "area"))
    for nsd_id, category, is_crowd, x, w, area in zip(objects.index.tolist(), *columns, strict=True):
        rows.setdefault(nsd_id, []).append((category, is_crowd, x + w / 2, area))
    categories = sorted(objects["category"].unique())
    scenes = []
    for nsd_id, part in sorted(zip(stimuli.index.tolist(), stimuli["part"].tolist(), strict=True)):
        of_image = rows.get(nsd_id, [])
        boxes: dict[str, list[tuple[float, float]]] = {}
        for category, is_crowd, center, area in of_image:
            if not is_crowd:
                boxes.setdefault(category, []).append((center, area))
        text = f" {' '.join(re.findall(r'[a-z]+', ' '.join(captions.get(nsd_id, ())).lower()))} "
        scenes.append(
            Scene(
                nsd_id,
                part,
                boxes,
                frozenset(category for category, *_ in of_image),
                frozenset(name for name in categories if f" {name} " in text or f" {plural(name)} " in text),
                frozenset(category for category, is_crowd, *_ in of_image if is_crowd),
            )
        )
    return scenes


def _categories(scenes: Sequence[Scene]) -> list[str]:
    return sorted(frozenset[str]().union(*(scene.present for scene in scenes)))


def _presence(scenes: Sequence[Scene], rng: np.random.Generator) -> Iterator[_Asked]:
    for category in _categories(scenes):
        shown = [scene.nsd_id for scene in scenes if category in scene.present]
        absent = [scene.nsd_id for scene in scenes if scene.lacks(category)]
        verb = "Are there" if category in _ALWAYS_PLURAL else "Is there"
        question = f"{verb} {with_article(category)} in the image?"
        for answer, ids in zip(("yes", "no"), _equally_many(shown, absent, rng), strict=True):
            for nsd_id in ids:
                yield _Asked(nsd_id, category, question, (answer,), ("yes", "no"), "yes/no")


def _count(scenes: Sequence[Scene], rng: np.random.Generator) -> Iterator[_Asked]:
    counted = [
        (scene.nsd_id, category, len(boxes))
        for scene in scenes
        for category, boxes in sorted(scene.boxes.items())
        if category not in scene.crowds
    ]
    several = [one for one in counted if one[2] > 1]
    single = _some([one for one in counted if one[2] == 1], len(several), rng)
    for nsd_id, category, n in sorted([*several, *single]):
        question = f"How many {plural(category)} are in the image?"
        words = (NUMBER_WORDS[n],) if n < len(NUMBER_WORDS) else ()
        yield _Asked(nsd_id, category, question, (str(n), *words), (), "number")


def _choice(scenes: Sequence[Scene], rng: np.random.Generator) -> Iterator[_Asked]:
    for number in range(_ROUNDS_OF_CHOICES):
        order = [scenes[int(row)] for row in rng.permutation(len(scenes))]
        for one, other in zip(order[::2], order[1::2], strict=False):
            names = [
                _draw(sorted(name for name in scene.present if rival.lacks(name)), rng)
                for scene, rival in ((one, other), (other, one))
            ]
            if not all(names):
                continue
            first, second = (names[int(row)] for row in rng.permutation(2))
            question = f"Is there {with_article(first)} or {with_article(second)} in the image?"
            for scene, answer in zip((one, other), names, strict=True):
                yield _Asked(scene.nsd_id, str(number), question, (answer,), (first, second))


def _category(scenes: Sequence[Scene], rng: np.random.Generator) -> Iterator[_Asked]:
    for scene in scenes:
        areas = {name: sum(area for _, area in boxes) for name, boxes in scene.boxes.items()}
        names = sorted(areas, key=lambda name: (-areas[name], name))
        if names:
            question = "Which kinds of objects are in the image?"
            yield _Asked(scene.nsd_id, "all", question, (", ".join(names),), (), "phrase")


def _left_right(scenes: Sequence[Scene], rng: np.random.Generator) -> Iterator[_Asked]:
    for category in _categories(scenes):
        sides: dict[str, list[int]] = {"left": [], "right": []}
        for scene in scenes:
            centers = [center for center, _ in scene.boxes.get(category, ())]
            if len(centers) == 1 and category not in scene.crowds and abs(centers[0] - 0.5) >= _SIDE_MARGIN:
                sides["left" if centers[0] < 0.5 else "right"].append(scene.nsd_id)
        verb = "Are" if category in _ALWAYS_PLURAL else "Is"
        question = f"{verb} the {category} on the left or on the right of the image?"
        for side, ids in zip(sides, _equally_many(sides["left"], sides["right"], rng), strict=True):
            for nsd_id in ids:
                yield _Asked(nsd_id, category, question, (side,), ("left", "right"))


_TASKS: dict[str, Callable[[Sequence[Scene], np.random.Generator], Iterator[_Asked]]] = {
    "presence": _presence,
    "count": _count,
    "choice": _choice,
    CATEGORY: _category,
    "left_right": _left_right,
}
DERIVED_TASKS = tuple(_TASKS)


def _equally_many(
    one: Sequence[int], other: Sequence[int], rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    n = min(len(one), len(other))
    return _some(one, n, rng), _some(other, n, rng)


def _some(values: Sequence[T], n: int, rng: np.random.Generator) -> list[T]:
    """At most ``n`` of the values, in their order."""
    chosen = sorted(rng.permutation(len(values))[:n].tolist())
    return [values[row] for row in chosen]


def _draw(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))] if names else ""


def with_article(name: str) -> str:
    """``a dog``, ``an umbrella``, ``any skis``."""
    if name in _ALWAYS_PLURAL:
        return f"any {name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """The plural of a category's name."""
    start, _, last = name.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last += "s"
    return f"{start} {last}".strip()
