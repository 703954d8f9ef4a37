"""`bitllm ask`: answers to questions about one trial, with their controls."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bitllm.errors import ConfigError
from bitllm.evaluation.verdict import label
from bitllm.explore.conversation import ALONE, CONTROL, REAL, converse, unknown_words
from bitllm.explore.work import MAX_NEW_TOKENS, open_session
from bitllm.metrics.intervals import Estimate
from bitllm.pipeline.run import RECIPE, Run

_LABELS = {REAL: label("real"), CONTROL: label("permuted"), ALONE: label("llm_alone")}


@dataclass(frozen=True)
class Turn:
    """A question with its answers."""

    question: str
    answers: dict[str, dict[str, Any]]
    """By input, see `bitllm.explore.conversation.converse`."""


@dataclass(frozen=True)
class Asked:
    """A conversation about one trial."""

    run: str
    system: str
    subject: str
    nsd_id: int
    trials: str
    """Which trials were decoded, in words."""
    use: str
    """Part of the run's split that the image belongs to."""
    turns: list[Turn] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The conversation as JSON."""
        return asdict(self)


def ask(
    run: Path,
    questions: Sequence[str],
    *,
    nsd_id: int,
    subject: str | None = None,
    repetition: int | None = None,
    system: str | None = None,
    store: Path | None = None,
) -> Asked:
    """Ask a system of a run questions about the image of one trial.

    Parameters
    ----------
    run
        A run folder, or the folder of a checkpoint.
    questions
        One or more; each follows the answers to the earlier ones.
    nsd_id
        An image that the subject saw.
    subject
        By default the first test subject.
    repetition
        A single trial, counted from 1; None for the mean over all trials of the image.
    system
        By default one that was trained on questions, else rft, else sft.
    store
        By default that of the run.

    Raises
    ------
    BitLlmError
        If run, system, subject, image or repetition do not exist, or a question is empty or too long.
    """
    if repetition is not None and repetition < 1:
        raise ConfigError(f"--repetition: expected 1 or more, found {repetition}; name another")
    session = open_session(run, store or _store_of(run))
    subject, name = subject or session.subjects[0], system or session.system_to_ask
    captioner, trials = session.system(name), session.trials(subject)
    inputs = session.inputs(captioner, subject, nsd_id, repetition)
    known = session.true_answers(nsd_id)
    said = converse(captioner, inputs, questions, max_new_tokens=MAX_NEW_TOKENS, known=known)
    n = len(trials.rows[nsd_id])
    return Asked(
        session.run,
        name,
        subject,
        nsd_id,
        f"mean of {n} repetitions" if repetition is None and n > 1 else f"repetition {repetition or 1}",
        trials.use_of(nsd_id),
        [Turn(question, answers) for question, answers in zip(questions, said, strict=True)],
        tuple(
            f"the LLM's vocabulary does not have the word `{word}`"
            for word in unknown_words(captioner.prompter, questions)
        ),
    )


def render_answers(found: Asked) -> Group:
    """The conversation as an object that rich can print."""
    place = f"{found.subject}, image {found.nsd_id} ({found.use} image, {found.trials}), {found.system} of {found.run}"
    parts: list[Any] = [Text(place), Text()]
    for turn in found.turns:
        table = Table(
            title=escape(turn.question), title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        table.add_column("input")
        table.add_column("answer")
        for name in ("probability", "bits"):
            table.add_column(name, justify="right")
        for name, said in turn.answers.items():
            bits = (
                Estimate(sum(word["bits"] for word in said["words"])).shown(sign=True)
                if said["words"]
                else ""
            )
            cells = (_LABELS[name], said["answer"] or "(no words)", f"{said['probability']:.2f}", bits)
            table.add_row(*map(escape, cells), style="bold" if name == REAL else "")
        parts.append(table)
        if accepted := turn.answers[REAL]["accepted"]:
            judged = "right" if turn.answers[REAL]["is_right"] else "wrong"
            parts.append(Text(f"true answer: {', '.join(dict.fromkeys(accepted))} ({judged})"))
        parts.append(Text())
    parts.append(
        Text(
            "Bits: how much more probable the answer is with these betas than with those of eight other images. One "
            "trial is no evidence; `bitllm evaluate` asks many questions.",
            style="dim",
        )
    )
    return Group(*parts, *(Text(f"note: {note}", style="dim") for note in found.notes))


def _store_of(run: Path) -> Path:
    """The store of a run folder."""
    if not (run / RECIPE).is_file():
        raise ConfigError(
            f"{run}: expected the folder of a run with its {RECIPE}, found none; name the store with --store"
        )
    return Run.open(run).store.path
