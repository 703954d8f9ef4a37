"""Questions about what a person saw before, derived from the order of the trials; each is about one single trial.

``seen``: was this image shown before? ``before``: which object was in the image one to five images earlier?

The answers are balanced, so that neither the image nor the time within an experiment gives them away: ``seen`` has as
many of both answers in each run, ``before`` asks the same question about two trials of a session with different
answers, and neither object is in the image of the trial itself.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd

from bitllm.data.store import Store
from bitllm.data.tasks.derive import NUMBER_WORDS, Scene, scenes_of, with_article
from bitllm.data.tasks.exchange import YES_NO, Exchange

SEEN, BEFORE = "seen", "before"
MEMORY_SOURCE = "trials"
LONGEST_LAG = 5


def memory_exchanges(store: Store, *, license_name: str, seed: int = 0) -> list[Exchange]:
    """Questions about the trials of every subject; ``before`` needs the objects of the images.

    An earlier image belongs to the same part (train, validation, test) as the trial's own, so that no answer tells
    about an image of another part.

    Parameters
    ----------
    license_name
        License of the annotations of objects.
    seed
        Of every draw; the same seed gives the same questions.
    """
    scenes = scenes_of(store.objects, store.captions, store.stimuli) if store.has_objects else []
    by_image, found = {scene.nsd_id: scene for scene in scenes}, []
    for subject in store.subjects:
        trials = store.subject(subject).trials
        part = store.stimuli["part"].reindex(trials["nsd_id"]).to_numpy()
        trials = trials.reset_index(drop=True).assign(row=np.arange(len(trials)), part=part)
        rng = np.random.default_rng([seed, crc32(subject.encode())])
        for asked in (*_seen(trials, rng), *_before(trials, by_image, rng)):
            found.append(
                Exchange(
                    f"{asked.task}:{subject}:{asked.row}", asked.nsd_id, asked.task, (asked.question,),
                    ((asked.answer,),), (asked.options,), asked.answer_type, MEMORY_SOURCE, license_name,
                    subject=subject, row=asked.row,
                )
            )  # fmt: skip
    return found


class _Asked(NamedTuple):
    task: str
    nsd_id: int
    row: int
    question: str
    answer: str
    options: tuple[str, ...]
    answer_type: str


def _seen(trials: pd.DataFrame, rng: np.random.Generator) -> Iterator[_Asked]:
    """First and later showings of images, equally many in each run and part."""
    for _, of_run in trials.groupby(["part", "session", "run"]):
        is_old = (of_run["repetition"] > 1).to_numpy()
        n = min(is_old.sum(), (~is_old).sum())
        for answer, rows in zip(YES_NO, (of_run[is_old], of_run[~is_old]), strict=True):
            for place in np.sort(rng.permutation(len(rows))[:n]):
                one = rows.iloc[place]
                question = "Was this image shown before?"
                yield _Asked(SEEN, int(one["nsd_id"]), int(one["row"]), question, answer, YES_NO, "yes/no")


def _before(trials: pd.DataFrame, scenes: Mapping[int, Scene], rng: np.random.Generator) -> Iterator[_Asked]:
    """Pairs of trials with the same question and different answers; each trial is asked at most once."""
    images = trials["nsd_id"].tolist()
    for (_, _, lag), rows in _with_a_lag(trials, scenes, rng).items():
        order = [rows[int(place)] for place in rng.permutation(len(rows))]
        for pair in zip(order[::2], order[1::2], strict=False):
            earlier = [scenes[images[row - lag]] for row in pair]
            own = [scenes[images[row]] for row in pair]
            named = _objects_apart(earlier, own, rng)
            if named is None:
                continue
            options = tuple(named[int(place)] for place in rng.permutation(2))
            first, second = map(with_article, options)
            when = "one image" if lag == 1 else f"{NUMBER_WORDS[lag]} images"
            question = f"Was there {first} or {second} {when} before?"
            for row, answer in zip(pair, named, strict=True):
                yield _Asked(BEFORE, images[row], row, question, answer, options, "choice")


def _with_a_lag(
    trials: pd.DataFrame, scenes: Mapping[int, Scene], rng: np.random.Generator
) -> dict[tuple[str, int, int], list[int]]:
    """Rows by part, session and lag: each trial has one of its lags to an image of the same part."""
    images, parts = trials["nsd_id"].tolist(), trials["part"].tolist()
    found: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for session, own in trials.groupby("session")["row"]:
        rows = own.tolist()
        for row in rows:
            if images[row] not in scenes:
                continue
            earlier = range(row - 1, max(rows[0], row - LONGEST_LAG) - 1, -1)
            lags = [row - one for one in earlier if parts[one] == parts[row] and images[one] in scenes]
            if lags:
                found[parts[row], int(str(session)), lags[int(rng.integers(len(lags)))]].append(row)
    return found


def _objects_apart(
    earlier: Sequence[Scene], own: Sequence[Scene], rng: np.random.Generator
) -> tuple[str, str] | None:
    """An object of each earlier image that neither the other one nor the images of the trials show."""
    found = []
    for scene, rival in (earlier, earlier[::-1]):
        names = sorted(name for name in scene.present if all(one.lacks(name) for one in (rival, *own)))
        if not names:
            return None
        found.append(names[int(rng.integers(len(names)))])
    return found[0], found[1]
