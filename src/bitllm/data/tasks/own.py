"""Reader of anyone's own questions: a CSV of images, questions and answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from bitllm.data.io.tables import read_table
from bitllm.data.tasks.exchange import Exchange
from bitllm.data.tasks.reading import Origin, StoreImages, answer_type_of, stem_of
from bitllm.errors import DataError

BETWEEN = "|"
"""Between the accepted answers, and between the options, of one cell."""
_NEEDED = ("image", "question", "answers")
_OPTIONAL = ("options", "task", "answer_type", "question_type", "conversation", "turn")


def read_own(files: Sequence[Path], images: StoreImages, origin: Origin) -> Iterator[Exchange]:
    """Tables with the columns ``image``, ``question``, ``answers``, in CSV, TSV or Parquet.

    ``image`` is the name of a stimulus, or the ``nsd_id`` in a store without names. ``answers`` and ``options`` have |
    between their parts. Rows of an image with the same ``conversation`` are its turns, in the order of ``turn``
    (1, 2, …). ``task`` is the file's name by default; ``answer_type`` is found from the first answer.
    """
    for path in files:
        # every column is read as text, so that an error can name the row
        table = read_table(path, needed=_NEEDED, optional=_OPTIONAL, numbers={}, what="the questions")
        table = table.reindex(columns=[*_NEEDED, *_OPTIONAL], fill_value="")
        table["row"] = range(1, len(table) + 1)
        is_alone = (table["conversation"] == "").to_numpy()
        key = table["conversation"].where(~is_alone, table["row"].map(lambda row: f"row {row}"))
        for _, turns in table.groupby(["image", key], sort=False):
            yield _exchange(path, turns, images, origin)


def _exchange(path: Path, turns: pd.DataFrame, images: StoreImages, origin: Origin) -> Exchange:
    rows, first = turns.to_dict("records"), turns.iloc[0]
    where = f"{path}, row {first['row']}"
    if first["conversation"]:
        written = [str(row["turn"]) for row in rows]
        if written != [str(number) for number in range(1, len(rows) + 1)]:
            raise DataError(
                f"{where}: expected the turns 1 to {len(rows)} of the conversation `{first['conversation']}` in order, "
                f"found {', '.join(written[:6])}; sort or correct the column `turn`"
            )
    for column in ("task", "answer_type", "question_type"):
        if turns[column].nunique() > 1:
            found = ", ".join(sorted(turns[column].unique()))
            raise DataError(
                f"{where}: expected one `{column}` in a conversation, found {found}; make it the same in every row"
            )
    answers, options = (tuple(_parts(row[name]) for row in rows) for name in ("answers", "options"))
    task = first["task"] or stem_of(path)
    return Exchange(
        id=f"{task}:{stem_of(path)}:{first['row']}",
        nsd_id=_image(where, first["image"], images),
        task=task,
        questions=tuple(row["question"] for row in rows),
        answers=answers,
        options=options,
        answer_type=first["answer_type"] or _type_of(answers, options),
        source=stem_of(path),  # so that several tables may be added
        license=origin.license,
        question_type=first["question_type"],
    )  # fmt: skip


def _parts(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(BETWEEN)) if cell else ()


def _type_of(answers: tuple[tuple[str, ...], ...], options: tuple[tuple[str, ...], ...]) -> str:
    kinds = {answer_type_of(accepted[0] if accepted else "") for accepted in answers}
    if kinds == {"yes/no"} or not all(options):
        return kinds.pop() if len(kinds) == 1 else "text"
    return "choice"


def _image(where: str, image: str, images: StoreImages) -> int:
    if images.by_name:
        nsd_id = images.by_name.get(image)
    else:
        nsd_id = int(image) if image.isdecimal() and int(image) in images.part else None
    if nsd_id is None:
        what = "the name of a stimulus" if images.by_name else "the nsd_id of an image"
        raise DataError(
            f"{where}: expected {what} of {images.where}, found `{image}`; correct it, or remove that row"
        )
    return nsd_id
