"""Readers of published conversations about COCO's images.

References
----------
VisDial 1.0 (Das et al. 2017), with the dense annotations of its challenge. LLaVA-Instruct-150k (Liu et al. 2023).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitllm.data.io.entries import Entries, is_whole
from bitllm.data.tasks.exchange import Exchange
from bitllm.data.tasks.reading import Origin, StoreImages, stem_of
from bitllm.errors import DataError
from bitllm.files import read_json

_AGAIN = "download it again"


def read_visdial(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """VisDial 1.0: dialogues of ten rounds, each with 100 options of which one is right.

    Options are read only for validation and test images, which are ranked: those of NSD's training images are 70
    million texts. The caption at the start of a dialogue is COCO's and is left out: it would describe the image.

    A file that is a list has the dense annotations: for one round of a dialogue, which share of the annotators found
    each option correct.
    """
    contents = {path: read_json(path, "VisDial's dialogues") for path in files}
    rated = {path: content for path, content in contents.items() if isinstance(content, list)}
    relevance = {key: value for path, content in rated.items() for key, value in _dense(path, content)}
    for path in [path for path in files if path not in rated]:
        content = contents[path]
        data = content.get("data") if isinstance(content, dict) else None
        rows = Entries.of(path, data, "dialogs", what="VisDial's dialogues", advice=_AGAIN)
        texts = {name: _texts(path, data, name) for name in ("questions", "answers")}
        for image_id, place in zip(rows.numbers("image_id"), range(len(rows.rows)), strict=True):
            for nsd_id, suffix in images.of_coco_id(image_id):
                turns = Entries.of(
                    path, rows.rows[place], "dialog", what=f"a dialogue of image {image_id}", advice=_AGAIN
                )
                is_ranked = images.part[nsd_id] != "train"
                options = _options(turns, texts["answers"]) if is_ranked else ((),) * len(turns.rows)
                rounds = range(1, len(turns.rows) + 1)
                ratings = [relevance.get((image_id, number)) if is_ranked else None for number in rounds]
                yield Exchange(
                    id=f"{origin.source}:{image_id}{suffix}",
                    nsd_id=nsd_id,
                    task=origin.source,
                    questions=_chosen(turns, "question", texts["questions"]),
                    answers=tuple((answer,) for answer in _chosen(turns, "answer", texts["answers"])),
                    options=tuple(tuple(dict.fromkeys(of_round)) for of_round in options),
                    answer_type="text",
                    source=origin.source,
                    license=origin.license,
                    relevance=tuple(_of_options(*one) for one in zip(options, ratings, strict=True)),
                )


class _Ratings(NamedTuple):
    """Relevance of each option of one round."""

    path: Path
    image_id: int
    number: int
    """Of the round, from 1."""
    relevance: list[float]


def _dense(path: Path, content: Any) -> Iterator[tuple[tuple[int, int], _Ratings]]:
    """Ratings by image and round."""

    def is_right(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(one, int | float) and 0 <= one <= 1 for one in value
        )

    rows = Entries.of(path, content, None, what="VisDial's dense annotations", advice=_AGAIN)
    # the challenge's file for val says `gt_relevance`, that for train `relevance`
    key = "gt_relevance" if "gt_relevance" in next(iter(rows.rows), {}) else "relevance"
    values = [
        [float(one) for one in row] for row in rows.values(key, is_right, "a list of numbers from 0 to 1")
    ]
    for image_id, number, value in zip(
        rows.numbers("image_id"), rows.numbers("round_id"), values, strict=True
    ):
        yield (image_id, number), _Ratings(path, image_id, number, value)


def _texts(path: Path, data: Any, name: str) -> list[str]:
    found = data.get(name)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DataError(f"{path}: expected a list of texts `{name}` in `data`, found another form; {_AGAIN}")
    return found


def _chosen(turns: Entries, key: str, texts: list[str]) -> tuple[str, ...]:
    numbers = turns.values(
        key, lambda value: is_whole(value) and 0 <= value < len(texts), f"a number below {len(texts)}"
    )
    return tuple(texts[number] for number in numbers)


def _of_options(options: Sequence[str], rated: _Ratings | None) -> tuple[float, ...]:
    """Relevance of each different option; nothing if they are not rated."""
    if rated is None:
        return ()
    if len(rated.relevance) != len(options):
        raise DataError(
            f"{rated.path}: expected the relevance of {len(options)} options of round {rated.number} of image "
            f"{rated.image_id}, found {len(rated.relevance)}; {_AGAIN}"
        )
    found: dict[str, float] = {}
    for option, value in zip(options, rated.relevance, strict=True):
        found[option] = max(value, found.get(option, 0.0))
    return tuple(found.values())


def _options(turns: Entries, texts: list[str]) -> tuple[tuple[str, ...], ...]:
    def is_right(value: Any) -> bool:
        return isinstance(value, list) and all(is_whole(n) and 0 <= n < len(texts) for n in value)

    found = []
    listed = turns.values("answer_options", is_right, f"a list of numbers below {len(texts)}")
    for number, (options, row) in enumerate(zip(listed, turns.rows, strict=True)):
        right: Any = row.get("gt_index")
        if not is_whole(right) or not 0 <= right < len(options) or options[right] != row["answer"]:
            raise DataError(
                f"{turns.path}: expected the answer of round {number + 1} at `gt_index` of its options, found "
                f"{right!r}{turns.where}; {_AGAIN}"
            )
        found.append(tuple(texts[option] for option in options))
    return tuple(found)


_LLAVA_TASKS = {
    "conversation": "llava-conversation",
    "detail": "llava-detail",
    "complex_reasoning": "llava-reasoning",
}
"""Tasks by the start of the file's name; other files are the task ``llava``."""


def read_llava(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """LLaVA-Instruct: conversations that a language model wrote from COCO's captions and boxes."""
    for path in files:
        rows = Entries.of(
            path, read_json(path, "LLaVA's conversations"), None, what="LLaVA's conversations", advice=_AGAIN
        )
        task = next((name for start, name in _LLAVA_TASKS.items() if path.name.startswith(start)), "llava")
        ids = rows.values(
            "id", lambda value: isinstance(value, str) and value.isdecimal(), "a COCO id as text"
        )
        for number, ident in enumerate(ids):
            for nsd_id, suffix in images.of_coco_id(int(ident)):
                questions, answers = _turns(path, rows.rows[number], ident)
                yield Exchange(
                    id=f"{stem_of(path)}:{number}:{ident}{suffix}",
                    nsd_id=nsd_id,
                    task=task,
                    questions=questions,
                    answers=tuple((answer,) for answer in answers),
                    options=((),) * len(questions),
                    answer_type="text",
                    source=origin.source,
                    license=origin.license,
                )


def _turns(path: Path, row: dict[str, Any], ident: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    turns = Entries.of(path, row, "conversations", what=f"a conversation of image {ident}", advice=_AGAIN)
    texts = [text.replace("<image>", "").strip() for text in turns.texts("value")]
    speakers = turns.texts("from")
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise DataError(
            f"{path}: expected turns of human and gpt one after the other, found {', '.join(speakers[:6])} in the "
            f"conversation of image {ident}; correct or remove it"
        )
    return tuple(texts[::2]), tuple(texts[1::2])
