"""Questions derived from objects: true, balanced, and the same for the same seed."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from bitllm.data.tasks import checked
from bitllm.data.tasks.derive import DERIVED_TASKS, derived_exchanges, plural, with_article

NAMES = ("dog", "umbrella", "fire hydrant", "person", "skis")
N = 400


@pytest.fixture(scope="module")
def world():
    """Random objects of 400 images, their captions and parts."""
    rng = np.random.default_rng(5)
    rows = []
    for nsd_id in range(N):
        for name in rng.choice(NAMES, rng.integers(0, 4), p=[0.3, 0.3, 0.1, 0.2, 0.1]):
            crowd = name == "person" and rng.random() < 0.3
            rows += [(nsd_id, name, "thing", crowd, *rng.uniform(0, 0.5, 4), rng.uniform(0, 0.2))] * int(
                rng.choice([1, 1, 2, 3])
            )
    columns = ["nsd_id", "category", "supercategory", "is_crowd", "x", "y", "w", "h", "area"]
    objects = pd.DataFrame(rows, columns=columns).set_index("nsd_id")
    captions = {n: ("Two umbrellas.",) if n % 7 == 0 else ("A place.",) for n in range(N)}
    part = np.where(np.arange(N) % 5 == 0, "test", np.where(np.arange(N) % 5 == 1, "validation", "train"))
    stimuli = pd.DataFrame({"part": part}, index=pd.RangeIndex(N, name="nsd_id"))
    return objects, captions, stimuli


@pytest.fixture(scope="module")
def asked(world):
    """The derived questions by task."""
    found = derived_exchanges(*world, license_name="CC BY 4.0", seed=3)
    assert len(checked(found, "derived")) == len(found)
    return {task: [one for one in found if one.task == task] for task in DERIVED_TASKS}


def of_image(objects, nsd_id):
    return objects[objects.index == nsd_id]


def test_yes_and_no_are_equally_frequent_for_every_category_and_part(world, asked):
    counts = Counter(
        (one.questions[0], world[2]["part"][one.nsd_id], one.answers[0][0]) for one in asked["presence"]
    )
    assert len(counts) > 20
    for question, part, answer in counts:
        other = "no" if answer == "yes" else "yes"
        assert counts[question, part, answer] == counts[question, part, other]


def test_an_object_is_present_where_it_is_annotated_and_absent_where_nothing_names_it(world, asked):
    objects, captions, _ = world
    for one in asked["presence"]:
        name = next(name for name in NAMES if with_article(name) in one.questions[0])
        annotated = name in of_image(objects, one.nsd_id)["category"].tolist()
        assert annotated == (one.answers[0] == ("yes",))
        if not annotated and name == "umbrella":
            assert captions[one.nsd_id] == ("A place.",)


def test_counts_leave_crowds_out_and_half_of_them_are_above_one(world, asked):
    objects, _, stimuli = world
    for one in asked["count"]:
        rows = of_image(objects, one.nsd_id)
        name = next(name for name in NAMES if plural(name) in one.questions[0])
        rows = rows[rows["category"] == name]
        assert not rows["is_crowd"].any()
        assert one.answers[0][0] == str(len(rows))
    for part in ("train", "validation", "test"):
        numbers = [one.answers[0][0] for one in asked["count"] if stimuli["part"][one.nsd_id] == part]
        assert 0 < numbers.count("1") <= len(numbers) / 2


def test_the_question_of_a_choice_has_both_answers_equally_often(world, asked):
    objects, _, stimuli = world
    assert len(asked["choice"]) > 100
    answers: dict[tuple, Counter] = {}
    for one in asked["choice"]:
        right, names = one.answers[0][0], set(of_image(objects, one.nsd_id)["category"])
        assert names & set(one.options[0]) == {right}
        key = (one.questions[0], stimuli["part"][one.nsd_id])
        answers.setdefault(key, Counter())[right] += 1
    assert all(len(set(counts.values())) == 1 and len(counts) == 2 for counts in answers.values())


def test_all_categories_are_listed_with_the_largest_first(world, asked):
    objects = world[0][~world[0]["is_crowd"]]
    assert {one.nsd_id for one in asked["category"]} == set(objects.index)
    for one in asked["category"][:50]:
        areas = of_image(objects, one.nsd_id).groupby("category")["area"].sum()
        assert one.answers[0][0].split(", ") == areas.sort_values(ascending=False).index.tolist()


def test_sides_are_those_of_the_boxes_and_equally_frequent(world, asked):
    objects = world[0]
    counts = Counter()
    for one in asked["left_right"]:
        name = next(name for name in NAMES if f"the {name} on" in one.questions[0])
        (row,) = of_image(objects, one.nsd_id).query("category == @name").to_dict("records")
        center = row["x"] + row["w"] / 2
        assert abs(center - 0.5) >= 0.1
        assert one.answers[0] == (("left",) if center < 0.5 else ("right",))
        counts[name, world[2]["part"][one.nsd_id], one.answers[0][0]] += 1
    assert all(counts[n, p, "left"] == counts[n, p, "right"] for n, p, _ in counts)
    assert len(counts) > 10


def test_the_same_seed_gives_the_same_questions(world):
    first, second, third = (derived_exchanges(*world, license_name="", seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != third


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("dog", "dogs"),
        ("person", "people"),
        ("bus", "buses"),
        ("wine glass", "wine glasses"),
        ("sandwich", "sandwiches"),
        ("toothbrush", "toothbrushes"),
        ("baby", "babies"),
        ("boy", "boys"),
        ("skis", "skis"),
        ("knife", "knives"),
        ("computer mouse", "computer mice"),
    ],
)
def test_plurals(name, several):
    assert plural(name) == several


def test_articles():
    assert [with_article(name) for name in ("dog", "umbrella", "skis")] == [
        "a dog",
        "an umbrella",
        "any skis",
    ]
