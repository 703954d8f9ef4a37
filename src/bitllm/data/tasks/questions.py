"""Readers of published sets of single questions about COCO's images.

References
----------
VQAv2 (Goyal et al. 2017), OK-VQA (Marino et al. 2019), TDIUC (Kafle & Kanan 2017): VQA's layout of two files. A-OKVQA
(Schwenk et al. 2022). COCO-QA (Ren et al. 2015). Visual Genome (Krishna et al. 2017). NSD-VQA (arXiv 2605.29588).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitllm.data.io.entries import Entries, is_whole
from bitllm.data.io.tables import read_table
from bitllm.data.tasks.exchange import Exchange
from bitllm.data.tasks.reading import Origin, StoreImages, most_common_first
from bitllm.errors import DataError
from bitllm.files import read_json, read_text

_AGAIN = "download it again"


def read_vqa(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """VQA's layout: files of questions and files of annotations, in any order."""
    asked: dict[int, tuple[Path, int, str]] = {}
    annotated: dict[int, dict[str, Any]] = {}
    for path in files:
        content = read_json(path, "questions or annotations in VQA's layout")
        if isinstance(content, dict) and "questions" in content:
            asked |= _vqa_questions(path, content, asked)
        else:
            annotated |= _vqa_annotations(path, content, images)
    for question_id, (path, image_id, question) in asked.items():
        for nsd_id, suffix in images.of_coco_id(image_id):
            annotation = annotated.get(question_id)
            if annotation is None or annotation["image_id"] != image_id:
                found = "none" if annotation is None else f"one of the image {annotation['image_id']}"
                raise DataError(
                    f"{path}: expected an annotation of the image {image_id} for every question, found {found} for "
                    f"question {question_id}; name the files of annotations of the same split"
                )
            yield origin.single(
                f"{question_id}{suffix}",
                nsd_id,
                question,
                most_common_first(annotation["answers"], annotation.get("multiple_choice_answer")),
                answer_type=_ANSWER_TYPES.get(annotation.get("answer_type", "")),
                question_type=str(annotation.get("question_type", "")),
            )


_ANSWER_TYPES = {"yes/no": "yes/no", "number": "number"}
"""VQA's ``other`` is a phrase or a text."""


def _vqa_questions(
    path: Path, content: Any, before: dict[int, tuple[Path, int, str]]
) -> dict[int, tuple[Path, int, str]]:
    rows = Entries.of(path, content, "questions", what="VQA's questions", advice=_AGAIN)
    ids = rows.unique("question_id", rows.numbers("question_id"))
    twice = before.keys() & set(ids)
    if twice:
        raise DataError(
            f"{path}: expected questions that no other file has, found question {min(twice)} again; name each file once"
        )
    values = zip(rows.numbers("image_id"), rows.texts("question"), strict=True)
    return {
        ident: (path, image_id, question) for ident, (image_id, question) in zip(ids, values, strict=True)
    }


def _vqa_annotations(path: Path, content: Any, images: StoreImages) -> dict[int, dict[str, Any]]:
    rows = Entries.of(path, content, "annotations", what="VQA's questions or annotations", advice=_AGAIN)
    ids = rows.unique("question_id", rows.numbers("question_id"))
    of_store = [image_id in images.by_coco_id for image_id in rows.numbers("image_id")]
    annotated = {}
    for ident, row, is_of_store in zip(ids, rows.rows, of_store, strict=True):
        if is_of_store:
            answers = Entries.of(
                path, row, "answers", what=f"an annotation of question {ident}", advice=_AGAIN
            )
            texts = answers.values("answer", lambda value: isinstance(value, str), "a text")
            annotated[ident] = row | {"answers": texts}
    return annotated


def read_aokvqa(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """A-OKVQA: each question with its four options, and as an open question where ten people answered it directly.

    The open form is the task ``a-okvqa-direct``; A-OKVQA leaves out questions that are difficult to answer directly.
    """
    for path in files:
        content = read_json(path, "A-OKVQA's questions")
        rows = Entries.of(path, content, None, what="A-OKVQA's questions", advice=_AGAIN)
        rows.unique("question_id", rows.texts("question_id"))
        rows.texts("question")
        _require_answers(rows)
        for row, image_id in zip(rows.rows, rows.numbers("image_id"), strict=True):
            for nsd_id, suffix in images.of_coco_id(image_id):
                yield from _aokvqa_forms(row, f"{row['question_id']}{suffix}", nsd_id, origin)


def _aokvqa_forms(row: dict[str, Any], ident: str, nsd_id: int, origin: Origin) -> Iterator[Exchange]:
    options, direct = row["choices"], row["direct_answers"]
    right = [options[row["correct_choice_idx"]]]
    yield origin.single(ident, nsd_id, row["question"], right, options=options)
    if direct and not row.get("difficult_direct_answer"):
        task = f"{origin.source}-direct"
        yield origin.single(ident, nsd_id, row["question"], most_common_first(direct), task=task)


def _require_answers(rows: Entries) -> None:
    choices = rows.values("choices", _is_list_of_texts, "a list of options")
    answered = Entries(rows.path, rows.rows, "", "use the train or val file, the test file has no answers")
    answered.values("direct_answers", _is_list_of_texts, "a list of answers")
    right = answered.values("correct_choice_idx", is_whole, "the number of the right option")
    for number, options, row in zip(right, choices, rows.rows, strict=True):
        if not 0 <= number < len(options):
            raise DataError(
                f"{rows.path}: expected `correct_choice_idx` from 0 to {len(options) - 1}, found {number} in "
                f"{row['question_id']}; {_AGAIN}"
            )


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


COCO_QA_TYPES = ("object", "number", "color", "location")
_COCO_QA_FILES = ("questions.txt", "answers.txt", "img_ids.txt", "types.txt")


def read_cocoqa(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """COCO-QA: folders with ``questions.txt``, ``answers.txt``, ``img_ids.txt`` and ``types.txt``, line by line."""
    for folder in files:
        columns: dict[str, list[str]] = {}
        for name in _COCO_QA_FILES:
            lines = read_text(folder / name, "a file of COCO-QA").splitlines()
            first = columns.setdefault(_COCO_QA_FILES[0], lines)
            if len(lines) != len(first):
                raise DataError(
                    f"{folder / name}: expected {len(first)} lines as in {_COCO_QA_FILES[0]}, found {len(lines)}; "
                    f"{_AGAIN}"
                )
            columns[name] = lines
        for number, (question, answer, image_id, kind) in enumerate(zip(*columns.values(), strict=True)):
            where = f"{folder}, line {number + 1}"
            coco_id, type_number = _number(where, image_id), _number(where, kind)
            if type_number >= len(COCO_QA_TYPES):
                raise DataError(
                    f"{where}: expected a type from 0 to 3 in types.txt, found {type_number}; {_AGAIN}"
                )
            name = COCO_QA_TYPES[type_number]
            for nsd_id, suffix in images.of_coco_id(coco_id):
                yield origin.single(
                    f"{folder.name}:{number}{suffix}", nsd_id, question, [answer.strip()],
                    answer_type="number" if name == "number" else None, question_type=name,
                )  # fmt: skip


def _number(where: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise DataError(f"{where}: expected a whole number, found `{text[:40]}`; {_AGAIN}")
    return int(text)


def read_visual_genome(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """Visual Genome: ``question_answers.json`` and ``image_data.json`` (which has the COCO ids), in any order."""
    contents = {path: read_json(path, "Visual Genome's questions or image data") for path in files}
    coco_ids: dict[int, int] = {}
    asked: list[tuple[Path, Entries]] = []
    for path, content in contents.items():
        rows = Entries.of(path, content, None, what="Visual Genome's questions or image data", advice=_AGAIN)
        if rows.rows and "qas" in rows.rows[0]:
            asked.append((path, rows))
            continue
        known = rows.values("coco_id", lambda value: value is None or is_whole(value), "a COCO id or null")
        ids = rows.numbers("image_id")
        coco_ids |= {ident: coco for ident, coco in zip(ids, known, strict=True) if coco is not None}
    if not coco_ids or not asked:
        lacking = "image_data.json" if asked else "question_answers.json"
        raise DataError(
            f"{', '.join(map(str, files))}: expected question_answers.json and image_data.json, found no {lacking}; "
            "name both"
        )
    for path, row in ((path, row) for path, rows in asked for row in rows.rows):
        for ident, coco_id, question, answer in _genome_questions(path, row, coco_ids):
            for nsd_id, suffix in images.of_coco_id(coco_id):
                yield origin.single(f"{ident}{suffix}", nsd_id, question, [answer])


def _genome_questions(
    path: Path, row: dict[str, Any], coco_ids: dict[int, int]
) -> Iterator[tuple[int, int, str, str]]:
    """Id, COCO image, question and answer of the questions about one image."""
    of_image = Entries.of(path, row, "qas", what=f"the questions about image {row.get('id')}", advice=_AGAIN)
    coco = [coco_ids.get(image_id, -1) for image_id in of_image.numbers("image_id")]
    yield from zip(
        of_image.numbers("qa_id"), coco, of_image.texts("question"), of_image.texts("answer"), strict=True
    )


def read_nsd_vqa(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """NSD-VQA: a Parquet file with questions about NSD's images, whose answers are generated alternatives."""
    numbers = {"nsd_image_id": "int64", "coco_image_id": "int64", "question_id": "int64"}
    for path in files:
        table = read_table(
            path,
            needed=(*numbers, "question", "answers", "category"),
            numbers=numbers,
            lists=("answers",),
            what="NSD-VQA's questions",
            advice=_AGAIN,
        )
        columns = (*numbers, "question", "answers", "category")
        for nsd_id, coco_id, ident, question, answers, kind in zip(
            *(table[name].tolist() for name in columns), strict=True
        ):
            if nsd_id not in images.part:
                continue
            known = images.by_coco_id.get(coco_id, ())
            if images.by_coco_id and nsd_id not in known:
                raise DataError(
                    f"{path}: expected the COCO image of nsd_id {nsd_id} as in {images.where}, found {coco_id} in "
                    f"question {ident}; check that `nsd_image_id` is 0-based"
                )
            yield origin.single(f"{nsd_id}:{ident}", nsd_id, question, answers, question_type=kind)
