"""Answers to questions about the test images, as numbers for each image and input."""

from collections.abc import Sequence

import pandas as pd

from bitllm.data.tasks.exchange import exchanges
from bitllm.errors import DataError
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.questions import GOLD, MOST_FREQUENT, TrainingAnswers, drawn, question_rows
from bitllm.evaluation.task_results import best_score
from bitllm.experiments.verdict import ANSWER_MEASURES, TYPE_OF_TASK, column_of
from bitllm.model.captioner import Captioner
from bitllm.pipeline.run import Run
from bitllm.training.logging import Progress


def answer_rows(
    run: Run,
    system: Captioner,
    held_out: HeldOut,
    tasks: Sequence[str],
    *,
    controls: Sequence[str],
    seed: int,
    progress: Progress,
) -> pd.DataFrame:
    """Accuracy and bits of a system's answers, one row for each input and image.

    ``accuracy TASK`` is the mean over the image's questions in percent: by likelihood where a question has options,
    else of the decoded answer; dialogues follow the true answers. ``answer_bits TASK`` is log2 p of the first accepted
    answer with the real betas minus that with another image's, and exists for real betas alone. An image without
    questions of a task has NaN.

    Parameters
    ----------
    tasks
        Tasks to ask, or ``TASK: TYPE`` for the questions of one type. At most ``questions_per_task`` of the recipe's
        evaluation are drawn of each with the seed.
    controls
        Inputs besides real and permuted betas.
    """
    evaluation, parts = run.recipe.evaluation, []
    for task in tasks:
        name, _, kind = task.partition(TYPE_OF_TASK)
        available = exchanges(run.store, tasks=[name], nsd_ids=held_out.nsd_id.tolist())
        if kind:
            available = tuple(one for one in available if one.question_type == kind)
        if not available:
            raise DataError(
                f"{run.store.path}: expected questions of `{task}` about the test images, found none"
            )
        rows = question_rows(
            system,
            held_out,
            {name: drawn(available, evaluation.questions_per_task, seed=seed)},
            TrainingAnswers({}),  # its floor is not among the inputs
            controls=controls,
            seed=seed,
            max_new_tokens=evaluation.max_new_tokens,
            progress=progress,
        )
        parts.append(rows.assign(task=task))
    return numbers_of_answers(pd.concat(parts))


def numbers_of_answers(rows: pd.DataFrame) -> pd.DataFrame:
    """The numbers of `answer_rows` from rows of `bitllm.evaluation.questions.question_rows`."""
    gold = rows[(rows["history"] == GOLD) & (rows["input"] != MOST_FREQUENT)]
    gold = gold.assign(accuracy=100 * best_score(gold))
    permuted = gold[gold["input"] == "permuted"].set_index(["task", "row"])["log2_p"]
    places = pd.MultiIndex.from_frame(gold[["task", "row"]])
    bits = gold["log2_p"] - permuted.reindex(places).to_numpy()
    gold["answer_bits"] = bits.where(gold["input"] == "real")
    keys = ["input", "nsd_id"]
    found = pd.DataFrame(index=pd.MultiIndex.from_frame(gold[keys].drop_duplicates()))
    for task, part in gold.groupby("task", sort=False):
        for measure in ANSWER_MEASURES:
            found[column_of(measure, str(task))] = part.groupby(keys)[measure].mean()
    return found.reset_index().rename(columns={"input": "control"})
