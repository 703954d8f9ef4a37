"""Answers to questions: each input is asked as a loop would ask it, and results are those of a loop over the rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bitllm.data.prompt import Prompt
from bitllm.data.tasks import Exchange
from bitllm.data.tasks.exchange import Question, questions_of
from bitllm.evaluation.pairing import other_images
from bitllm.evaluation.questions import (
    MOST_FREQUENT,
    Answers,
    TrainingAnswers,
    about_task,
    answers_in_turn,
    drawn,
    metric_of,
    question_rows,
    rows_of_answers,
)
from bitllm.evaluation.results import TasksResult, from_json, to_json
from bitllm.evaluation.task_results import tasks_result
from bitllm.metrics.answers import score_of
from bitllm.metrics.intervals import paired_difference

PRESENCE = Exchange(
    "p", 0, "presence", ("Is there a dog?",), (("yes",),), ((),), "yes/no", "derived", "CC BY 4.0"
)
COUNT = replace(
    PRESENCE, task="count", questions=("How many dogs?",), answers=(("2",),), answer_type="number"
)
CHOICE = replace(
    PRESENCE,
    task="which",
    questions=("Which one?",),
    answers=(("a dog",),),
    options=(("a dog", "a cat", "a tree"),),
    answer_type="choice",
)
TALK = replace(
    PRESENCE,
    task="dialogue",
    questions=("What is it?", "What color?"),
    answers=(("a dog",), ("red",)),
    options=((), ()),
    answer_type="text",
)


def about(one, nsd_id, **changed):
    return replace(one, **{"id": f"{one.task}:{nsd_id}", "nsd_id": int(nsd_id)} | changed)


@pytest.fixture(scope="module")
def asked(held_out):
    """Four tasks about six images; every other image has no dog."""
    images = held_out.nsd_id[:6]
    answer = [(("yes" if n % 2 else "no",),) for n in range(6)]
    return {
        "presence": [about(PRESENCE, one, answers=answer[n]) for n, one in enumerate(images)],
        "count": [about(COUNT, one) for one in images[:3]],
        "which": [about(CHOICE, one) for one in images[:3]],
        "dialogue": [about(TALK, one) for one in images[:2]],
    }


@pytest.fixture(scope="module")
def rows(system, held_out, asked):
    """Rows of all inputs."""
    training = TrainingAnswers.of([about(PRESENCE, 90_000), about(CHOICE, 90_001), about(COUNT, 90_002)])
    controls = ("zero", "shuffle", "noise", "llm_alone")
    return question_rows(system, held_out, asked, training, controls=controls, seed=5, max_new_tokens=6)


def one_by_one(system, tokens, exchange, turn):
    """Decoded answer and log2 p of the options to one question alone."""
    history = tuple(zip(exchange.prompts[:turn], exchange.targets[:turn], strict=True))
    prompt = [Prompt(exchange.prompts[turn], history)]
    (text,) = system.greedy(tokens, instruction=prompt, max_new_tokens=6)
    options = exchange.options[turn] or (("yes", "no") if exchange.answer_type == "yes/no" else ())
    scored = [exchange.targets[turn], *options]
    log2 = [
        system.log2_probs([system.prompter.answer_ids(one)], np.array([0]), tokens, instruction=prompt).sum()
        for one in scored
    ]
    return text, log2[0], dict(zip(options, log2[1:], strict=True))


@pytest.mark.parametrize("name", ["real", "permuted", "zero", "llm_alone"])
def test_every_input_is_asked_as_one_question_alone(system, held_out, asked, rows, name):
    tokens = held_out.brain_tokens(system.encoder, system.atlases)
    order = other_images(held_out, seed=5).order.tolist()
    zero = held_out.brain_tokens(system.encoder, system.atlases, np.zeros_like(held_out.betas))
    inputs = {"real": tokens, "permuted": tokens[order], "zero": zero, "llm_alone": None}[name]
    for task, part in rows[(rows["input"] == name) & (rows["history"] == "gold")].groupby("task", sort=False):
        turns = [(one, turn) for one in asked[task] for turn in range(len(one.questions))]
        for (exchange, turn), row in zip(turns, part.itertuples(), strict=True):
            place = held_out.nsd_id.tolist().index(exchange.nsd_id)
            own = None if inputs is None else inputs[place : place + 1]
            text, log2, options = one_by_one(system, own, exchange, turn)
            assert (row.answer, row.nsd_id) == (text, exchange.nsd_id)
            assert row.log2_p == pytest.approx(log2, abs=1e-4)
            if options:  # words that the LLM does not know are equally probable
                assert options[row.chosen] == pytest.approx(max(options.values()), abs=1e-4)
                assert row.option_score == (row.chosen == exchange.answers[turn][0])
            else:
                assert row.chosen is None
                assert np.isnan(row.option_score)


def test_own_history_holds_the_systems_own_answers(system, held_out, asked, rows):
    tokens = held_out.brain_tokens(system.encoder, system.atlases)
    found = rows[(rows["input"] == "real") & (rows["history"] == "own")]
    assert found["task"].unique().tolist() == ["dialogue"]
    for number, exchange in enumerate(asked["dialogue"]):
        history: tuple = ()
        for turn, question in enumerate(exchange.prompts):
            place = [number]
            (text,) = system.greedy(tokens[place], instruction=[Prompt(question, history)], max_new_tokens=6)
            assert found.iloc[2 * number + turn]["answer"] == text
            history = (*history, (question, text))
    questions, places = questions_of(asked["dialogue"]), np.array([0, 0, 1, 1])
    again = answers_in_turn(system, questions, tokens, places, max_new_tokens=6)
    assert again.texts == found["answer"].tolist()


def test_the_floor_is_the_most_frequent_answer_in_training(rows):
    floor = rows[rows["input"] == MOST_FREQUENT]
    by_task = {task: part["answer"].tolist() for task, part in floor.groupby("task", sort=False)}
    assert by_task == {
        "presence": ["yes"] * 6,
        "count": ["2"] * 3,
        "which": ["dog"] * 3,
        "dialogue": [""] * 4,
    }
    which = floor[floor["task"] == "which"]
    assert which["chosen"].tolist() == ["a dog"] * 3
    assert floor["log2_p"].isna().all()


def test_counts_of_training_answers_are_by_type_of_question():
    images = range(5)
    words = ["yes", "yes", "no", "no", "no"]
    training = [about(PRESENCE, n, id=str(n), answers=((words[n],),)) for n in images]
    training += [about(PRESENCE, 9, questions=("Are there two?",), answers=(("maybe",),))]
    asked = [
        Question(about(PRESENCE, 0, questions=(text,)), 0)
        for text in ("Is there a cat?", "Are there 3?", "Can it?")
    ]
    assert TrainingAnswers.of(training).answers_to(asked).texts == ["no", "maybe", "no"]
    typed = [about(PRESENCE, 0, question_type="x", answers=(("no",),)), about(PRESENCE, 1, question_type="y")]
    ask = Question(about(PRESENCE, 0, question_type="y"), 0)
    assert TrainingAnswers.of(typed).answers_to([ask]).texts == ["yes"]


def test_questions_are_drawn_with_the_seed_and_whole_exchanges_only():
    exchanges = [about(TALK, n) for n in range(20)]
    found = drawn(exchanges, 7, seed=1)
    assert len(questions_of(found)) == 6
    assert found == drawn(exchanges, 7, seed=1) != drawn(exchanges, 7, seed=2)
    assert drawn(exchanges, 1000, seed=1) == exchanges
    assert len(drawn(exchanges, 1, seed=1)) == 1


def test_ten_answers_are_scored_as_vqa_and_as_a_okvqa_where_it_is_that():
    ten = about(COUNT, 0, answers=(("2", "2", "3", *["4"] * 7),), answer_type="phrase", source="vqa-v2")
    assert score_of(Question(ten, 0), "two") == pytest.approx(0.6)
    direct = replace(ten, source="a-okvqa")
    assert score_of(Question(direct, 0), "2") == pytest.approx(2 / 3)
    assert "leave-one-out" in metric_of([Question(ten, 0)])
    assert "A-OKVQA" in metric_of([Question(direct, 0)])


def test_only_the_derived_lists_are_scored_as_lists():
    listed = about(
        COUNT, 0, answers=(("dog, cat",),), answer_type="phrase", source="derived", task="category"
    )
    assert score_of(Question(listed, 0), "cat") == pytest.approx(2 / 3)
    assert score_of(Question(replace(listed, source="my questions"), 0), "cat") == 0
    assert "F1" in metric_of([Question(listed, 0)])


def test_options_that_were_rated_have_ndcg(held_out):
    rated = replace(CHOICE, relevance=((0.8, 0.0, 0.4),))
    unrated = replace(rated, relevance=((0.0,) * 3,))
    log2 = [(-1.0, -2.0, -3.0), (-2.0, -1.0, -3.0), (-1.0, -3.0, -2.0), (-1.0, -2.0, -3.0)]
    found = rows_of_answers(
        held_out,
        np.arange(4),
        questions_of([CHOICE, rated, rated, unrated]),
        Answers(["a dog"] * 4, [-1.0] * 4, [np.array(values) for values in log2]),
        system="",
        input="real",
    )
    # two options are relevant, so two places count
    worse = (0.8 / np.log2(3)) / (0.8 + 0.4 / np.log2(3))
    assert found["ndcg"].tolist() == pytest.approx([np.nan, worse, 1.0, np.nan], nan_ok=True)


def made_up_rows(n_images=8):
    """Rows of two tasks with random scores, without a system."""
    rng, parts = np.random.default_rng(3), []
    for task, n in (("presence", 3), ("count", 1)):
        for name in ("real", "permuted", "llm_alone"):
            size = n_images * n
            yes_no = rng.choice(["yes", "no"], size)
            parts.append(
                pd.DataFrame(
                    {
                        "task": task,
                        "input": name,
                        "history": "gold",
                        "nsd_id": np.repeat(np.arange(n_images), n),
                        "row": np.arange(size),
                        "answer": yes_no,
                        "chosen": yes_no if task == "presence" else None,
                        "score": rng.integers(0, 2, size).astype(float),
                        "option_score": rng.integers(0, 2, size).astype(float)
                        if task == "presence"
                        else np.nan,
                        "option_rank": rng.integers(1, 3, size).astype(float)
                        if task == "presence"
                        else np.nan,
                        "ndcg": np.nan,
                        "log2_p": -rng.random(size),
                        "count_error": rng.integers(0, 5, size).astype(float) if task == "count" else np.nan,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


ABOUT = {
    "presence": about_task([PRESENCE] * 30, [PRESENCE]),
    "count": about_task([COUNT] * 9, [COUNT]),
}


@pytest.fixture(scope="module")
def made_up():
    rows = made_up_rows()
    return rows, tasks_result(rows, ABOUT, 0)


def of(rows, task, name):
    return rows[(rows["task"] == task) & (rows["input"] == name)]


def test_scores_of_a_task_are_means_with_differences_over_images(made_up):
    rows, found = made_up
    real, permuted = of(rows, "presence", "real"), of(rows, "presence", "permuted")
    inputs = found.tasks["presence"].inputs
    assert inputs["real"].scores["decoded"].value == pytest.approx(100 * real["score"].mean())
    assert inputs["real"].score.value == pytest.approx(100 * real["option_score"].mean())
    per_image = [part.groupby("nsd_id")["option_score"].mean().to_numpy() * 100 for part in (real, permuted)]
    expected = paired_difference(*per_image, seed=0)
    # not p: it counts draws of exactly 0, which rounding moves
    assert inputs["permuted"].lead[:3] == pytest.approx(expected[:3])
    assert inputs["permuted"].bits.value == pytest.approx(
        (real["log2_p"].to_numpy() - permuted["log2_p"].to_numpy()).mean()
    )
    assert inputs["real"].chosen_yes_ratio == (real["chosen"] == "yes").mean()
    assert inputs["real"].ranking == {}, "two options are not ranked"
    count = found.tasks["count"]
    assert count.inputs["real"].rmse == pytest.approx(
        np.sqrt(of(rows, "count", "real")["count_error"].mean())
    )
    assert (count.n_available, count.n_questions, count.n_images, count.license) == (9, 8, 8, "CC BY 4.0")


def test_micro_weighs_questions_and_macro_tasks(made_up):
    rows, found = made_up
    best = {
        task: 100 * of(rows, task, "real")[name]
        for task, name in (("presence", "option_score"), ("count", "score"))
    }
    assert found.micro["real"].value == pytest.approx(pd.concat(best.values()).mean())
    assert found.macro["real"].value == pytest.approx(np.mean([one.mean() for one in best.values()]))
    for kind, lead in ((found.micro, found.micro_real_minus), (found.macro, found.macro_real_minus)):
        assert lead["permuted"].value == pytest.approx(kind["real"].value - kind["permuted"].value)
        assert lead["permuted"].low <= lead["permuted"].value <= lead["permuted"].high


def test_many_options_are_ranked_as_in_visdial():
    rows = made_up_rows().query("task == 'presence' and input == 'real'").copy()
    rows["option_rank"] = rows["row"] % 7 + 1.0
    rows.loc[rows["row"] < 2, "ndcg"] = np.where(rows.loc[rows["row"] < 2, "row"] == 0, 0.5, 0.75)
    found = tasks_result(rows, {task: one | {"n_options": 100} for task, one in ABOUT.items()}, 0)
    ranks = rows[(rows["task"] == "presence") & (rows["input"] == "real")]["option_rank"]
    ranking = found.tasks["presence"].inputs["real"].ranking
    assert ranking["MRR"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))
    assert ranking["R@5"] == pytest.approx(sum(rank <= 5 for rank in ranks) / len(ranks))
    assert ranking["NDCG"] == pytest.approx((0.5 + 0.75) / 2)


def test_results_of_questions_survive_their_json(made_up):
    assert from_json(TasksResult, to_json(made_up[1]), "results.json") == made_up[1]


def test_one_image_has_no_interval_and_no_question_no_result():
    rows = made_up_rows(1)
    assert not tasks_result(rows, ABOUT, 0).tasks["presence"].inputs["permuted"].lead.has_interval
    assert tasks_result(rows.iloc[:0], ABOUT, 0) is None
