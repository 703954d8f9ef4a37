"""Questions about a trial: each input has its own conversation, and the command and the page show the same answers."""

import json

import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.prompt import Prompt, plain_question
from bitllm.errors import BitLlmError, ConfigError
from bitllm.explore.answers import ask
from bitllm.explore.conversation import converse, unknown_words
from bitllm.explore.jobs import Job
from bitllm.explore.schemas import Ask
from bitllm.explore.work import Decoder

QUESTIONS = ("What is in the image?", "A dog?")


@pytest.fixture(scope="module")
def image(easy_session):
    """A test image with questions in the store."""
    images = easy_session.images("subj08", "test", offset=0, limit=100).images
    return next(one.nsd_id for one in images if easy_session.exchanges(one.nsd_id))


@pytest.fixture(scope="module")
def system(easy_session):
    return easy_session.system("sft")


@pytest.fixture(scope="module")
def inputs(easy_session, system, image):
    zero = np.zeros_like(easy_session.trials("subj08").betas(image, None))
    return easy_session.inputs(system, "subj08", image, changed=zero)


@pytest.fixture(scope="module")
def turns(system, inputs):
    return converse(system, inputs, QUESTIONS, max_new_tokens=8, known={"a dog ?": ("yes", "a dog")})


def test_every_input_is_asked_with_its_own_earlier_answers(system, inputs, turns):
    assert list(inputs.by_name) == ["real", "perturbed", "control", "alone"]
    for name, tokens in inputs.by_name.items():
        history: tuple = ()
        for question, said in zip(QUESTIONS, turns, strict=True):
            prompt = [Prompt(plain_question(question), history)]
            (text,) = system.greedy(tokens, instruction=prompt, max_new_tokens=8)
            ids = system.prompter.answer_ids(text)
            log2 = system.log2_probs([ids], np.array([0]), tokens, instruction=prompt).sum()
            assert said[name]["answer"] == text
            assert said[name]["probability"] == pytest.approx(2**log2, abs=1e-5)
            history = (*history, (plain_question(question), text))


def test_bits_are_of_the_unchanged_betas_against_other_images(system, inputs, turns):
    answer = turns[0]["perturbed"]
    ids, prompt = [system.prompter.answer_ids(answer["answer"])], [Prompt("what is in the image ?")]
    scored = [
        system.log2_probs(ids, np.array([0]), tokens[None], instruction=prompt)[0, :-1].sum()
        for tokens in (inputs.real[0], *inputs.others)
    ]
    assert sum(word["bits"] for word in answer["words"]) == pytest.approx(
        scored[0] - np.mean(scored[1:]), abs=0.01
    )
    assert turns[0]["alone"]["words"] == []


def test_an_answer_is_right_if_it_is_one_of_the_true_answers(turns):
    assert (turns[0]["real"]["is_right"], turns[0]["real"]["accepted"]) == (None, [])
    assert turns[1]["real"]["accepted"] == ["yes", "a dog"]
    assert turns[1]["real"]["is_right"] == (turns[1]["real"]["answer"] in ("yes", "a dog"))


@pytest.mark.parametrize("questions", [[], ["  "], ["x" * 301], ["a dog ?"] * 13])
def test_no_empty_or_endless_question_is_asked(system, inputs, questions):
    with pytest.raises(ConfigError, match="question"):
        converse(system, inputs, questions, max_new_tokens=2)


def test_words_that_the_llm_does_not_have_are_named(system):
    assert unknown_words(system.prompter, ["A dog?", "A zeppelin?"]) == ["zeppelin"]


def test_a_decode_with_questions_tells_the_captions_then_the_answers(easy_session, image, turns):
    job = Job(Ask(system="sft", subject="subj08", nsd_id=image, perturbation="zero", questions=QUESTIONS))
    Decoder(easy_session, max_new_tokens=8)(job)
    kinds = [event["kind"] for event in job.events]
    last_panel = max(place for place, kind in enumerate(kinds) if kind == "panel")
    assert last_panel < kinds.index("answer_text") < kinds.index("answer")
    answers = [event for event in job.events if event["kind"] == "answer"]
    assert [(event["turn"], event["panel"]) for event in answers] == [
        (turn, name) for turn in (0, 1) for name in ("real", "perturbed", "control", "alone")
    ]
    for event in answers:
        expected = turns[event["turn"]][event["panel"]]
        assert {name: event[name] for name in ("answer", "probability", "words")} == {
            name: expected[name] for name in ("answer", "probability", "words")
        }


def test_the_command_prints_the_answers_beside_their_controls(easy, easy_session, image, capsys):
    exchange = next(one for one in easy_session.exchanges(image) if len(one.questions) == 1)
    place = [
        str(easy.folder / "sft"),
        exchange.questions[0],
        "--store",
        str(easy.store.path),
        "--image",
        str(image),
    ]
    main(["ask", *place, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["subject"], found["nsd_id"], found["use"], found["system"]) == (
        "subj08",
        image,
        "test",
        "sft",
    )
    answers = found["turns"][0]["answers"]
    assert list(answers) == ["real", "control", "alone"]
    assert answers["real"]["accepted"] == list(exchange.answers[0])
    main(["ask", *place])
    said = capsys.readouterr().out
    assert f"true answer: {exchange.answers[0][0]}" in said
    for name, one in (
        ("real betas", "real"),
        ("another image's betas", "control"),
        ("language model alone", "alone"),
    ):
        line = next(line for line in said.splitlines() if line.startswith(name))
        assert f"{answers[one]['probability']:.2f}" in line


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"nsd_id": 10**6}, "1000000"),
        ({"subject": "subj99"}, "subj99"),
        ({"system": "stf"}, "stf"),
        ({"repetition": 0}, "--repetition"),
        ({"repetition": 99}, "99"),
        ({"store": None}, "--store"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(easy, image, changed, fragment):
    how = {"nsd_id": image, "store": easy.store.path} | changed
    with pytest.raises(BitLlmError, match=fragment):
        ask(easy.folder / "sft", ["a dog ?"], **how)
