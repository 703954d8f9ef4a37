"""Tables, names, headers, captions and pictures in odd but valid forms give what plain ones give."""

import csv
import gzip
import io
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from bitllm.data.formats.custom import read_custom
from bitllm.errors import BitLlmError

MISSING = ["NA", "nan", "null", "None", "<NA>", "-NaN", "NULL", "NaN", "1.#IND", "-nan", "na", "none"]


def text(change: Callable[[str], str], name: str = "trials.tsv", encoding: str = "utf-8") -> Callable:
    """Rewrite a text file."""

    def write(plain) -> None:
        path = plain.root / name
        path.write_bytes(change(path.read_text(encoding="utf-8")).encode(encoding))

    return write


def table(change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "trials.tsv", **how) -> Callable:
    """Write the trials table again with pandas."""

    def write(plain) -> None:
        made = change(plain.trials)
        if name.endswith("parquet"):
            made.to_parquet(plain.root / name, **how)
        else:
            made.to_csv(plain.root / name, **{"sep": "\t", "index": False} | how)
        plain.change(trials=name)

    return write


def packed(name: str, parts: int = 1) -> Callable:
    def write(plain) -> None:
        content = (plain.root / "trials.tsv").read_bytes()
        step = len(content) // parts + 1
        pieces = [content[n : n + step] for n in range(0, len(content), step)]
        (plain.root / name).write_bytes(b"".join(map(gzip.compress, pieces)))
        (plain.root / "trials.tsv").unlink()
        plain.change(trials=name)

    return write


def named(*names: str) -> Callable:
    return lambda plain: plain.rename(*names)


def slashes(plain) -> None:
    """No file can have such a name, so there are no pictures."""
    shutil.rmtree(plain.folder)
    plain.change(pictures=None)
    plain.rename("N/A", "n/a", "#N/A", "indoor/kitchen", "../up", "C:\\a", "http://a.b/c?d=e")


def quoted(plain) -> None:
    """Every cell in quotes, with a quote, a tab and a line break in names."""
    plain.rename('say "hi"', "tab\there", "two\nlines", "comma, semicolon;")
    made = io.StringIO()
    csv.writer(made, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(
        [plain.trials.columns.tolist(), *plain.trials.to_numpy().tolist()]
    )
    (plain.root / "trials.tsv").write_text(made.getvalue(), newline="")


def numbers_of_parquet(table: pd.DataFrame) -> pd.DataFrame:
    types = {
        "trial_row": "float64",
        "session": "uint8",
        "run": "Int16",
        "stimulus_id": "Int64",
        "split": "category",
    }
    return table.astype({"stimulus_id": "int64"} | {"trial_row": "int64"}).astype(types)


def parquet_of_numbers(plain) -> None:
    plain.rename(*[str(40 + 3 * n) for n in range(12)])
    table(numbers_of_parquet, "trials.parquet")(plain)


def parquet_by_another_name(plain) -> None:
    table(lambda made: made, "trials.parquet")(plain)
    (plain.root / "trials.parquet").rename(plain.root / "trials.tsv")
    plain.change(trials="trials.tsv")


def as_bytes(made: pd.DataFrame) -> pd.DataFrame:
    return made.map(lambda cell: cell.encode())


def decomposed(plain) -> None:
    """As macOS writes: accents apart from letters in two of three files."""
    plain.rename("café", "über 2", "señor", "Ångström")
    for name in ("trials.tsv", "captions.json"):
        path = plain.root / name
        content = plain.captions if name.endswith("json") else None
        written = json.dumps(content, ensure_ascii=False) if content else path.read_text()
        path.write_text(unicodedata.normalize("NFD", written) if name == "trials.tsv" else written)
    for path in sorted(plain.folder.iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))


def other_subjects(plain) -> None:
    """Header and table name the subjects in two ways."""
    header = yaml.safe_load(plain.header.read_text())
    content = plain.header.read_text().replace("  s1:", "  01:").replace("  s2:", "  sub-2:")
    plain.header.write_text(content)
    assert header["subjects"].keys() == {"s1", "s2"}
    plain.named = {"s1": "01", "s2": "sub-2"}
    made = plain.trials.assign(subject=plain.trials["subject"].map({"s1": "sub-01", "s2": "2"}))
    made.to_csv(plain.root / "trials.tsv", sep="\t", index=False)


def header_text(change: Callable[[str], str], encoding: str = "utf-8") -> Callable:
    return text(change, "header.yaml", encoding)


def header_in_json(plain) -> None:
    content = yaml.safe_load(plain.header.read_text())
    plain.header.write_text("")
    plain.header.with_name("header.JSON").write_text(json.dumps(content, indent="\t"), encoding="utf-8-sig")


def header_with_anchors(plain) -> None:
    keys = "trials: trials.tsv\ncaptions: captions.json\npictures: pictures\nalready_zscored: no\n"
    first = "%YAML 1.1\n--- # a comment\nsubjects:\n  's1': &one {betas: [s1.nii.gz], mask: s1-mask.nii.gz}\n"
    second = '  "s2":\n    <<: *one\n    betas: !!str s2.nii.gz\n    mask: >-\n      s2-mask.nii.gz\n    voxels: ~\n'
    plain.header.write_text(first + second + keys + "normalization: 'none'\nscale: 1\naxis_order:\n...\n")


def captions(change: Callable, name: str = "captions.json", encoding: str = "utf-8", **how) -> Callable:
    def write(plain) -> None:
        content = json.dumps(change(plain.captions), **how)
        (plain.root / name).write_text(content, encoding=encoding)
        plain.change(captions=name)

    return write


def coco_annotations(plain) -> None:
    """Numeric ids, annotations in no order, and images that nobody saw."""
    plain.rename(*[str(391895 + 7 * n) for n in range(12)])
    rows = [(int(name), text) for name, texts in plain.captions.items() for text in texts]
    rows = [*[row for row in rows if row[0] % 2], *[row for row in rows if not row[0] % 2], (9, "another")]
    annotations = [{"image_id": n, "id": row, "caption": text} for row, (n, text) in enumerate(rows)]
    images = [{"id": int(name), "file_name": f"{int(name):012d}.jpg"} for name in plain.names]
    content = {"info": {"year": 2014}, "licenses": [], "images": images[::-1], "annotations": annotations}
    (plain.root / "captions.json").write_text(json.dumps(content))


def coco_by_file_names(plain) -> None:
    """Named images, with COCO's ids in another order than their names."""
    images = [{"id": 900 - 7 * n, "file_name": f"val2017/{name}.jpg"} for n, name in enumerate(plain.names)]
    rows = [
        {"image_id": 900 - 7 * n, "caption": text}
        for n, texts in enumerate(plain.captions.values())
        for text in texts
    ]
    (plain.root / "captions.json").write_text(json.dumps({"images": images, "annotations": rows}))


def captions_in_lines(plain) -> None:
    """First captions of all images, then the second ones."""
    rows = [
        {"image_id": name, "caption": texts[n]}
        for n in range(3)
        for name, texts in plain.captions.items()
        if n < len(texts)
    ]
    text = "".join(json.dumps(row) + "\r\n" for row in rows)
    (plain.root / "captions.jsonl").write_text(text, newline="")
    plain.change(captions="captions.jsonl")


def coco_pictures(plain) -> None:
    plain.rename(*[str(5 + n) for n in range(12)])
    for path in sorted(plain.folder.iterdir()):
        path.rename(path.with_name(f"{int(path.stem):012d}.png"))


def pictures(
    ending: str,
    change: Callable[[Image.Image], Image.Image] = lambda one: one,
    kind: str | None = None,
    **how,
) -> Callable:
    """Save the pictures in another way that loses nothing."""

    def write(plain) -> None:
        for path in sorted(plain.folder.iterdir()):
            with Image.open(path) as opened:
                made = change(opened.convert("RGB"))
            path.unlink()
            made.save(path.with_name(path.stem + ending), kind, **how)

    return write


def turned(plain) -> None:
    """Stored on its side, with the tag that says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures(".png", lambda one: one.transpose(Image.Transpose.ROTATE_90), exif=exif)(plain)


def grey(plain) -> None:
    plain.pictures[:] = plain.pictures[..., :1]
    plain.write_names()
    pictures(".png", lambda one: one.convert("L"))(plain)


def grey_of_16_bits(plain) -> None:
    plain.pictures[:] = plain.pictures[..., :1]
    for name, picture in zip(plain.names, plain.pictures, strict=True):
        Image.fromarray(picture[..., 0].astype(np.uint16) * 257).save(plain.folder / f"{name}.png")


def black_and_white(plain) -> None:
    plain.pictures[:] = np.where(plain.pictures[..., :1] > 127, 255, 0)
    plain.write_names()
    pictures(".tiff", lambda one: one.convert("1"))(plain)


def links_to_pictures(plain) -> None:
    shutil.move(plain.folder, plain.root / "elsewhere")
    plain.folder.mkdir()
    for path in (plain.root / "elsewhere").iterdir():
        path.rename(path.with_suffix(""))
        (plain.folder / path.name).symlink_to(path.with_suffix(""))


def other_files_among_pictures(plain) -> None:
    folder = plain.folder
    for name in (".DS_Store", "._dog 0.png", "Thumbs.db", "README.txt", "dog 0.json"):
        (folder / name).write_bytes(b"x")
    Image.fromarray(plain.pictures[0]).save(folder / "unseen.png")


TABLES: dict[str, Callable] = {
    "line ends of Windows": text(lambda t: t.replace("\n", "\r\n")),
    "CR alone": text(lambda t: t.replace("\n", "\r")),
    "empty last lines": text(lambda t: t + "\n\n\t\t\t\t\t\n"),
    "no last line end": text(lambda t: t.rstrip("\n")),
    "empty lines in between": text(lambda t: t.replace("\n", "\n\n")),
    "a byte order mark": text(lambda t: t, encoding="utf-8-sig"),
    "commas in .tsv": text(lambda t: t.replace("\t", ",")),
    "semicolons in .csv": table(lambda t: t, "trials.csv", sep=";"),
    "a tab at the end of every row": text(lambda t: t.replace("\n", "\t\n").replace("split\t\n", "split\n")),
    "spaces around cells": text(lambda t: t.replace("\t", "  \t ")),
    "quoted cells": quoted,
    "columns in another order": table(lambda t: t[t.columns[::-1]]),
    "rows in another order": table(lambda t: t.sample(frac=1, random_state=3)),
    "an index of pandas": table(lambda t: t, index=True),
    "names of rows as R writes them": text(
        lambda t: "\n".join(
            [t.splitlines()[0], *[f'"{n}"\t{row}' for n, row in enumerate(t.splitlines()[1:], 1)]]
        )
    ),
    "gzip": packed("trials.tsv.gz"),
    "gzip of several members, .TSV.GZ": packed("Trials.TSV.GZ", 4),
    "gzip without its ending": packed("trials.tab"),
    "whole numbers as floats": table(
        lambda t: t.assign(trial_row=t["trial_row"] + ".0", run=t["run"] + ".00")
    ),
    "whole numbers with signs and zeros": table(
        lambda t: t.assign(trial_row="+" + t["trial_row"].str.zfill(4), run="run-0" + t["run"])
    ),
    "sessions of BIDS": table(lambda t: t.assign(session="ses-0" + t["session"])),
    "columns of BIDS": table(
        lambda t: t.assign(onset="n/a", duration="1.0", trial_type="Bild", response_time="")
    ),
    "parts named validation": table(lambda t: t.assign(split=t["split"].replace("val", "validation"))),
    "Parquet": table(lambda t: t, "trials.parquet"),
    "Parquet with the rows as index": table(lambda t: t.set_index("trial_row"), "trials.parquet"),
    "Parquet with an index of two columns": table(
        lambda t: t.set_index(["subject", "trial_row"]).sample(frac=1, random_state=1), "trials.parquet"
    ),
    "Parquet with a filtered index": table(lambda t: t[t["run"] != "9"].iloc[::-1], "trials.parquet"),
    "Parquet of numbers and categories": parquet_of_numbers,
    "Parquet with text as bytes": table(as_bytes, "trials.parquet"),
    "Parquet with pandas's text": table(lambda t: t.astype("string"), "trials.parquet", compression="gzip"),
    "Parquet of categories": table(lambda t: t.astype("category"), "trials.parquet", compression="zstd"),
    "Parquet named .tsv": parquet_by_another_name,
}
NAMES: dict[str, Callable] = {
    "names that pandas takes for missing": named(*MISSING),
    "names with slashes": slashes,
    "names of digits with zeros": named("000", "001", "0002", "10", "100"),
    "names with decimals": named("1.1", "1.10", "2.0", "02.0", "1518879.010420"),
    "names that look like other numbers": named("1e5", "0x10", "-3", "+3", "inf", "1_000", "1,5", "9" * 30),
    "names that look like flags and dates": named("True", "false", "yes", "2023-01-01", "12:30", "1∕2"),
    "names that start like formulas and comments": named("#1", "=A1", "@home", "-", "'quoted'", "%d"),
    "names in other scripts": named("Straße", "日本", "кот", "😀", "İstanbul", "été"),
    "names with dots": named("a.b", "a.b.c", "a.png", "v1.0.tar", "x..y"),
    "names that differ in case": named("Dog", "dog", "DOG"),
    "accents composed and decomposed": decomposed,
    "plain numbers": named(*[str(70000 - 11 * n) for n in range(12)]),
    "large numbers": named(*[str(2**53 + 2 * n + 1) for n in range(12)]),
    "subjects 01 and sub-2": other_subjects,
}
OTHERS: dict[str, Callable] = {
    "header with line ends of Windows and a mark": header_text(
        lambda t: t.replace("\n", "\r\n"), "utf-8-sig"
    ),
    "header with anchors, comments and quotes": header_with_anchors,
    "header in flow style": header_text(lambda t: yaml.safe_dump(yaml.safe_load(t), default_flow_style=True)),
    "header with paths that go around": header_text(
        lambda t: t.replace(": captions.json", ": ./pictures/../captions.json").replace(
            " pictures\n", " pictures/\n"
        )
    ),
    "header with numbers in exponents": header_text(lambda t: t + "scale: 1.0e+0\nsource_version: 1.10\n"),
    "captions with a byte order mark": captions(lambda c: c, encoding="utf-8-sig"),
    "captions with escaped characters": captions(
        lambda c: c | {"naïve\u2028": ["é\u00a0"]}, ensure_ascii=True
    ),
    "captions in another order with other images": captions(
        lambda c: {"other": ["x"]} | dict(reversed(c.items())), indent="\t"
    ),
    "captions with spaces and line breaks": captions(
        lambda c: {
            name: [f"  {t}\n".replace(" of", "\u00a0 \r\n of") for t in found] for name, found in c.items()
        }
    ),
    "COCO's annotations with numeric ids": coco_annotations,
    "COCO's annotations joined by file names": coco_by_file_names,
    "captions in JSON lines": captions_in_lines,
    "captions with entities of HTML": captions(
        lambda c: {
            name: [t.replace("caption", "&#99;apt&#x69;on") for t in found] for name, found in c.items()
        }
    ),
    "COCO's names of pictures": coco_pictures,
    ".PNG": pictures(".PNG"),
    ".TIF": pictures(".TIF", compression="tiff_lzw"),
    ".bmp": pictures(".bmp"),
    ".webp": pictures(".webp", lossless=True),
    "pictures of a palette": pictures(".gif", lambda one: one.quantize(256, dither=Image.Dither.NONE)),
    "opaque alpha": pictures(".png", lambda one: one.convert("RGBA")),
    "grey pictures": grey,
    "grey pictures of 16 bits": grey_of_16_bits,
    "black and white": black_and_white,
    "pictures of several pages": pictures(".tif", save_all=True, append_images=[Image.new("RGB", (5, 6))]),
    "pictures on their side": turned,
    "links to pictures": links_to_pictures,
    "JPEG's ending on a PNG": pictures(".jpg", kind="png"),
    "other files among the pictures": other_files_among_pictures,
}


@pytest.mark.parametrize("odd", [*TABLES, *NAMES, *OTHERS])
def test_odd_tables_names_and_texts_are_read_right(plain, odd):
    (TABLES | NAMES | OTHERS)[odd](plain)
    plain.require_read()


def test_a_header_in_json_is_read_right(plain):
    header_in_json(plain)
    plain.require_read(plain.root / "header.JSON")


def test_a_header_in_the_working_folder_is_read_right(plain, monkeypatch):
    monkeypatch.chdir(plain.root)
    plain.require_read(Path("header.yaml"))


@pytest.mark.parametrize("name", ["trials.tsv", "captions.json", "header.yaml"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused_with_one_line(plain, name, encoding):
    text(lambda content: content, name, encoding)(plain)
    with pytest.raises(BitLlmError, match=rf"{name}: .*UTF-16") as error:
        read_custom(plain.header)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf_8_are_refused(plain):
    table(lambda made: made.map(lambda cell: (cell + "é").encode("latin-1")), "trials.parquet")(plain)
    with pytest.raises(BitLlmError, match=r"trials.parquet: .*UTF-8"):
        read_custom(plain.header)
