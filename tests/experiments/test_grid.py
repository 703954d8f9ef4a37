"""What the systems of a grid share, what a run plans, and how processes divide it."""

import pandas as pd
import pytest

from bitllm.errors import OutputError
from bitllm.experiments.config import read_experiment
from bitllm.experiments.engine import Grid, Plan, plan_of
from bitllm.experiments.grid import Cell
from bitllm.experiments.record import Kept


def quiet(*said):
    """Nobody listens."""


def grid_of(out, configs, **more):
    return Grid(out, configs, tell=quiet, progress=quiet, **more)


def cell_of(grid, name, system, split="poster", rate=0.003):
    config = grid.experiments[name]
    rates = dict.fromkeys(config.systems, rate)
    return Cell(grid.world((11, 0)), config, split, system, rates)


def test_the_time_left_is_that_of_the_recipe_corrected_by_what_was_measured():
    steps = [(("a",), "sft"), (("b", "b2"), "sft"), (("c",), "rft"), (("c",), "rft")]
    plan = Plan(steps, {"sft": 10.0, "rft": 60.0})
    assert plan.minutes_left({}) == pytest.approx(80 / 60)
    assert plan.minutes_left({"a": 20.0, "of another question": 500.0}) == pytest.approx(2 * 70 / 60)
    assert "3 steps to do: 2 sft, 1 rft" in plan.in_words({})
    assert plan.minutes_left({"a": 1.0, "b2": 1.0, "c": 1.0}) == 0
    untimed = Plan(steps, {"sft": 10.0})
    assert "not known: rft" in untimed.in_words({})
    assert "about 0 min" in untimed.in_words({"c": 5.0, "a": 5.0, "b": 5.0})


def test_the_plan_counts_shared_steps_once(experiments, tmp_path):
    configs = {name: read_experiment(name, experiments) for name in ("perturbation", "reward")}
    kinds = list(plan_of(grid_of(tmp_path / "out", configs)).steps.values())
    assert kinds.count("data") == 5
    assert kinds.count("clip") == kinds.count("llm") == kinds.count("targets") == 15
    assert kinds.count("align") == 15 + 1
    assert kinds.count("sft") == 2 * (15 + 4), "cross_attention and prefix_mlp"
    assert kinds.count("rft") == 5 * (15 + 3)
    assert kinds.count("judge") == kinds.count("sft") + kinds.count("rft")


def test_published_worlds_are_not_planned(experiments, tmp_path):
    config = read_experiment("subjects", experiments).model_copy(update={"model_seeds": (0, 1)})
    rates = {system: {"chosen": 0.003} for system in config.systems}
    record = {"worlds": [f"brain{brain}-models0" for brain in (11, 12, 13)], "learning_rates": rates}
    kept = {"subjects": Kept(pd.DataFrame({"world": record["worlds"]}), record)}
    grid = grid_of(tmp_path / "out", {"subjects": config}, kept=kept)
    assert [seeds for _, seeds in grid.units()] == [(11, 1), (12, 1), (13, 1)]
    steps = plan_of(grid).steps
    assert list(steps.values()).count("sft") == 3 * 4, "no learning rate is tried"
    assert all(len(names) == 1 for names in steps)


def test_different_systems_have_different_folders_and_equal_ones_share_one(experiments, tmp_path):
    names = ("interface", "reward", "adapters", "subjects")
    grid = grid_of(tmp_path, {name: read_experiment(name, experiments) for name in names})
    places = {}
    for name in names:
        for system in grid.experiments[name].systems:
            places.setdefault(cell_of(grid, name, system).step, set()).add(f"{name} {system}")
    shared = [systems for systems in places.values() if len(systems) > 1]
    assert shared == [{"interface cross_attention", "reward sft", "adapters every_layer", "subjects seven"}]


def test_what_a_system_changes_decides_which_brain_and_align_it_shares(experiments, tmp_path):
    names = ("signal", "leave_one_out", "adaptation", "coordinates")
    grid = grid_of(tmp_path, {name: read_experiment(name, experiments) for name in names})
    plain, weak = cell_of(grid, "signal", "usual"), cell_of(grid, "signal", "half")
    assert grid.world((11, 0)).brain_name(weak.changes) == "brain11 signal=0.5"
    assert (plain.place, weak.place) == ("brain11-models0 poster", "brain11-models0 poster signal=0.5")
    assert plain.label == weak.label
    prefix = cell_of(grid, "signal", "none_prefix_mlp")
    assert prefix.place == cell_of(grid, "signal", "none").place
    other = cell_of(grid, "leave_one_out", "subj03")
    assert other.place.endswith("held_out=subj03")
    assert cell_of(grid, "leave_one_out", "subj03", "develop").place == "brain11-models0 develop"
    child = cell_of(grid, "adaptation", "session")
    assert (child.place, child.parent.step) == ("brain11-models0 poster n_shots_alone=750", plain.step)
    assert not child.starts_from_align
    assert cell_of(grid, "adaptation", "session", rate=0.001).label != child.label


def test_single_trials_have_rows_of_their_own(experiments, tmp_path):
    grid = grid_of(tmp_path, {"repetitions": read_experiment("repetitions", experiments)})
    averaged, single = (cell_of(grid, "repetitions", name) for name in ("averaged", "single"))
    assert averaged.step == single.step
    assert averaged.path("judge") != single.path("judge")
    assert averaged.path("encoder") != single.path("encoder")


@pytest.mark.parametrize(
    ("part", "change"),
    [("data", {"signal": 2.0}), ("evaluation", {"max_new_tokens": 15}), ("llm", {"source": "smollm2"})],
)
def test_a_folder_has_worlds_of_one_recipe(part, change, experiments, tmp_path):
    config = read_experiment("interface", experiments, is_quick=True)
    for steps in (100, 50):  # how often a checkpoint is written changes no result
        trainer = config.recipe.trainer.model_copy(update={"save_every": steps})
        recipe = config.recipe.model_copy(update={"trainer": trainer})
        grid_of(tmp_path, {"interface": config.model_copy(update={"recipe": recipe})})
    changed = getattr(config.recipe, part).model_copy(update=change)
    recipe = config.recipe.model_copy(update={part: changed})
    with pytest.raises(OutputError, match=f"another {part}"):
        grid_of(tmp_path, {"interface": config.model_copy(update={"recipe": recipe})})


def test_a_folder_of_an_earlier_version_is_refused(experiments, tmp_path, monkeypatch):
    config = read_experiment("interface", experiments, is_quick=True)
    grid_of(tmp_path, {"interface": config})
    monkeypatch.setattr("bitllm.experiments.record.SIMULATION_VERSION", 99)
    with pytest.raises(OutputError, match="another simulation"):
        grid_of(tmp_path, {"interface": config})
