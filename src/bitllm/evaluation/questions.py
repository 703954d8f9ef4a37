"""Questions about held-out images: the answers of a system to every input, as text and by likelihood.

A question is one turn of an exchange (`bitllm.data.tasks`). Its answer is decoded greedily and compared with the
accepted answers. A question with options is also scored without decoding: the answer is the most probable option. The
later turns of a dialogue follow the true answers of the earlier ones (``gold``) or the system's own (``own``).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.prompt import Prompt, plain_caption
from bitllm.data.tasks import Exchange
from bitllm.data.tasks.exchange import Question, questions_of
from bitllm.errors import DataError
from bitllm.evaluation.controls import BETAS_CONTROLS, control_betas
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.outcomes import Progress
from bitllm.evaluation.pairing import other_images
from bitllm.metrics.answers import (
    N_VQA_ANSWERS,
    VQA_VARIANT,
    count_error,
    is_direct_answer,
    is_list,
    is_yes,
    most_frequent,
    normalized_answer,
    score_of,
)
from bitllm.metrics.dialogue import ndcg
from bitllm.model.captioner import Captioner

MOST_FREQUENT = "most_frequent"
"""Floor: the answer that is most often right in training, to questions of the same type."""
GOLD, OWN = "gold", "own"
_ASKED_AT_ONCE = 256


class Answers(NamedTuple):
    """A system's answers to questions under one input."""

    texts: list[str]
    log2_p: list[float]
    """log2 p of the first accepted answer."""
    options: list[Float[np.ndarray, " options"]]
    """log2 p of each option; empty without options."""


def drawn(exchanges: Sequence[Exchange], n: int, *, seed: int) -> list[Exchange]:
    """Exchanges of one task with at most n questions, drawn with the seed; at least one exchange."""
    order = np.random.default_rng([seed, *exchanges[0].task.encode()]).permutation(len(exchanges))
    n_turns = np.cumsum([len(exchanges[row].questions) for row in order])
    chosen = order[: max(1, int((n_turns <= n).sum()))]
    return [exchanges[row] for row in np.sort(chosen)]


def answers_to(
    system: Captioner,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    brain_tokens: Float[Tensor, "n N width"] | None,
    rows: Int[np.ndarray, " questions"],
    *,
    max_new_tokens: int,
) -> Answers:
    """Answers to questions, each with its prompt.

    Parameters
    ----------
    brain_tokens
        Brain tokens of the held-out rows; None for the LLM alone.
    rows
        Row of ``brain_tokens`` for each question.
    """
    found = Answers([], [], [])
    for start in range(
        0, len(questions), _ASKED_AT_ONCE
    ):  # the brain tokens of a part are copied for each question
        part = slice(start, start + _ASKED_AT_ONCE)
        tokens = None if brain_tokens is None else brain_tokens[rows[part].tolist()]
        answered = _answers(system, questions[part], prompts[part], tokens, max_new_tokens)
        found.texts.extend(answered.texts)
        found.log2_p.extend(answered.log2_p)
        found.options.extend(answered.options)
    return found


def _answers(
    system: Captioner,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    brain_tokens: Float[Tensor, "n N width"] | None,
    max_new_tokens: int,
) -> Answers:
    texts = system.greedy(brain_tokens, instruction=prompts, max_new_tokens=max_new_tokens)
    # the accepted answer first, then the options; one that is an option is scored once
    scored = [list(dict.fromkeys([one.target, *one.options])) for one in questions]
    owner = np.repeat(np.arange(len(questions)), [len(one) for one in scored])
    ids = system.prompter.answers_ids([text for one in scored for text in one])
    log2 = system.log2_probs(ids, owner, brain_tokens, instruction=prompts).sum(axis=1)
    of_question = np.split(log2, np.flatnonzero(np.diff(owner)) + 1)
    found = [dict(zip(texts, values, strict=True)) for texts, values in zip(scored, of_question, strict=True)]
    return Answers(
        texts,
        [float(one[question.target]) for one, question in zip(found, questions, strict=True)],
        [
            np.array([one[option] for option in question.options], dtype=np.float64)
            for one, question in zip(found, questions, strict=True)
        ],
    )


def answers_in_turn(
    system: Captioner,
    questions: Sequence[Question],
    brain_tokens: Float[Tensor, "n N width"],
    rows: Int[np.ndarray, " questions"],
    *,
    max_new_tokens: int,
) -> Answers:
    """Answers to the questions of dialogues, each after the system's own answers to the earlier ones.

    Parameters
    ----------
    questions
        All turns of each exchange (`questions_of`).
    """
    own: dict[str, list[str]] = {one.exchange.id: [] for one in questions}
    texts, log2_p = [""] * len(questions), [0.0] * len(questions)
    options = [np.zeros(0)] * len(questions)
    for turn in range(max(len(one.exchange.questions) for one in questions)):
        of_turn = [place for place, one in enumerate(questions) if one.turn == turn]
        part = [questions[place] for place in of_turn]
        prompts = [one.after(own[one.exchange.id]) for one in part]
        found = answers_to(system, part, prompts, brain_tokens, rows[of_turn], max_new_tokens=max_new_tokens)
        for place, text, log2, of_options in zip(of_turn, *found, strict=True):
            texts[place], log2_p[place], options[place] = text, log2, of_options
            own[questions[place].exchange.id].append(plain_caption(text))
    return Answers(texts, log2_p, options)


@dataclass(frozen=True)
class TrainingAnswers:
    """Counts of the accepted answers in training, by task and type of question."""

    counts: dict[tuple[str, str], Counter[str]]

    @classmethod
    def of(cls, exchanges: Iterable[Exchange]) -> "TrainingAnswers":
        """Counts of the normalized answers; each of a question's answers counts."""
        counts: dict[tuple[str, str], Counter[str]] = {}
        for one in questions_of(exchanges):
            answers = [normalized_answer(answer) for answer in one.accepted]
            for kind in (
                one.kind,
                "",
            ):  # "": all questions of the task, for types that training does not have
                counts.setdefault((one.exchange.task, kind), Counter()).update(answers)
        return cls(counts)

    def answers_to(self, questions: Sequence[Question]) -> Answers:
        """The most frequent answer to each question; the "log2 p" of an option is its number in training."""
        texts, options = [], []
        for one in questions:
            task = one.exchange.task
            counts = self.counts.get((task, one.kind)) or self.counts.get((task, ""), Counter())
            texts.append(min(counts, key=lambda answer: (-counts[answer], answer), default=""))
            options.append(
                np.array([counts[normalized_answer(option)] for option in one.options], np.float64)
            )
        return Answers(texts, [np.nan] * len(questions), options)


def question_rows(
    system: Captioner,
    held_out: HeldOut,
    exchanges: dict[str, list[Exchange]],
    training: TrainingAnswers,
    *,
    controls: Sequence[str],
    seed: int,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Rows of the table (`bitllm.evaluation.table`) of one system: every question under every input.

    For questions about trials the betas of another image are from the same session, so that a session's own
    properties are no evidence of memory.

    Parameters
    ----------
    held_out
        Averages over repetitions, or single trials for exchanges about trials.
    exchanges
        Exchanges about held-out images, or all of them about held-out trials, by task.
    training
        Answers in training, for the floor.
    controls
        Controls besides permuted: a selection of `BETAS_CONTROLS`, and ``llm_alone``. Real and permuted are always run.
    seed
        Seed of the controls and of the order of options with equal likelihoods.
    """
    tell = progress or (lambda what, done, total: None)
    row_of: dict[Any, int] = {int(nsd_id): row for row, nsd_id in enumerate(held_out.nsd_id)}
    row_of |= {(held_out.subject, rows[0]): row for row, rows in enumerate(held_out.trials.rows)}
    parts, asked = [], {task: questions_of(found) for task, found in exchanges.items()}
    of_trials = any(one.exchange.trial for questions in asked.values() for one in questions)
    inputs = _inputs(system, held_out, controls, seed, within_session=of_trials)
    n_done, total = 0, (len(inputs) + 1) * sum(map(len, asked.values()))
    for name, brain_tokens in inputs.items():
        for questions in asked.values():
            rows = np.array([row_of[one.exchange.trial or one.exchange.nsd_id] for one in questions])
            shared: Any = {"system": system.name, "input": name, "seed": seed}
            gold = [one.prompt for one in questions]
            found = answers_to(system, questions, gold, brain_tokens, rows, max_new_tokens=max_new_tokens)
            parts.append(rows_of_answers(held_out, rows, questions, found, **shared))
            has_own = name in ("real", "permuted") and any(one.turn for one in questions)
            if brain_tokens is not None and has_own:
                found = answers_in_turn(system, questions, brain_tokens, rows, max_new_tokens=max_new_tokens)
                parts.append(rows_of_answers(held_out, rows, questions, found, history=OWN, **shared))
            n_done += len(questions)
            tell(f"{system.name}: questions, {name}", n_done, total)
    for questions in asked.values():
        rows = np.array([row_of[one.exchange.trial or one.exchange.nsd_id] for one in questions])
        floor = training.answers_to(questions)
        shared = {"system": system.name, "input": MOST_FREQUENT, "seed": seed}
        parts.append(rows_of_answers(held_out, rows, questions, floor, **shared))
    return pd.concat(parts, ignore_index=True)


def _inputs(
    system: Captioner, held_out: HeldOut, controls: Sequence[str], seed: int, *, within_session: bool
) -> dict[str, Float[Tensor, "n N width"] | None]:
    """Brain tokens of the held-out rows under every input."""
    real = held_out.brain_tokens(system.encoder, system.atlases)
    found: dict[str, Any] = {"real": real}
    found["permuted"] = real[other_images(held_out, seed=seed, within_session=within_session).order.tolist()]
    for name in controls:
        if name not in BETAS_CONTROLS:
            continue
        with suppress(DataError):  # the part with the captions says why a control could not be made
            betas = control_betas(name, held_out, seed=seed).betas
            found[name] = held_out.brain_tokens(system.encoder, system.atlases, betas)
    return found | ({"llm_alone": None} if "llm_alone" in controls else {})


def rows_of_answers(
    held_out: HeldOut,
    rows: Int[np.ndarray, " n"],
    questions: Sequence[Question],
    found: Answers,
    *,
    system: str,
    input: str,
    history: str = GOLD,
    seed: int = 0,
) -> pd.DataFrame:
    """Answers with their scores as rows of the table; ``rows`` are the held-out rows of the questions."""
    chosen = [_chosen(one, values, seed) for one, values in zip(questions, found.options, strict=True)]
    return pd.DataFrame(
        {
            "system": system,
            "trials": ["averaged" if one.exchange.trial is None else "single" for one in questions],
            "subject": held_out.subject,
            "task": [one.exchange.task for one in questions],
            "input": input,
            "nsd_id": held_out.nsd_id[rows],
            "row": np.arange(len(questions)),
            "n_repetitions": held_out.n_repetitions[rows],
            "answer": found.texts,
            "log2_p": found.log2_p,
            "question": [one.exchange.questions[one.turn] for one in questions],
            "turn": [one.turn for one in questions],
            "history": history,
            "accepted": [most_frequent_of(one) for one in questions],
            "score": [score_of(one, text) for one, text in zip(questions, found.texts, strict=True)],
            "chosen": [option for option, _, _ in chosen],
            "option_score": [score for _, score, _ in chosen],
            "option_rank": [rank for _, _, rank in chosen],
            "ndcg": [_ndcg(one, values) for one, values in zip(questions, found.options, strict=True)],
            "count_error": [
                count_error(text, one.accepted) if one.exchange.answer_type == "number" else np.nan
                for one, text in zip(questions, found.texts, strict=True)
            ],
        }
    )


def metric_of(questions: Sequence[Question]) -> str:
    """Name of the accuracy of a task's decoded answers."""
    if all(map(is_list, questions)):
        return "F1 of the listed objects"
    if all(map(is_direct_answer, questions)):
        return "A-OKVQA's accuracy of direct answers"
    has_ten = [len(one.accepted) == N_VQA_ANSWERS for one in questions]
    if all(has_ten):
        return f"VQA accuracy ({VQA_VARIANT})"
    return "exact match after VQA's normalization" + (
        f"; VQA accuracy ({VQA_VARIANT}) where there are ten answers" if any(has_ten) else ""
    )


def most_frequent_of(question: Question) -> str:
    """The accepted answer to show: of ten, the most frequent one; else the first."""
    ten = len(question.accepted) == N_VQA_ANSWERS
    return most_frequent(question.accepted) if ten else question.accepted[0]


def about_task(available: Sequence[Exchange], asked: Sequence[Exchange]) -> dict[str, Any]:
    """The entry of a task in ``evaluation.json``.

    Parameters
    ----------
    available, asked
        All exchanges of the task about held-out images, and the drawn ones.
    """
    questions = questions_of(asked)

    def listed(name: str) -> str:
        return ", ".join(sorted({str(getattr(one, name)) for one in asked}))

    return {
        "answer_type": listed("answer_type"),
        "metric": metric_of(questions),
        "source": listed("source"),
        "license": listed("license"),
        "n_available": len(questions_of(available)),
        "n_options": max(len(one.options) for one in questions),
    }


def yes_ratio(answers: Iterable[str]) -> float:
    """Share of the answers that are "yes"."""
    return float(np.mean([is_yes(answer) for answer in answers]))


def _ndcg(question: Question, log2: Float[np.ndarray, " options"]) -> float:
    """NDCG of the options by likelihood; NaN if nobody rated them, or found none correct."""
    relevance = np.array(question.relevance)
    return ndcg(log2, relevance) if len(log2) and relevance.any() else np.nan


def _chosen(
    question: Question, log2: Float[np.ndarray, " options"], seed: int
) -> tuple[str | None, float, float]:
    """The most probable option, its accuracy, and the rank of the right option; ties are broken at random."""
    if not len(log2):
        return None, np.nan, np.nan
    rng = np.random.default_rng([seed, question.turn, *question.exchange.id.encode()])
    order = np.lexsort((rng.permutation(len(log2)), -log2))
    options = [question.options[place] for place in order]
    is_given = bool(question.exchange.options[question.turn])
    score = float(options[0] == question.target) if is_given else score_of(question, options[0])
    rank = options.index(question.target) + 1.0 if question.target in options else np.nan
    return options[0], score, rank
