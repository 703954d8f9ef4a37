"""The table of questions: what is written is what is read, and what is wrong is refused in one line."""

from dataclasses import replace

import pandas as pd
import pytest

from bitllm.data.audit import verify_store
from bitllm.data.inspect import inspect_store, inspect_text
from bitllm.data.store import open_store
from bitllm.data.store.write import replace_tasks
from bitllm.data.tasks import Exchange, checked, exchanges, tasks_table
from bitllm.errors import DataError

ONE = Exchange(
    id="a:1",
    nsd_id=1,
    task="presence",
    questions=("Is there a dog?",),
    answers=(("yes",),),
    options=(("yes", "no"),),
    answer_type="yes/no",
    source="derived",
    license="CC BY 4.0",
)
TALK = replace(
    ONE,
    id="b:1",
    task="dialogue",
    questions=("What is it?", "Where?"),
    answers=(("a dog", "dog"), ("In a park.",)),
    options=((), ()),
    answer_type="text",
    question_type="scene",
)


@pytest.fixture
def store(copied_store):
    """A store without tasks that may be changed."""
    return open_store(copied_store)


def of_images(store, *templates):
    images = store.stimuli.index.tolist()
    return [replace(one, id=f"{one.id}:{n}", nsd_id=n) for one in templates for n in images]


def test_exchanges_are_read_as_they_were_written(store):
    written = of_images(store, ONE, TALK)
    read = exchanges(replace_tasks(store, tasks_table(written)))
    assert sorted(read, key=lambda one: one.id) == sorted(written, key=lambda one: one.id)


def test_tasks_and_parts_select_exchanges_by_the_part_of_their_image(store):
    with_tasks = replace_tasks(store, tasks_table(of_images(store, ONE, TALK)))
    part = store.stimuli["part"].to_dict()
    for name in ("train", "validation", "test"):
        found = exchanges(with_tasks, tasks=["dialogue"], part=name)
        assert {one.task for one in found} == {"dialogue"}
        assert sorted(one.nsd_id for one in found) == sorted(n for n, p in part.items() if p == name)


def test_an_inspection_counts_the_questions_of_each_task(store):
    assert inspect_store(store)["tasks"] == {}
    n = len(store.stimuli)
    found = inspect_store(replace_tasks(store, tasks_table(of_images(store, ONE, TALK))))
    assert found["tasks"] == {"dialogue": n, "presence": n}
    assert f"{n} dialogue, {n} presence" in inspect_text(found)


def test_tasks_change_no_checksum_but_their_own(store):
    with_tasks = replace_tasks(store, tasks_table(of_images(store, ONE)))
    assert with_tasks.sha256 == store.sha256
    again = replace_tasks(with_tasks, tasks_table(of_images(store, TALK)))
    assert again.tasks_sha256 != with_tasks.tasks_sha256
    assert again.manifest.model_dump(exclude={"sha256"}) == store.manifest.model_dump(exclude={"sha256"})
    verify_store(again)


def test_a_kill_between_table_and_manifest_leaves_a_store_without_tasks(store, monkeypatch):
    old = replace_tasks(store, tasks_table(of_images(store, ONE)))
    monkeypatch.setattr("bitllm.data.store.write.sha256_of_file", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_tasks(old, tasks_table(of_images(store, TALK)))
    left = open_store(store.path)
    assert not left.has_tasks
    verify_store(left)


def test_a_store_without_tasks_says_how_to_add_them(store):
    assert not store.has_tasks
    with pytest.raises(DataError, match="bitllm tasks"):
        exchanges(store)


def test_an_unknown_task_is_refused_with_the_nearest(store):
    with_tasks = replace_tasks(store, tasks_table(of_images(store, ONE)))
    with pytest.raises(DataError, match="did you mean `presence`"):
        exchanges(with_tasks, tasks=["presense"])


def test_prompts_name_the_options_of_a_choice_that_its_question_does_not_name():
    choice = replace(ONE, answer_type="choice", options=(("dog", "cat"),), answers=(("dog",),))
    assert replace(choice, questions=("Is it a Dog or a cat?",)).prompts == ("is it a dog or a cat ?",)
    assert replace(choice, questions=("What is it?",)).prompts == ("what is it ? dog or cat ?",)
    three = replace(choice, questions=("What?",), options=(("dog", "cat", "red bus"),))
    assert three.prompts == ("what ? dog , cat or red bus ?",)
    assert ONE.prompts == ("is there a dog ?",)  # yes or no needs no list
    assert TALK.prompts == ("what is it ?", "where ?")
    assert TALK.targets == ("a dog", "in a park")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"answer_type": "words"}, "`words`"),
        ({"questions": ()}, "0 questions"),
        ({"questions": ("a?", "b?")}, "2 questions"),
        ({"options": ()}, "0 options"),
        ({"questions": (" ",)}, "an empty one"),
        ({"answers": ((),)}, "found none"),
        ({"answers": ((" ", "yes"),)}, "found none"),
        ({"answers": (("maybe",),)}, "`maybe`"),
        ({"options": (("yes", "yes"),)}, "at least two"),
    ],
)
def test_an_exchange_that_cannot_be_used_is_refused(change, found):
    with pytest.raises(DataError, match=found) as error:
        checked([ONE, replace(ONE, id="a:2", **change)], "questions.json")
    assert "a:2" in str(error.value) and str(error.value).startswith("questions.json: ")
    assert "\n" not in str(error.value)


def test_an_id_that_occurs_twice_and_an_empty_list_are_refused():
    with pytest.raises(DataError, match="a:1 twice"):
        checked([ONE, replace(ONE, nsd_id=2)], "questions.json")
    with pytest.raises(DataError, match="found none"):
        checked([], "questions.json")


def test_the_table_is_readable_with_pandas_alone(store):
    replace_tasks(store, tasks_table([replace(TALK, nsd_id=int(store.stimuli.index[0]))]))
    (row,) = pd.read_parquet(store.path / "tasks.parquet").to_dict("records")
    assert [list(turn) for turn in row["answers"]] == [["a dog", "dog"], ["In a park."]]
    assert row["license"] == "CC BY 4.0"
