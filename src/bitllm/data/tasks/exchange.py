"""One exchange about an image, its questions, its table, and the exchanges of a store."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from bitllm.config import nearest
from bitllm.data.prompt import Prompt, plain_caption, plain_question
from bitllm.data.store import Store
from bitllm.data.store.contents import TASK_SCHEMA
from bitllm.errors import DataError

ANSWER_TYPES = ("yes/no", "number", "choice", "phrase", "text")
"""Forms of an answer; ``text`` is one or more sentences."""
YES_NO = ("yes", "no")
DERIVED = "derived"
"""Source of the questions that are derived from the objects of the images."""


@dataclass(frozen=True)
class Exchange:
    """A question about an image with its accepted answers, or several in turn.

    Parameters
    ----------
    id
        Unique within a store.
    nsd_id
        The image.
    task
        Name of the task, such as ``presence`` or ``vqa-v2``; a recipe gives each task a weight.
    questions
        The user's turns, as written in the source.
    answers
        The accepted answers of each turn. The first is the one to train on; VQAv2 has ten, with repetitions.
    options
        The options of each turn; empty for open questions. The first answer is among them.
    answer_type
        One of `ANSWER_TYPES`.
    source
        Where it comes from: ``derived``, a published set, or a file.
    license
        License of the source; ``unknown`` if it states none.
    question_type
        The source's own type of the question, such as ``what color is the``; ``""`` if it has none.
    subject, row
        The trial that it is about (row of the subject's betas), if it is about one trial and not about the image.
    relevance
        For each turn, the share of annotators who found each option correct; empty for turns that nobody rated.
    """

    id: str
    nsd_id: int
    task: str
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    options: tuple[tuple[str, ...], ...]
    answer_type: str
    source: str
    license: str
    question_type: str = ""
    subject: str | None = None
    row: int | None = None
    relevance: tuple[tuple[float, ...], ...] = ()

    @property
    def trial(self) -> tuple[str, int] | None:
        """Subject and row of the trial that it is about; None if it is about the image."""
        return None if self.subject is None or self.row is None else (self.subject, self.row)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The user's turns in the form that the LLM is trained on; options that a question does not name follow it."""
        return tuple(
            _prompt(question, options if self.answer_type == "choice" else ())
            for question, options in zip(self.questions, self.options, strict=True)
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """The answer of each turn to train on, in the form that the LLM is trained on."""
        return tuple(plain_caption(accepted[0]) for accepted in self.answers)


def _prompt(question: str, options: Sequence[str]) -> str:
    asked = plain_question(question)
    named = [plain_question(option) for option in options]
    if all(f" {option} " in f" {asked} " for option in named):
        return asked
    return f"{asked} {' , '.join(named[:-1])} or {named[-1]} ?"


@dataclass(frozen=True)
class Question:
    """One turn of an exchange."""

    exchange: Exchange
    turn: int

    @property
    def prompt(self) -> Prompt:
        """The question after the earlier questions with their true answers."""
        return self.after(self.exchange.targets[: self.turn])

    def after(self, answers: Sequence[str]) -> Prompt:
        """The question after the earlier questions with given answers."""
        earlier = zip(self.exchange.prompts[: self.turn], answers, strict=True)
        return Prompt(self.exchange.prompts[self.turn], tuple(earlier))

    @property
    def accepted(self) -> tuple[str, ...]:
        """Accepted answers; the first is the one that log2 p is computed of."""
        return self.exchange.answers[self.turn]

    @property
    def target(self) -> str:
        """The first accepted answer in the form that the LLM is trained on."""
        return self.exchange.targets[self.turn]

    @cached_property
    def options(self) -> tuple[str, ...]:
        """Options in the form that the LLM is trained on: those of the source, or yes and no."""
        given = tuple(plain_caption(option) for option in self.exchange.options[self.turn])
        return given or (YES_NO if self.exchange.answer_type == "yes/no" else ())

    @property
    def relevance(self) -> tuple[float, ...]:
        """Share of annotators who found each option correct; empty if nobody rated them."""
        rated = self.exchange.relevance
        return rated[self.turn] if rated else ()

    @property
    def kind(self) -> str:
        """The source's type of the question, else its first two words."""
        return self.exchange.question_type or " ".join(self.exchange.prompts[self.turn].split()[:2])


def turns_of(exchanges: Iterable[Exchange]) -> list[tuple[str, str]]:
    """Questions and answers of exchanges, one after the other, in the form that the LLM is trained on."""
    return [turn for one in exchanges for turn in zip(one.prompts, one.targets, strict=True)]


def questions_of(exchanges: Iterable[Exchange]) -> list[Question]:
    """All turns of exchanges, in order."""
    return [Question(one, turn) for one in exchanges for turn in range(len(one.questions))]


def exchanges(
    store: Store,
    *,
    tasks: Iterable[str] | None = None,
    part: str | None = None,
    nsd_ids: Iterable[int] | None = None,
    of_trials: bool | None = False,
) -> tuple[Exchange, ...]:
    """The exchanges of a store about its images (or its trials), in the order of its table.

    Parameters
    ----------
    store
        An open store.
    tasks
        Names of tasks; by default all.
    part
        ``train``, ``validation`` or ``test``: the part of the images; by default all.
    nsd_ids
        The images; by default all.
    of_trials
        Whether to select the exchanges about single trials instead of those about images; None for both.

    Raises
    ------
    DataError
        If the store has no tasks, or not one of the given ones.
    """
    # stores of earlier versions lack the last columns
    table = store.tasks.reindex(columns=[name for name in TASK_SCHEMA.names if name != "nsd_id"])
    if tasks is not None:
        wanted, there = sorted(set(tasks)), sorted(table["task"].unique())
        missing = [task for task in wanted if task not in there]
        if missing:
            raise DataError(
                f"{store.path}: expected questions of the task `{missing[0]}`, found none; "
                f"{nearest(missing[0], there)}"
            )
        table = table[table["task"].isin(wanted)]
    if part is not None:
        table = table[(store.stimuli["part"].reindex(table.index) == part).to_numpy()]
    if nsd_ids is not None:
        table = table[table.index.isin(list(nsd_ids))]
    if of_trials is not None:
        table = table[table["subject"].notna().to_numpy() == of_trials]
    return tuple(_rows(table.reset_index()))


def _rows(table: pd.DataFrame) -> Iterator[Exchange]:
    for values in zip(*(table[name].tolist() for name in TASK_SCHEMA.names), strict=True):
        row = dict(zip(TASK_SCHEMA.names, values, strict=True))
        row["relevance"] = row["relevance"] if isinstance(row["relevance"], Iterable) else ()
        nested = {
            name: tuple(tuple(turn) for turn in row[name]) for name in ("answers", "options", "relevance")
        }
        trial = {"subject": row["subject"], "row": int(row["row"])} if isinstance(row["subject"], str) else {}
        yield Exchange(
            **row | {"subject": None, "row": None} | trial | nested | {"questions": tuple(row["questions"])}
        )


def tasks_table(found: Sequence[Exchange]) -> pd.DataFrame:
    """The exchanges as a table with the columns of ``TASK_SCHEMA``, sorted by image."""
    columns = {name: [getattr(one, name) for one in found] for name in TASK_SCHEMA.names}
    return pd.DataFrame(columns).sort_values("nsd_id", kind="stable", ignore_index=True)


def checked(found: Iterable[Exchange], where: object) -> list[Exchange]:
    """The exchanges, if they are valid; errors name ``where``.

    Raises
    ------
    DataError
        If an id occurs twice, a question or answer is empty, turns and answers differ in number, options lack the
        answer, or there are no exchanges.
    """
    ids: set[str] = set()
    valid = []
    for exchange in found:
        problem = _problem(exchange) or (
            f"every id once, found {exchange.id} twice; remove one" if exchange.id in ids else ""
        )
        if problem:
            raise DataError(f"{where}: expected {problem}")
        ids.add(exchange.id)
        valid.append(exchange)
    if not valid:
        raise DataError(
            f"{where}: expected questions about images of the store, found none; check that the ids are COCO's"
        )
    return valid


def _problem(exchange: Exchange) -> str:
    """What is wrong with an exchange, as the end of an error message; ``""`` if nothing is."""
    about, n = f"of {exchange.id}", len(exchange.questions)
    if exchange.answer_type not in ANSWER_TYPES:
        return (
            f"an answer type {about} ({', '.join(ANSWER_TYPES)}), found `{exchange.answer_type}`; correct it"
        )
    if not n or len(exchange.answers) != n or len(exchange.options) != n:
        return (
            f"an answer and options to every question {about}, found {n} questions, {len(exchange.answers)} answers "
            f"and {len(exchange.options)} options; correct that row"
        )
    turns = zip(exchange.questions, exchange.answers, exchange.options, strict=True)
    return next(filter(None, (_problem_of_turn(about, *turn) for turn in turns)), "")


def _problem_of_turn(about: str, question: str, accepted: tuple[str, ...], options: tuple[str, ...]) -> str:
    if not question.strip():
        return f"a question {about}, found an empty one; fill it in or remove that row"
    if not accepted or not accepted[0].strip():
        return f"an answer to `{question[:60]}` {about}, found none; fill it in or remove that row"
    if options and accepted[0] not in options:
        return f"the answer `{accepted[0][:60]}` {about} among its options, found {list(options)[:4]}; correct them"
    if options and len(set(options)) < max(2, len(options)):
        return f"at least two different options {about}, found {list(options)[:4]}; correct them"
    return ""
