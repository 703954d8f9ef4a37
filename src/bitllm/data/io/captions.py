"""Captions and references in JSON: one reader for stores, NSD's COCO files and captions to be scored.

It reads ``{image: [caption, …]}``, ``{image: caption}``, COCO's annotations, COCO's results list ``[{"image_id": 1,
"caption": "…"}]``, and JSON lines of either.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bitllm.errors import DataError
from bitllm.files import normalized_name, parse_json, read_text

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_PICTURE_ENDING = re.compile(r"\.[A-Za-z]\w{1,4}$")
_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})")
"""COCO names its images by id: ``000000000139``, in 2014 ``COCO_train2014_000000000139``."""
_FORMS = '{"image": ["caption", …]}, COCO\'s annotations, or a list or JSON lines of {"image_id": 1, "caption": "…"}'


@dataclass(frozen=True)
class CaptionFile:
    """Contents of a file of captions.

    Parameters
    ----------
    path
        The file.
    captions
        The captions of each image, by its id in the file, as text; may be empty.
    form
        ``map`` for ``{image: captions}``, ``rows`` for a list or lines with ``image_id`` and ``caption``,
        ``annotations`` for COCO's annotations.
    file_names
        File name and id of each image, from COCO's ``images``.
    notes
        A line about each peculiarity of the file that is not an error.
    """

    path: Path
    captions: dict[str, tuple[str, ...]]
    form: Literal["map", "rows", "annotations"]
    file_names: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_coco(self) -> bool:
        """Whether the ids are COCO's: rows with only numeric ids."""
        return self.form != "map" and all(_is_number(image) for image in self.captions)

    @cached_property
    def by_coco_id(self) -> dict[str, tuple[str, ...]]:
        """Captions by ids as COCO's tools compare them: numbers without leading zeros."""
        ids = {image: str(int(image)) if _is_number(image) else image for image in self.captions}
        _require_once(self.path, ids.values(), "as a number ")
        return {coco_id: self.captions[image] for image, coco_id in ids.items()}

    @cached_property
    def by_file_name(self) -> dict[str, tuple[str, ...]]:
        """Captions by COCO's file names, without folder, both with and without extension.

        A name that several images have is mapped to no captions.
        """
        return {
            name: self.captions.get(next(iter(images)), ()) if len(images) == 1 else ()
            for name, images in self.ids_by_file_name.items()
        }

    @cached_property
    def ids_by_file_name(self) -> dict[str, set[str]]:
        """Ids of the images with each of COCO's file names, without folder, both with and without extension."""
        ids: dict[str, set[str]] = {}
        for file_name, image in self.file_names:
            whole = normalized_name(re.split(r"[/\\]", file_name)[-1])
            for name in {whole, _PICTURE_ENDING.sub("", whole)}:
                ids.setdefault(name, set()).add(image)
        return ids


@dataclass
class _Counts:
    """Counts of what is corrected while a file is read."""

    entities: int = 0
    renamed: set[str] = field(default_factory=set)

    def notes(self, path: Path) -> Iterator[str]:
        if self.entities:
            yield f"{path}: {self.entities} captions have HTML entities (&amp;), which are replaced by characters"
        if self.renamed:
            yield (
                f"{path}: {len(self.renamed)} names of images have spaces around them or accents that are not "
                "composed; the spaces are removed, the accents composed (NFC)"
            )


def read_caption_file(path: Path, what: str = "captions in JSON") -> CaptionFile:
    """Read a file of captions in any of the formats.

    Texts are not changed, except that HTML entities are replaced. Ids are text in composed form (NFC), without
    surrounding spaces.
    """
    path = Path(path)
    content = _content(path, what)
    counts = _Counts()
    form: Literal["map", "rows", "annotations"] = "rows"
    names: list[tuple[str, str]] = []
    if isinstance(content, dict) and _is_list_of_objects(content.get("annotations")):
        form = "annotations"
        rows = _of_rows(path, content["annotations"], counts)
        names = _file_names(path, content.get("images"))
    elif _is_list_of_objects(content):
        rows = _of_rows(path, content, counts)
    elif isinstance(content, dict):
        form = "map"
        rows = _of_map(path, content, counts)
    else:
        found = "an empty list" if content == [] else f"another ({type(content).__name__})"
        raise DataError(f"{path}: expected {_FORMS}, found {found}; write one of these")
    captions: dict[str, list[str]] = {}
    for image, texts in rows:
        captions.setdefault(image, []).extend(_text(path, image, text, counts) for text in texts)
    if not captions:
        raise DataError(f"{path}: expected {what}, found none; write {_FORMS}")
    found_texts = {image: tuple(texts) for image, texts in captions.items()}
    return CaptionFile(path, found_texts, form, tuple(names), tuple(counts.notes(path)))


def captions_by_nsd_id(
    paths: Sequence[Path],
    stimuli: pd.DataFrame,
    notes: list[str],
    *,
    numbers_are_coco_ids: bool = False,
) -> dict[int, tuple[str, ...]]:
    """The captions of every image in ``stimuli``, from all files, with single spaces.

    Images are joined by name or by COCO id, never by order. A map is joined by ``stimulus_id``. COCO's annotations
    and lists are joined by ``coco_id`` if it is known; else by the file names in COCO's ``images``; else by names
    that are COCO ids (``000000000139``).

    Parameters
    ----------
    paths
        Files in the formats of `read_caption_file`.
    stimuli
        ``nsd_id``, ``stimulus_id`` (the name) and ``coco_id`` (-1 if unknown).
    notes
        Receives a line about each peculiarity of the files that is not an error.
    numbers_are_coco_ids
        Whether names that are whole numbers are COCO ids (and not NSD's).
    """
    nsd_ids, names = stimuli["nsd_id"].tolist(), [normalized_name(str(n)) for n in stimuli["stimulus_id"]]
    captions: dict[int, tuple[str, ...]] = dict.fromkeys(nsd_ids, ())
    n_images = 0
    for path in paths:
        file = read_caption_file(path)
        notes.extend(file.notes)
        n_images += len(file.captions)
        find = _joined(file, stimuli, names, numbers_are_coco_ids=numbers_are_coco_ids)
        for place, nsd_id in enumerate(nsd_ids):
            captions[nsd_id] += tuple(_with_words(path, names[place], text) for text in find(place))
    where = ", ".join(map(str, paths)) or "--captions"
    missing = [name for nsd_id, name in zip(nsd_ids, names, strict=True) if not captions[nsd_id]]
    if missing:
        raise DataError(
            f"{where}: expected captions of the image `{missing[0]}`, found none ({len(missing)} of {len(names)} "
            f"images have none; the file has {n_images}); add them, or check that both files use the same ids (NSD "
            "ids are 0-based)"
        )
    return captions


def _joined(
    file: CaptionFile, stimuli: pd.DataFrame, names: Sequence[str], *, numbers_are_coco_ids: bool
) -> Callable[[int], tuple[str, ...]]:
    """Captions of images, by row of ``stimuli``."""
    coco_ids = [int(coco_id) for coco_id in stimuli["coco_id"].tolist()]
    if not file.is_coco:
        return lambda place: file.captions.get(names[place], ())
    if numbers_are_coco_ids:
        _require_agreement(file, names, coco_ids)
    if min(coco_ids, default=-1) >= 0:
        return lambda place: file.by_coco_id.get(str(coco_ids[place]), ())
    if any(name in file.by_file_name for name in names):
        return lambda place: file.by_file_name.get(names[place], ())
    if numbers_are_coco_ids and any(name in file.captions for name in names):
        return lambda place: file.captions.get(names[place], ())
    numbers = [int(name) if numbers_are_coco_ids and _is_number(name) else coco_id_of(name) for name in names]
    if min(numbers, default=-1) >= 0 and len(set(numbers)) == len(numbers):
        return lambda place: file.by_coco_id.get(str(numbers[place]), ())
    raise DataError(
        f"{file.path}: expected captions by the names of the images (`{names[0]}`), found COCO ids, and the COCO ids "
        "are unknown; add NSD's table with --stimulus-table, a column `coco_id` to the trials, or the names as "
        "`file_name` to COCO's `images`"
    )


def _require_agreement(file: CaptionFile, names: Sequence[str], coco_ids: Sequence[int]) -> None:
    """Refuse COCO ids that contradict the names of their images."""
    for name, coco_id in zip(names, coco_ids, strict=True):
        by_name = {int(image) for image in file.ids_by_file_name.get(name, ())} or {coco_id_of(name)}
        if coco_id >= 0 and by_name != {-1} and coco_id not in by_name:
            raise DataError(
                f"{file.path}: expected the `coco_id` {coco_id} for the image `{name}`, as in the trials, found "
                f"{min(by_name)} under its file name; correct the one that is wrong"
            )


def coco_id_of(name: str) -> int:
    """The COCO id in the name that COCO gives to an image, such as ``000000000139``, or -1."""
    found = _COCO_NAME.fullmatch(name)
    return int(found[1]) if found else -1


def _content(path: Path, what: str) -> Any:
    """JSON of a file. JSON lines become a list of their objects, or one object if they are maps."""
    text = read_text(path, what)
    lines = _json_lines(text)
    if lines is None:
        if not text.strip():
            raise DataError(f"{path}: expected {what}, found an empty file; write it again")
        content = parse_json(text, path)
        return [content] if _is_row(content) else content
    rows = [parse_json(line, f"{path}, line {number}") for number, line in lines]
    if any(_is_row(row) for row in rows):
        return rows
    merged: dict[str, Any] = {}
    for (number, _), row in zip(lines, rows, strict=True):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: expected a JSON object, found {type(row).__name__}; write {_FORMS}"
            )
        _require_once(path, [*merged.keys() & row.keys()] * 2, "")
        merged.update(row)
    return merged


def _json_lines(text: str) -> list[tuple[int, str]] | None:
    """Non-empty lines, if there are several and the first is a JSON object."""
    start = text.lstrip()
    first, _, rest = start.partition("\n") if "\n" in start else start.partition("\r")
    if not first.rstrip().endswith("}") or not rest.strip():
        return None
    try:
        json.loads(first)
    except ValueError:
        return None
    lines = enumerate(re.split(r"\r\n|\n|\r", text), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _is_row(content: Any) -> bool:
    return isinstance(content, dict) and {"image_id", "caption"} <= content.keys()


def _is_list_of_objects(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(row, dict) for row in content)


def _of_rows(path: Path, rows: list[Any], counts: _Counts) -> Iterator[tuple[str, list[Any]]]:
    for number, row in enumerate(rows, start=1):
        if not _is_row(row):
            found = ", ".join(list(row)[:5]) if isinstance(row, dict) else repr(row)[:50]
            raise DataError(
                f"{path}: expected `image_id` and `caption` in every annotation, found number {number} without "
                f"({found}); use captions_*.json, not the instances or keypoints of COCO"
            )
        yield _image_id(path, row["image_id"], counts), [row["caption"]]


def _of_map(path: Path, content: dict[str, Any], counts: _Counts) -> Iterator[tuple[str, list[Any]]]:
    ids = [_image_id(path, image, counts) for image in content]
    _require_once(path, ids, "")
    for image, texts in zip(ids, content.values(), strict=True):
        yield image, texts if isinstance(texts, list) else [texts]


def _image_id(path: Path, value: Any, counts: _Counts) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = normalized_name(value) if isinstance(value, str) else ""
    if not name:
        raise DataError(
            f"{path}: expected the id of an image as text or a whole number, found {value!r}; write it in quotes"
        )
    if name != value:
        counts.renamed.add(value)
    return name


def _text(path: Path, image: str, value: Any, counts: _Counts) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{path}: expected a text as caption of `{image}`, found {repr(value)[:60]}; write text or remove it"
        )
    if _HALF_CHARACTER.search(value):
        raise DataError(
            f"{path}: expected whole characters, found half of one (a lone \\ud800 to \\udfff) in a caption of "
            f"`{image}`; write that caption again"
        )
    text = _without_entities(value)
    counts.entities += text != value
    return text


def _without_entities(text: str) -> str:
    before = ""
    while before != text and "&" in text:  # ``&amp;#39;`` was escaped twice
        before, text = text, _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return text.replace("\xa0", " ") if before else text


def _with_words(path: Path, name: str, text: str) -> str:
    cleaned = " ".join(text.split())
    if not cleaned:
        raise DataError(
            f"{path}: expected a text as caption of `{name}`, found {text!r}; fill it in or remove it"
        )
    return cleaned


def _file_names(path: Path, images: Any) -> list[tuple[str, str]]:
    """File name and id of COCO's ``images``; those without a file name are ignored."""
    rows = [row for row in images if isinstance(row, dict)] if isinstance(images, list) else []
    named = [(row["file_name"], row["id"]) for row in rows if {"id", "file_name"} <= row.keys()]
    return [(name, _image_id(path, image, _Counts())) for name, image in named if isinstance(name, str)]


def _is_number(image: str) -> bool:
    return image.isascii() and image.isdigit()


def _require_once(path: Path, ids: Iterable[str], how: str) -> None:
    twice = [image for image, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: expected each image {how}once, found {len(twice)} twice ({', '.join(twice[:3])}); remove the "
            "duplicates"
        )
