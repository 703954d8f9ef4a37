"""Leaks through questions: captions of test images in questions, and questions about test images in training."""

import re
from collections.abc import Iterator

from bitllm.data.store import Store
from bitllm.data.tasks.exchange import DERIVED, Exchange, exchanges

_FEWEST_WORDS = 5
"""Words of a caption that is looked for; shorter ones are ordinary parts of questions."""
_FEWEST_WORDS_OF_COPY = 25
"""Words of the questions and answers of an image that identify it; short questions are asked about many images."""


def question_leaks(store: Store) -> Iterator[str]:
    """A sentence about each kind of leak through the questions of a store.

    Questions derived from objects are not compared with one another: the same ones are asked about many images. Nor
    are those of simulated scenes, of which two may be the same.
    """
    if not store.has_tasks:
        return
    found = exchanges(store)
    yield from _quoted_captions(store, found)
    if store.manifest.source != "simulated":
        yield from _copied_questions(store, [one for one in found if one.source != DERIVED])


def _quoted_captions(store: Store, found: tuple[Exchange, ...]) -> Iterator[str]:
    """Questions that contain a whole caption of a test image, found through the captions' first words."""
    part = store.stimuli["part"]
    by_start: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]] = {}
    for nsd_id, captions in store.captions.items():
        for words in (_words(caption) for caption in captions if part[nsd_id] == "test"):
            if len(words) >= _FEWEST_WORDS:
                by_start.setdefault(words[:_FEWEST_WORDS], []).append((words, nsd_id))
    quoted = [(one, image) for one in found if (image := _quoted(one, by_start)) is not None]
    if quoted:
        one, image = quoted[0]
        yield (
            f"a question quotes a test image's caption: {one.id} of the image {one.nsd_id} has a caption of the test "
            f"image {image} ({len(quoted)} in all)"
        )


def _quoted(
    exchange: Exchange, by_start: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]]
) -> int | None:
    for words in map(_words, exchange.questions):
        for rest in (words[first:] for first in range(len(words) - _FEWEST_WORDS + 1)):
            known = by_start.get(rest[:_FEWEST_WORDS], ())
            found = next((nsd_id for caption, nsd_id in known if rest[: len(caption)] == caption), None)
            if found is not None:
                return found
    return None


def _copied_questions(store: Store, found: list[Exchange]) -> Iterator[str]:
    """Images outside the test part with all questions and answers of a test image, of one source."""
    part = store.stimuli["part"]
    by_image: dict[tuple[str, int], list[Exchange]] = {}
    for one in found:
        by_image.setdefault((one.source, one.nsd_id), []).append(one)
    of_test: dict[tuple[str, tuple[str, ...]], int] = {}
    others: list[tuple[tuple[str, tuple[str, ...]], int]] = []
    for (source, nsd_id), asked in by_image.items():
        texts = tuple(sorted(" ".join(_texts(one)) for one in asked))
        if sum(len(_words(text)) for text in texts) < _FEWEST_WORDS_OF_COPY:
            continue
        if part[nsd_id] == "test":
            of_test[source, texts] = nsd_id
        else:
            others.append(((source, texts), nsd_id))
    copies = [(of_test[key], nsd_id, key[0]) for key, nsd_id in others if key in of_test]
    if copies:
        image, other, source = copies[0]
        yield (
            f"a test image's questions in training: those of {source} about the test image {image} are asked about the "
            f"image {other} too, which is no test image ({len(copies)} in all)"
        )


def _texts(exchange: Exchange) -> Iterator[str]:
    for question, answers in zip(exchange.questions, exchange.answers, strict=True):
        yield from (question, *answers)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))
