"""Captions and references in odd but valid files are scored as the same plain ones."""

import json

import pytest

from bitllm.evaluation.scoring.captions_file import read_input

CAPTIONS = {"7": 'a "dog" runs', "139": "two boats\u2028at sea", "25": "ein Bär 🐻", "9007199254740993": ""}
REFERENCES = {image: [f"first of {image}", "a second, with\ttab"] for image in [*CAPTIONS][::-1]}
ROWS = [{"image_id": int(image), "caption": text} for image, text in CAPTIONS.items()]
ANNOTATIONS = [
    {"id": n, "image_id": int(image), "caption": text, "extra": None}
    for n in (0, 1)
    for image, texts in REFERENCES.items()
    for text in [texts[n]]
]
OURS = [
    {"nsd_id": int(image), "subject": "subj01", "caption": text, "references": ["old"]}
    for image, text in CAPTIONS.items()
]


def lines(rows: list, end: str = "\n", **how) -> str:
    return "".join(json.dumps(row, **how) + end for row in rows)


ODD: dict[str, tuple[str, str]] = {
    "escaped letters": (json.dumps(CAPTIONS), json.dumps(REFERENCES)),
    "plain letters, tabs and a line end of Windows": (
        json.dumps(CAPTIONS, ensure_ascii=False, indent="\t").replace("\n", "\r\n"),
        json.dumps(REFERENCES, ensure_ascii=False, indent="\t").replace("\n", "\r\n"),
    ),
    "a byte order mark": ("\ufeff" + json.dumps(CAPTIONS), "\ufeff" + json.dumps(REFERENCES)),
    "no spaces at all": (
        json.dumps(CAPTIONS, separators=(",", ":")),
        json.dumps(REFERENCES, separators=(",", ":")),
    ),
    "lists of one": (json.dumps({i: [t] for i, t in CAPTIONS.items()}), json.dumps(REFERENCES)),
    "COCO's results and annotations": (
        json.dumps(ROWS),
        json.dumps({"images": [], "annotations": ANNOTATIONS}),
    ),
    "ids as floats": (json.dumps([row | {"image_id": float(row["image_id"])} for row in ROWS[:3]]), ""),
    "ids with zeros": (
        json.dumps([row | {"image_id": f"{row['image_id']:012d}"} for row in ROWS]),
        lines(ANNOTATIONS),
    ),
    "JSON lines with CR and LF": (lines(ROWS, "\r\n"), lines(ANNOTATIONS, "\r\n", ensure_ascii=False)),
    "JSON lines with CR alone": (lines(ROWS, "\r"), lines(ANNOTATIONS, "\r")),
    "JSON lines with empty lines": (lines(ROWS, "\n\n  \n"), "\n\n" + lines(ANNOTATIONS)),
    "JSON lines of one key each": (lines([{i: t} for i, t in CAPTIONS.items()]), json.dumps(REFERENCES)),
    "our own lines with a mark": ("\ufeff" + lines(OURS, ensure_ascii=False), json.dumps(REFERENCES)),
    "our own lines with line ends of Windows": (lines(OURS, "\r\n"), json.dumps(REFERENCES)),
    "our own lines without the last end": (
        lines(OURS).rstrip("\n"),
        lines([{i: t} for i, t in REFERENCES.items()]),
    ),
}


@pytest.mark.parametrize("odd", list(ODD))
def test_odd_captions_and_references_are_read_right(tmp_path, odd):
    folder = tmp_path / "Überschriften (1)"
    folder.mkdir()
    images = list(CAPTIONS)[:3] if odd == "ids as floats" else list(CAPTIONS)  # floats end at 2**53
    written, references = ODD[odd]
    references = references or json.dumps({image: REFERENCES[image] for image in images})
    paths = folder / "captions", folder / "referências.JSON"
    for path, content in zip(paths, (written, references), strict=True):
        path.write_bytes(content.encode())
    pairs = read_input(*paths)
    assert pairs.ids == tuple(images)
    assert pairs.captions == tuple(CAPTIONS[image] for image in images)
    assert pairs.references == tuple(tuple(REFERENCES[image]) for image in images)
