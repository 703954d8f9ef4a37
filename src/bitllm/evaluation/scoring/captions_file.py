"""Files of captions: our JSON lines, and the plain JSON of other decoders.

``captions.jsonl`` has one JSON object a line: ``{"nsd_id", "subject", "caption", "references",
"n_repetitions", "control"}``. Plain JSON is ``{"id": "caption"}``, with references
``{"id": ["reference", …]}`` beside it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from bitllm.errors import DataError
from bitllm.files import file_written_whole


class CaptionRecord(BaseModel):
    """One decoded caption: a line of ``captions.jsonl``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    nsd_id: int
    """0-based NSD number of the image."""
    subject: str
    """Whose betas were decoded, ``"subj08"``."""
    caption: str
    """What was decoded; may be empty."""
    references: tuple[str, ...]
    """What people wrote about the image."""
    n_repetitions: int = 1
    """How many trials were averaged; 1 is a single trial."""
    control: str = "real"
    """What the decoder was given: ``"real"`` betas, or the control ``"zero"``, ``"shuffle"``, …"""


class CaptionPairs(NamedTuple):
    """Captions and the references of their images, in one order."""

    ids: tuple[str, ...]
    """Of the image; the rows of single trials share one."""
    captions: tuple[str, ...]
    """One caption each."""
    references: tuple[tuple[str, ...], ...]
    """The references of each caption's image."""


def write_captions(path: Path, records: Sequence[CaptionRecord]) -> None:
    """Write ``captions.jsonl``, whole or not at all.

    Raises
    ------
    OutputError
        If the disk is full or the place cannot be written.
    """
    with file_written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record.model_dump(mode="json"), ensure_ascii=False) + "\n")


def read_captions(path: Path) -> list[CaptionRecord]:
    """Read ``captions.jsonl``.

    Raises
    ------
    DataError
        If the file is missing, empty or not UTF-8; a line is not such a record, or its image has no
        references; or an image comes twice for the same subject and control, unless as single trials.
    """
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


def read_caption_pairs(captions_path: Path, references_path: Path) -> CaptionPairs:
    """Read plain ``{"id": "caption"}`` JSON and its ``{"id": ["reference", …]}``.

    Captions are given in the order of their file.

    Raises
    ------
    DataError
        If a file is missing, empty, not UTF-8 or not of that form; an id comes twice; the ids of the two
        files are not the same; or an image has no references.
    """
    captions = _read_map(captions_path)
    references = read_references(references_path)
    _refuse(
        captions_path,
        [i for i, text in captions.items() if not isinstance(text, str)],
        'one string per id ({"id": "caption"})',
        "ids with something else",
    )
    _refuse_broken(captions_path, captions)
    require_same_ids(captions_path, captions, references_path, references)
    ids = tuple(captions)
    return CaptionPairs(ids, tuple(captions.values()), tuple(references[i] for i in ids))


def read_references(path: Path) -> dict[str, tuple[str, ...]]:
    """Read plain ``{"id": ["reference", …]}``.

    Raises
    ------
    DataError
        If the file is missing, empty, not UTF-8 or not of that form; an id comes twice or has no references.
    """
    references = _read_map(path)
    _refuse(
        path,
        [i for i, texts in references.items() if not _is_list_of_text(texts)],
        'a list of strings per id ({"id": ["reference", …]})',
        "ids with something else",
    )
    _refuse(
        path,
        [i for i, texts in references.items() if not texts],
        "references of every image",
        "ids without any",
    )
    _refuse_broken(path, {i: "".join(texts) for i, texts in references.items()})
    return {i: tuple(texts) for i, texts in references.items()}


def is_json_lines(path: Path) -> bool:
    """Whether a file of captions is ours (one JSON object a line with ``"nsd_id"``) or plain JSON.

    Raises
    ------
    DataError
        If the file is missing, empty or not UTF-8.
    """
    first = _read_text(path).lstrip().split("\n", 1)[0]
    try:
        return "nsd_id" in json.loads(first)
    except (json.JSONDecodeError, TypeError):
        return False


def require_same_ids(
    captions_path: Path, captions: Iterable[str], references_path: Path, references: Mapping[str, Any]
) -> None:
    """Refuse captions whose images are not those of the references.

    Raises
    ------
    DataError
        If an image has captions and no references, or references and no caption.
    """
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
    try:
        return CaptionRecord.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the line"
        raise DataError(
            f"{path}, line {number}: expected a caption record, found {where}: {problem['msg']}; "
            "write the file with `bitllm decode`"
        ) from None


def _read_map(path: Path) -> dict[str, Any]:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        content = json.loads(_read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: expected JSON, found text that does not parse ({error})") from None
    if not isinstance(content, dict) or not content:
        raise DataError(
            f"{path}: expected a JSON object with an id for each image, found "
            f"{'an empty one' if content == {} else type(content).__name__}"
        )
    _refuse(path, repeated, "each id once", "duplicated ids")
    return content


def _read_text(path: Path) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: expected a file of captions, found none; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected text in UTF-8, found another byte at place {error.start}; save it as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: expected captions, found an empty file; write it again")
    return text


def _refuse(path: Path, offenders: Sequence[str], expected: str, found: str) -> None:
    if offenders:
        raise DataError(
            f"{path}: expected {expected}, found {len(offenders)} {found} ({_first_three(offenders)}); "
            "mend these"
        )


def _refuse_broken(path: Path, texts: Mapping[str, str]) -> None:
    broken = [i for i, text in texts.items() if any("\ud800" <= letter <= "\udfff" for letter in text)]
    _refuse(path, broken, "whole characters", r"ids with half of one (a lone \ud800 to \udfff)")


def _first_three(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")


def _is_list_of_text(texts: Any) -> bool:
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)
