"""Files of captions: our JSON lines, and the JSON of other decoders.

``captions.jsonl`` has one JSON object per line: ``{"nsd_id", "subject", "caption", "references", "n_repetitions",
"control"}``. `bitllm.data.io.captions` reads references and the captions of other decoders.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from bitllm.data.io.captions import read_caption_file
from bitllm.errors import DataError
from bitllm.files import file_written_whole, parse_json, read_text


class CaptionRecord(BaseModel):
    """One decoded caption, a line of ``captions.jsonl``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    nsd_id: int
    """0-based NSD id of the image."""
    subject: str
    """Subject, such as ``"subj08"``."""
    caption: str
    """The decoded caption; may be empty."""
    references: tuple[str, ...]
    """The human captions of the image."""
    n_repetitions: int = 1
    """Number of trials averaged; 1 for a single trial."""
    control: str = "real"
    """Input of the decoder: ``"real"`` betas, or the control ``"zero"``, ``"shuffle"``, …"""


class CaptionPairs(NamedTuple):
    """Captions and the references of their images, in the same order."""

    ids: tuple[str, ...]
    """Image of each row; rows of single trials may have the same one."""
    captions: tuple[str, ...]
    """One caption per row."""
    references: tuple[tuple[str, ...], ...]
    """The references of each row's image."""
    are_coco_ids: bool = False
    """Whether ``ids`` are COCO's, not NSD's."""


def write_captions(path: Path, records: Sequence[CaptionRecord]) -> None:
    """Write ``captions.jsonl``, completely or not at all."""
    with file_written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record.model_dump(mode="json"), ensure_ascii=False) + "\n")


def read_captions(path: Path) -> list[CaptionRecord]:
    """Read ``captions.jsonl``."""
    lines = _read_text(path).split("\n")
    records = [_record(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    bare = [f"nsd_id {record.nsd_id}" for record in records if not record.references]
    _refuse(path, bare, "references of every image", "images without any")
    averaged = {(r.subject, r.control, r.nsd_id) for r in records if r.n_repetitions != 1}
    seen = Counter((record.subject, record.control, record.nsd_id) for record in records)
    twice = [
        f"{s} {c} nsd_id {i}" for (s, c, i), count in seen.items() if count > 1 and (s, c, i) in averaged
    ]
    _refuse(
        path,
        twice,
        "each image once per subject and control (more often only as single trials)",
        "duplicates",
    )
    return records


def read_caption_pairs(
    captions_path: Path, references_path: Path, notes: list[str] | None = None
) -> CaptionPairs:
    """Read captions of any decoder and their references, in the formats of `bitllm.data.io.captions`.

    Captions are returned in the order of their file. Ids are compared as text; if a file is COCO's they are compared
    as numbers, and names with COCO's file names. Images of COCO's annotations without a caption are left out, with a
    note; all other references must have one.

    Parameters
    ----------
    captions_path, references_path
        The files.
    notes
        Receives a line about each peculiarity of the file that is not an error.
    """
    captions, references = read_caption_file(captions_path), read_caption_file(references_path)
    several = [image for image, texts in captions.captions.items() if len(texts) != 1]
    _refuse(captions_path, several, "one caption of each image", "images with none or several")
    is_coco = captions.form != "map" or references.form != "map"
    texts, found = (
        (captions.by_coco_id, references.by_coco_id) if is_coco else (captions.captions, references.captions)
    )
    if found.keys().isdisjoint(texts):
        named = {image: references.by_file_name.get(image) for image in texts}
        found = {image: some for image, some in named.items() if some} or found
    said = [*captions.notes, *references.notes]
    if references.form == "annotations" and not found.keys().isdisjoint(texts):
        found = {image: some for image, some in found.items() if image in texts}
        n_left_out = len(references.captions) - len(found)
        if n_left_out:
            said.append(
                f"{references_path}: {n_left_out} of {len(references.captions)} images have no caption in "
                f"{captions_path.name}; they are left out"
            )
    if notes is not None:
        notes.extend(said)
    require_same_ids(captions_path, texts, references_path, found)
    _require_references(references_path, found)
    return CaptionPairs(
        tuple(texts),
        tuple(one for (one,) in texts.values()),
        tuple(found[i] for i in texts),
        captions.is_coco or references.is_coco,
    )


def read_references(
    path: Path, notes: list[str] | None = None, *, ids_are_nsd: bool = False
) -> dict[str, tuple[str, ...]]:
    """Read the references of each image, in the formats of `bitllm.data.io.captions`.

    Parameters
    ----------
    path
        The file.
    notes
        Receives a line about each peculiarity of the file that is not an error.
    ids_are_nsd
        Whether the ids must be NSD's; COCO's are then refused.
    """
    file = read_caption_file(path)
    if ids_are_nsd and file.form != "map":
        raise DataError(
            f'{path}: expected references by nsd_id ({{"nsd_id": ["reference", …]}}), as the captions have, found '
            "COCO's `image_id`; write them by nsd_id"
        )
    _require_references(path, file.captions)
    if notes is not None:
        notes.extend(file.notes)
    return file.captions


def is_json_lines(path: Path) -> bool:
    """Whether a file of captions is ours: one JSON object with ``"nsd_id"`` per line."""
    first = _read_text(path).lstrip().split("\n", 1)[0]
    try:
        return "nsd_id" in json.loads(first)
    except (ValueError, TypeError, RecursionError):
        return False


def require_same_ids(
    captions_path: Path, captions: Iterable[str], references_path: Path, references: Mapping[str, Any]
) -> None:
    """Refuse captions and references of different images."""
    captions = dict.fromkeys(captions)
    alone = [i for i in captions if i not in references]
    if alone:
        raise DataError(
            f"{captions_path}: expected ids that {references_path} has, found {len(alone)} of "
            f"{len(captions)} without references ({_first_three(alone)}); give the references of these"
        )
    missing = [i for i in references if i not in captions]
    if missing:
        raise DataError(
            f"{captions_path}: expected a caption for each of {len(references)} ids of {references_path}, "
            f"found none for {len(missing)} ({_first_three(missing)}); decode them (an empty caption counts) "
            "or remove their references: leaving images out changes every score"
        )


def _record(path: Path, number: int, line: str) -> CaptionRecord:
    parse_json(line, f"{path}, line {number}")  # refuses a key twice, of which pydantic takes the last
    try:
        return CaptionRecord.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the line"
        raise DataError(
            f"{path}, line {number}: expected a caption record, found {where}: {problem['msg']}; correct that line, "
            "or write the file again (`bitllm evaluate` writes such files, captions/SYSTEM.jsonl)"
        ) from None


def _read_text(path: Path) -> str:
    text = read_text(path, "a file of captions")
    if not text.strip():
        raise DataError(f"{path}: expected captions, found an empty file; write it again")
    return text


def _require_references(path: Path, references: Mapping[str, Sequence[str]]) -> None:
    bare = [image for image, texts in references.items() if not texts]
    _refuse(path, bare, "references of every image", "ids without any")


def _refuse(path: Path, offenders: Sequence[str], expected: str, found: str) -> None:
    if offenders:
        raise DataError(
            f"{path}: expected {expected}, found {len(offenders)} {found} ({_first_three(offenders)}); "
            "fix these lines"
        )


def _first_three(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")


def read_input(captions: Path, references: Path | None, notes: list[str] | None = None) -> CaptionPairs:
    """Captions with their references: our ``captions.jsonl``, or captions of any decoder.

    Given references replace those in our captions; their ids are then NSD ids.

    Parameters
    ----------
    captions, references
        The files.
    notes
        Receives a line about each peculiarity of the file that is not an error.
    """
    if not is_json_lines(captions):
        if references is None:
            raise DataError(
                f"{captions}: expected references for captions without their own, found none; give "
                'them with --references FILE ({"id": ["reference", …]})'
            )
        return read_caption_pairs(captions, references, notes)
    records = read_captions(captions)
    controls = list(dict.fromkeys(record.control for record in records))
    if len(controls) > 1:
        raise DataError(
            f"{captions}: expected captions of one control, found {len(controls)} ({', '.join(controls)}); "
            "write one file for each"
        )
    ids = tuple(str(record.nsd_id) for record in records)
    sets = tuple(record.references for record in records)
    if references is not None:
        given = read_references(references, notes, ids_are_nsd=True)
        require_same_ids(captions, ids, references, given)
        sets = tuple(given[i] for i in ids)
    return CaptionPairs(ids, tuple(record.caption for record in records), sets)


def in_order_of(path: Path, pairs: CaptionPairs, ids: Sequence[str]) -> CaptionPairs:
    """The same captions, sorted in the order of ``ids``."""
    places = {image: place for place, image in enumerate(dict.fromkeys(ids))}
    others = list(dict.fromkeys(image for image in pairs.ids if image not in places))
    own = set(pairs.ids)
    missing = [image for image in places if image not in own]
    if others or missing:
        named = "; ".join(
            f"{len(some)} {what} ({', '.join(some[:3])})"
            for some, what in ((others, "others"), (missing, "missing"))
            if some
        )
        raise DataError(
            f"{path}: expected captions of the same {len(places)} images, found {named}; score both systems on "
            "the same images"
        )
    order = sorted(range(len(pairs.ids)), key=lambda row: places[pairs.ids[row]])
    return pairs._replace(
        ids=tuple(pairs.ids[row] for row in order),
        captions=tuple(pairs.captions[row] for row in order),
        references=tuple(pairs.references[row] for row in order),
    )
