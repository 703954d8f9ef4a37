"""Planted leaks through questions are found, and questions that are asked about many images are none."""

import pytest

from bitllm.data.audit import audit
from bitllm.data.store import open_store
from bitllm.data.store.write import replace_tasks
from bitllm.data.tasks import Exchange, tasks_table

CAPTION = "A brown dog runs over the beach."
TALK = tuple(f"What does the {name} do to the other one ?" for name in ("dog", "cat", "man"))


@pytest.fixture
def leaks_of(copied_store, monkeypatch):
    """Leaks of a store with some questions: ``leaks_of([(image, questions, answers), …])``."""
    store = open_store(copied_store)
    part = store.stimuli["part"]
    test, train = (int(part.index[part == name][0]) for name in ("test", "train"))
    place = {"test": test, "train": train}

    def find(asked, *, source="own", origin="nsd"):
        found = [
            Exchange(f"q:{n}", place[image], "own", questions, ((answers),) * len(questions), ((),) * len(questions),
                     "phrase", source, "")
            for n, (image, questions, answers) in enumerate(asked)
        ]  # fmt: skip
        opened = replace_tasks(store, tasks_table(found))
        opened.manifest = opened.manifest.model_copy(update={"source": origin})
        opened.captions = opened.captions | {test: (CAPTION, "It is.")}
        return [leak for leak in audit(opened)["leaks"] if "question" in leak]

    return find


@pytest.mark.parametrize("image", ["train", "test"])
def test_a_question_that_quotes_a_caption_of_a_test_image_is_found(leaks_of, image):
    quoting = ("What is this?", "Is it true that a BROWN dog runs over the beach, or not?")
    (leak,) = leaks_of([("train", ("Is it a brown dog?",), ("yes",)), (image, quoting, ("yes",))])
    assert leak.startswith("a question quotes a test image's caption: q:1")


def test_parts_of_a_caption_and_short_captions_are_no_quotes(leaks_of):
    assert leaks_of([("train", ("Is there a brown dog that runs over the beach? It is.",), ("yes",))]) == []


def test_the_questions_of_a_test_image_about_another_image_are_found(leaks_of):
    asked = [("test", TALK, ("runs",)), ("train", TALK, ("runs",))]
    (leak,) = leaks_of(asked)
    assert leak.startswith("a test image's questions in training: those of own")
    assert leaks_of([asked[0], ("train", TALK, ("sleeps",))]) == []  # other answers
    assert leaks_of([asked[0], (asked[1]), ("train", ("What?",), ("this",))]) == []  # and another question


def test_short_derived_and_simulated_questions_may_be_asked_twice(leaks_of):
    short = [(image, ("Is there a dog?",), ("yes",)) for image in ("test", "train")]
    assert leaks_of(short) == []
    long = [(image, TALK, ("runs",)) for image in ("test", "train")]
    assert leaks_of(long, source="derived") == [] == leaks_of(long, origin="simulated")


def test_a_quote_is_found_among_copies_with_one_more_question(leaks_of):
    leaks = leaks_of([("test", TALK, ("runs",)), ("train", TALK, ("runs",)), ("train", (CAPTION,), ("no",))])
    assert len(leaks) == 1 and "\n" not in leaks[0]
