"""The draw of a task and an exchange for each example."""

from collections import Counter
from dataclasses import replace

import pytest

from bitllm.data.store import open_store
from bitllm.data.store.write import replace_tasks
from bitllm.data.tasks import Exchange, tasks_table
from bitllm.data.tasks.mixture import CAPTIONS_ALONE, TaskMixture, is_captions_alone
from bitllm.errors import DataError

ONE = Exchange("", 0, "presence", ("Is it?",), (("yes",),), ((),), "yes/no", "derived", "")


@pytest.fixture
def asked(copied_store):
    """A store with two questions about presence and one number for all but one image."""
    store = open_store(copied_store)
    found = [
        replace(ONE, id=f"{n}:{nsd_id}", nsd_id=nsd_id, task=task)
        for nsd_id in store.stimuli.index[1:].tolist()
        for n, task in enumerate(("presence", "presence", "count"))
    ]
    return replace_tasks(store, tasks_table(found))


def drawn(mixture, nsd_id, n=600, **where):
    here = {"seed": 0, "epoch": 0} | where
    return [mixture.draw(nsd_id, index=index, **here) for index in range(n)]


def test_captions_alone_need_no_questions_and_draw_none(copied_store):
    store = open_store(copied_store)
    mixture = TaskMixture.of(store, CAPTIONS_ALONE, store.stimuli.index)
    assert not mixture.exchanges
    assert drawn(mixture, int(store.stimuli.index[1])) == [None] * 600
    assert is_captions_alone({"caption": 2.0, "count": 0.0}) and not is_captions_alone({"count": 1.0})


def test_tasks_are_drawn_in_proportion_to_their_weights(asked):
    weights = {"caption": 1.0, "presence": 0.3, "count": 0.7}
    nsd_id = int(asked.stimuli.index[1])
    found = drawn(TaskMixture.of(asked, weights, [nsd_id]), nsd_id)
    tasks = Counter("caption" if one is None else one.task for one in found)
    for task, weight in weights.items():
        p = weight / 2
        assert abs(tasks[task] - 600 * p) < 4 * (600 * p * (1 - p)) ** 0.5
    presence = Counter(one.id for one in found if one is not None and one.task == "presence")
    assert len(presence) == 2 and min(presence.values()) > 20


def test_an_image_without_questions_gets_captions_and_weight_zero_is_not_read(asked):
    first, second = map(int, asked.stimuli.index[:2])
    mixture = TaskMixture.of(asked, {"presence": 1.0, "nothing": 0.0}, [first, second])
    assert set(mixture.exchanges) == {second}
    assert drawn(mixture, first) == [None] * 600
    assert {one.task for one in drawn(mixture, second)} == {"presence"}


def test_a_draw_is_a_pure_function_of_seed_epoch_and_index(asked):
    nsd_id = int(asked.stimuli.index[1])
    mixture = TaskMixture.of(asked, {"caption": 1.0, "presence": 1.0}, [nsd_id])
    first = drawn(mixture, nsd_id)
    assert drawn(mixture, nsd_id) == first
    assert drawn(mixture, nsd_id, seed=1) != first != drawn(mixture, nsd_id, epoch=1)


def test_a_conversation_has_other_questions_about_the_image_but_no_captions(asked):
    nsd_id, other = map(int, asked.stimuli.index[1:3])
    weights = {"caption": 1.0, "presence": 1.0, "count": 0.2, "nothing": 0.0}
    mixture = TaskMixture.of(asked, weights, [nsd_id, other], questions_each=3)
    found = [mixture.conversation(nsd_id, seed=0, epoch=0, index=index) for index in range(600)]
    first = drawn(mixture, nsd_id)
    assert [one[0] if one else None for one in found] == first
    assert {len(one) for one in found if one} == {1, 2, 3}
    for one in found:
        assert len({exchange.id for exchange in one}) == len(one)
        assert {exchange.nsd_id for exchange in one} <= {nsd_id}
    # three draws of 1, 1 and .2 / 1.2 leave count out with probability (1 / 1.2) ** 3
    n, p = 600 - first.count(None), 1 - (1 / 1.2) ** 3
    with_count = sum(any(exchange.task == "count" for exchange in one) for one in found)
    assert abs(with_count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def test_a_conversation_of_one_is_the_draw_and_a_dialogue_stays_alone(asked):
    nsd_id = int(asked.stimuli.index[1])
    weights = {"caption": 1.0, "presence": 1.0}
    single = TaskMixture.of(asked, weights, [nsd_id])
    here = {"seed": 0, "epoch": 0}
    for index, one in enumerate(drawn(single, nsd_id)):
        assert single.conversation(nsd_id, index=index, **here) == (() if one is None else (one,))
    two_turns = replace(
        ONE, id="d", nsd_id=nsd_id, task="visdial", questions=("Is it?", "Why?"), answers=(("yes",),) * 2
    )
    mixture = TaskMixture(
        {"presence": 1.0, "visdial": 1.0},
        {nsd_id: {"presence": single.exchanges[nsd_id]["presence"], "visdial": (two_turns,)}},
        questions_each=4,
    )
    found = {mixture.conversation(nsd_id, index=index, **here) for index in range(600)}
    assert (two_turns,) in found
    assert all(two_turns not in one for one in found if len(one) > 1)
    assert max(map(len, found)) == 2  # as many as the image has


def test_a_task_that_the_store_lacks_is_refused(asked):
    with pytest.raises(DataError, match="did you mean `count`"):
        TaskMixture.of(asked, {"caption": 1.0, "counts": 1.0}, asked.stimuli.index)
