"""What worlds are made of, what a run plans, and how processes divide it."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bitllm.data.store import open_store
from bitllm.errors import ConfigError, OutputError, SplitError
from bitllm.experiments.brain import changed_split, places_from_indices
from bitllm.experiments.config import SplitChanges, read_experiment
from bitllm.experiments.engine import Laboratory, Unit, plan_of
from bitllm.experiments.plan import Plan, Step
from bitllm.experiments.record import Kept
from bitllm.experiments.systems import Trained
from bitllm.experiments.world import World
from bitllm.pipeline.steps import Steps


def quiet(*said):
    """Nobody listens."""


def test_two_runs_in_one_folder_divide_the_work(tmp_path):
    """Each unit is done by one of them, and neither ends before all are; at first they are at two places."""
    steps = [Steps(tmp_path / "out", quiet, "reproduce") for _ in range(2)]
    done, both_are_in = [], threading.Barrier(2, timeout=20)

    def work(which):
        laboratory = object.__new__(Laboratory)
        laboratory.steps = steps[which]

        def unit(name):
            if name in ("step 0", "step 1"):  # each process is in one of the two
                both_are_in.wait()
            steps[which].run(name, lambda: done.append(name), settings=None)

        units = {
            f"unit {number}": Unit(f"place {number % 2}", partial(unit, f"step {number}"))
            for number in range(4)
        }
        laboratory.divide(units)
        ended.append(sorted(done))

    ended = []
    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert ended == [[f"step {number}" for number in range(4)]] * 2


def test_the_time_left_is_that_of_the_recipe_corrected_by_what_was_measured():
    plan = Plan(
        [Step(("a",), "sft"), Step(("b", "b2"), "sft"), Step(("c",), "rft"), Step(("c",), "rft")],
        {"sft": 10.0, "rft": 60.0},
    )
    assert plan.minutes_left({}) == pytest.approx(80 / 60)
    assert plan.minutes_left({"a": 20.0, "of another question": 500.0}) == pytest.approx(2 * 70 / 60)
    assert "3 steps to do: 2 sft, 1 rft" in plan.in_words({})
    assert plan.minutes_left({"a": 1.0, "b2": 1.0, "c": 1.0}) == 0


def test_how_long_a_recipe_without_seconds_takes_is_not_made_up():
    plan = Plan([Step(("a",), "sft"), Step(("b",), "rft")], {"sft": 10.0})
    assert plan.in_words({}).endswith("how long is not known: the recipe gives no seconds for rft")
    assert "about 0 min" in plan.in_words({"b": 5.0, "a": 5.0})


def test_the_plan_counts_what_is_shared_once(experiments, tmp_path):
    configs = {name: read_experiment(name, experiments) for name in ("perturbation", "reward")}
    laboratory = Laboratory(tmp_path / "out", configs, tell=quiet, progress=quiet)
    kinds = [step.kind for step in plan_of(laboratory).steps]
    assert kinds.count("data") == 5
    assert kinds.count("clip") == kinds.count("llm") == 15
    assert kinds.count("align") == 15 + 1
    assert kinds.count("sft") == 2 * (15 + 4), "cross_attention and prefix_mlp"
    assert kinds.count("rft") == 5 * (15 + 3)


def test_worlds_that_are_kept_are_not_planned(experiments, tmp_path):
    config = read_experiment("subjects", experiments).model_copy(update={"model_seeds": (0, 1)})
    rates = {system: {"chosen": 0.003} for system in config.systems}
    record = {"worlds": [f"brain{brain}-models0" for brain in (11, 12, 13)], "learning_rates": rates}
    kept = {"subjects": Kept(pd.DataFrame({"world": record["worlds"]}), record)}
    laboratory = Laboratory(tmp_path / "out", {"subjects": config}, tell=quiet, progress=quiet, kept=kept)
    assert [seeds for _, seeds in laboratory.units()] == [(11, 1), (12, 1), (13, 1)]
    steps = plan_of(laboratory).steps
    assert [step.kind for step in steps].count("sft") == 3 * 4, "no learning rate is tried"
    assert all(len(step.names) == 1 for step in steps)


def test_places_from_indices_keep_everything_but_the_places(easy, tmp_path):
    places_from_indices(easy.store, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.sha256 != easy.store.sha256
    for subject in store.subjects:
        now, before = store.subject(subject), easy.store.subject(subject)
        np.testing.assert_array_equal(now.betas, before.betas)
        places = now.voxels[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float64)
        indices = before.voxels[["i", "j", "k"]].to_numpy(np.float64)
        for axis in range(3):
            assert np.corrcoef(places[:, axis], indices[:, axis])[0, 1] > 0.9999
        assert abs(places.mean()) < 1e-3


def test_a_changed_split_keeps_training_and_test_apart(easy):
    store = easy.store
    one = changed_split(store, "poster", SplitChanges(n_train_subjects=1), seed=0)
    assert one.train_subjects == store.subjects[:1]
    plain = changed_split(store, "poster", SplitChanges(), seed=0)
    half = changed_split(store, "poster", SplitChanges(training_share=0.5), seed=0)
    assert len(half.train_images) == pytest.approx(len(plain.train_images) / 2, abs=1)
    assert half.train_images < plain.train_images
    other = changed_split(store, "poster", SplitChanges(held_out=store.subjects[0]), seed=0)
    assert other.test_subjects == (store.subjects[0],)
    assert set(other.train_subjects) == set(store.subjects[1:])
    assert not other.train_images & other.test_images
    shots = changed_split(store, "poster", SplitChanges(n_shots=9), seed=0)
    assert shots.train_subjects == store.subjects
    more = shots.train_images - plain.train_images
    (held_out,) = shots.test_subjects
    n_trials = store.subject(held_out).trials["nsd_id"].isin(more).sum()
    assert 9 <= n_trials <= 11, "images come whole, with up to three trials"
    assert not shots.train_images & shots.test_images
    alone = changed_split(store, "develop", SplitChanges(n_shots_alone=9), seed=0)
    assert alone.train_subjects == alone.test_subjects == (store.subjects[-2],)
    assert 9 <= store.subject(store.subjects[-2]).trials["nsd_id"].isin(alone.train_images).sum() <= 11
    assert not alone.train_images & (alone.validation_images | alone.test_images)
    with pytest.raises(SplitError, match="at least one training trial and at most"):
        changed_split(store, "poster", SplitChanges(n_shots=10**6), seed=0)
    with pytest.raises(ConfigError, match="held_out: expected one of"):
        changed_split(store, "poster", SplitChanges(held_out="subj99"), seed=0)
    with pytest.raises(ConfigError, match="n_train_subjects: expected at most"):
        changed_split(store, "poster", SplitChanges(n_train_subjects=99), seed=0)


def test_systems_that_differ_lie_in_different_folders_and_equal_ones_in_one(experiments, tmp_path):
    steps = Steps(tmp_path / "out", quiet, "reproduce")
    places: dict[Path, set[str]] = {}
    for name in ("interface", "reward", "adapters", "subjects"):
        config = read_experiment(name, experiments)
        world = World(tmp_path, config.recipe, 11, 0, steps, quiet)
        rates = {system: config.grid_of(system)[0] for system in config.systems}
        for system in config.systems:
            folder = Trained(world, config, "poster", system, rates).folder
            places.setdefault(folder, set()).add(f"{name} {system}")
    shared = [names for names in places.values() if len(names) > 1]
    assert shared == [{"interface cross_attention", "reward sft", "adapters every_layer", "subjects seven"}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"preset": "demo"}, "preset .*recipe preset"),
        ({"max_new_tokens": 15}, "recipe max_new_tokens"),
        ({"llm": "smollm2"}, "recipe llm"),
    ],
)
def test_a_folder_holds_worlds_of_one_recipe(change, told, experiments, tmp_path):
    config = read_experiment("interface", experiments, is_quick=True)
    for seconds in ({}, {"sft": 3.0}):  # how long steps take decides nothing
        recipe = config.recipe.model_copy(update={"seconds": seconds})
        config = config.model_copy(update={"recipe": recipe})
        Laboratory(tmp_path, {"interface": config}, tell=quiet, progress=quiet)
    other = config.model_copy(update={"recipe": config.recipe.model_copy(update=change)})
    parts = "|".join(told.split(" .*"))
    with pytest.raises(
        OutputError, match=f"found some that were made with another .*({parts}).*; name a new folder"
    ):
        Laboratory(tmp_path, {"interface": other}, tell=quiet, progress=quiet)


def test_a_folder_of_an_earlier_version_is_refused(experiments, tmp_path, monkeypatch):
    config = read_experiment("interface", experiments, is_quick=True)
    Laboratory(tmp_path, {"interface": config}, tell=quiet, progress=quiet)
    monkeypatch.setattr("bitllm.experiments.record.SIMULATION_VERSION", 99)
    with pytest.raises(OutputError, match="made with another simulation; name"):
        Laboratory(tmp_path, {"interface": config}, tell=quiet, progress=quiet)


def test_single_trials_have_rows_of_their_own(experiments, tmp_path):
    config = read_experiment("repetitions", experiments, is_quick=True)
    world = World(tmp_path, config.recipe, 0, 0, Steps(tmp_path / "out", quiet, "reproduce"), quiet)
    averaged, single = (
        Trained(world, config, "poster", name, {name: 0.003}) for name in ("averaged", "single")
    )
    assert averaged.folder == single.folder
    assert averaged.rows_path != single.rows_path
    assert averaged.encoder_path != single.encoder_path
    assert averaged.encoder_step != single.encoder_step
