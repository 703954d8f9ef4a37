"""What is to be scored: captions of either form, with the references that belong to them."""

from collections.abc import Sequence
from pathlib import Path

from bitllm.errors import DataError
from bitllm.evaluation.scoring.captions_file import (
    CaptionPairs,
    is_json_lines,
    read_caption_pairs,
    read_captions,
    read_references,
    require_same_ids,
)


def read_input(captions: Path, references: Path | None, notes: list[str] | None = None) -> CaptionPairs:
    """Captions with their references: our ``captions.jsonl``, or captions of any decoder.

    References that are given take the place of those that our captions carry (ids are then NSD numbers).

    Parameters
    ----------
    captions, references
        The files.
    notes
        Gets a line on each thing that is no mistake but should be known.

    Raises
    ------
    DataError
        If a file is missing or not of its form, references are needed and not given, ids do not match, or the
        captions are of more than one control.
    """
    if not is_json_lines(captions):
        if references is None:
            raise DataError(
                f"{captions}: expected references beside captions that carry none, found none; give "
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
    """The same captions, with their images in the order of ``ids``.

    Raises
    ------
    DataError
        If they are not of the same images.
    """
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
