"""Questions about earlier trials: true, balanced, of one part, and read back with their trials."""

import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.store import Store, open_store
from bitllm.data.tasks import checked, exchanges
from bitllm.data.tasks.derive import with_article
from bitllm.data.tasks.memory import BEFORE, SEEN, memory_exchanges
from bitllm.data.tasks.mixture import TaskMixture

NAMES = ("dog", "umbrella", "person", "skis", "cat", "bus")
LAGS = {"one image before": 1, "two images before": 2, "three images before": 3, "four images before": 4}
LAGS |= {"five images before": 5}


class MadeUp(Store):
    """A store of tables in memory."""

    has_objects = True

    def __init__(self, **tables):
        vars(self).update(tables)


@pytest.fixture(scope="module")
def made_up():
    """The tables of a store: two subjects, 4 sessions of 2 runs of 60 trials, images of three parts with one object."""
    rng = np.random.default_rng(2)
    images = np.arange(160)
    parts = np.where(images % 8 == 0, "test", np.where(images % 8 == 1, "validation", "train"))
    rows = [(image, rng.choice(NAMES), "thing", False, 0.1, 0.1, 0.2, 0.2, 0.04) for image in images]
    columns = ["nsd_id", "category", "supercategory", "is_crowd", "x", "y", "w", "h", "area"]
    subjects = {}
    for name in ("subj01", "subj02"):
        shown = rng.permutation(np.repeat(images, 3))
        trials = pd.DataFrame(
            {"nsd_id": shown, "session": np.arange(480) // 120, "run": np.arange(480) // 60 % 2}
        )
        trials["repetition"] = trials.groupby("nsd_id").cumcount() + 1
        subjects[name] = SimpleNamespace(trials=trials)
    return MadeUp(
        subjects=tuple(subjects),
        subject=subjects.get,
        stimuli=pd.DataFrame({"part": parts}, index=pd.Index(images, name="nsd_id")),
        objects=pd.DataFrame(rows, columns=columns).set_index("nsd_id"),
        captions={int(image): ("A place.",) for image in images},
    )


@pytest.fixture(scope="module")
def asked(made_up):
    found = memory_exchanges(made_up, license_name="none", seed=4)
    assert len(checked(found, "memory")) == len(found)
    return {task: [one for one in found if one.task == task] for task in (SEEN, BEFORE)}


def trial_of(made_up, one):
    trials = made_up.subject(one.subject).trials
    return trials, trials.iloc[one.row]


def test_an_image_was_seen_if_it_is_not_its_first_showing(made_up, asked):
    for one in asked[SEEN]:
        trials, trial = trial_of(made_up, one)
        assert trial["nsd_id"] == one.nsd_id
        is_old = (trials["nsd_id"][: one.row] == one.nsd_id).any()
        assert one.answers == (("yes" if is_old else "no",),)


def test_both_answers_are_equally_frequent_in_each_run(made_up, asked):
    counts = Counter()
    for one in asked[SEEN]:
        _, trial = trial_of(made_up, one)
        part = made_up.stimuli["part"][one.nsd_id]
        counts[one.subject, part, trial["session"], trial["run"], one.answers[0][0]] += 1
    assert len(counts) > 20
    for *run, answer in counts:
        assert counts[(*run, answer)] == counts[(*run, "no" if answer == "yes" else "yes")]


def test_the_object_was_in_the_earlier_image_and_the_other_one_was_not(made_up, asked):
    shown = made_up.objects["category"]
    assert {lag for one in asked[BEFORE] for words, lag in LAGS.items() if words in one.questions[0]} == {
        1,
        2,
        3,
        4,
        5,
    }
    for one in asked[BEFORE]:
        trials, trial = trial_of(made_up, one)
        (lag,) = [lag for words, lag in LAGS.items() if words in one.questions[0]]
        earlier = trials.iloc[one.row - lag]
        assert earlier["session"] == trial["session"]
        assert made_up.stimuli["part"][earlier["nsd_id"]] == made_up.stimuli["part"][one.nsd_id]
        assert one.answers == ((shown[earlier["nsd_id"]],),)
        assert set(one.options[0]) >= {one.answers[0][0]} and len(one.options[0]) == 2
        assert shown[one.nsd_id] not in one.options[0]
        assert all(with_article(name) in one.questions[0] for name in one.options[0])


def test_the_same_question_is_asked_of_two_trials_with_different_answers(made_up, asked):
    answers = {}
    for one in asked[BEFORE]:
        _, trial = trial_of(made_up, one)
        part = made_up.stimuli["part"][one.nsd_id]
        answers.setdefault((one.subject, part, trial["session"], one.questions[0]), Counter())[
            one.answers[0][0]
        ] += 1
    assert len(answers) > 20
    for counts in answers.values():
        assert len(counts) == 2 and len(set(counts.values())) == 1


def test_each_trial_is_asked_once_and_the_seed_decides(made_up, asked):
    for found in asked.values():
        assert len({one.trial for one in found}) == len(found) > 50
    assert memory_exchanges(made_up, license_name="none", seed=4) == [*sorted_as_made(asked)]
    assert memory_exchanges(made_up, license_name="none", seed=5) != [*sorted_as_made(asked)]


def sorted_as_made(asked):
    """By subject, then by task, as they are made."""
    return (
        one
        for name in ("subj01", "subj02")
        for task in (SEEN, BEFORE)
        for one in asked[task]
        if one.subject == name
    )


def test_a_store_keeps_them_apart_from_questions_about_images(easy_release, tmp_path, capsys):
    for name in ("one", "again"):
        shutil.copytree(easy_release / "store", tmp_path / name)
        main(["tasks", str(tmp_path / name), "--derive", "--memory"])
    assert "seen" in capsys.readouterr().out
    store, again = (open_store(tmp_path / name) for name in ("one", "again"))
    of_trials, of_images = exchanges(store, of_trials=True), exchanges(store)
    assert {one.task for one in of_trials} == {SEEN, BEFORE} and all(one.trial for one in of_trials)
    assert {one.task for one in of_images}.isdisjoint({SEEN, BEFORE})
    assert not any(one.trial for one in of_images)
    assert exchanges(again, of_trials=True) == of_trials
    mixture = TaskMixture.of(store, {SEEN: 1.0}, store.stimuli.index)
    one = next(one for one in of_trials if one.task == SEEN)
    assert mixture.draw(one.nsd_id, seed=0, epoch=0, index=0) is None
    assert mixture.draw(one.nsd_id, seed=0, epoch=0, index=0, trial=one.trial) == one
