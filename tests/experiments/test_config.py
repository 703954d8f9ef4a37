import re
import shutil

import pytest
import yaml

from bitllm.errors import ConfigError
from bitllm.experiments.config import (
    ExperimentConfig,
    experiment_names,
    read_experiment,
    read_experiments,
)
from bitllm.pipeline.recipe import read_recipe


def values_of(name, experiments):
    """A configuration as it is in its file, with its recipe read."""
    values = yaml.safe_load((experiments / name / "config.yaml").read_text())
    return values | {"recipe": read_recipe(str(experiments / "recipes" / f"{values['recipe']}.yaml"))}


def test_every_question_has_its_prediction_and_a_quick_version(experiments):
    names = experiment_names(experiments)
    listed = re.findall(
        r"^\| \[(\w+)\]\(\1/README.md\) \|", (experiments / "README.md").read_text(), re.MULTILINE
    )
    assert set(listed) == set(names)
    for name in names:
        readme = (experiments / name / "README.md").read_text(encoding="utf-8")
        for part in ("**Question.**", "**Prediction**", "**Command.**", "**Result.**", "**Verdict.**"):
            assert part in readme
        config = read_experiment(name, experiments)
        assert f"**Question.** {config.question}" in readme
        assert len(config.simulator_seeds) >= 3 or "One brain decides nothing" in readme
        quick = read_experiment(name, experiments, is_quick=True)
        assert (len(quick.worlds), list(quick.systems)) == (1, list(config.systems))
        assert quick.claims == config.claims


def test_all_brains_come_with_the_first_model_seed_then_with_the_next(experiments):
    worlds = read_experiment("interface", experiments).worlds
    assert [models for _, models in worlds] == sorted(models for _, models in worlds)
    assert [brain for brain, _ in worlds[:5]] == [brain for brain, _ in worlds[5:10]] == [11, 12, 13, 14, 15]


def test_systems_differ_only_in_what_the_question_asks(experiments):
    config = read_experiment("interface", experiments)
    plain, other = (config.recipe_of(name).model_dump() for name in ("cross_attention", "prefix_mlp"))
    assert plain == config.recipe.model_dump()
    assert other == plain | {"sft": plain["sft"] | {"interface": "prefix_mlp"}}


def test_a_system_that_starts_from_another_has_its_data_and_settings(experiments):
    values = values_of("reward", experiments)
    values["systems"] = {
        "sft": {"data": {"signal": 0.5}, "sft": {"gate_start": 0.5}},
        "rft": {"start": "sft", "rft": {"kl_weight": 0.1}},
    }
    values["claims"] = []
    recipe = ExperimentConfig.parse(values).recipe_of("rft")
    assert (recipe.data.signal, recipe.sft.gate_start, recipe.rft.kl_weight) == (0.5, 0.5, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"systems": {"prefix": {"sft": {"interfase": "prefix"}}}},
            "`sft.interfase`; did you mean `interface`",
        ),
        ({"systems": {"prefix": {"data": {"signl": 1}}}}, "`data.signl`; did you mean `signal`"),
        ({"systems": {"rft": {"start": "sft", "rft": {}}, "sft": {}}}, "systems.rft.*sft above it"),
        ({"systems": {"rft": {"rft": {}}}}, "systems.rft.start"),
        ({"systems": {"cross_attention": {}, "prefix": {}}}, r"prefix_mlp`; did you mean `prefix`\?"),
        ({"systems": {"rft": {"start": "stf", "rft": {}}, "sft": {}}}, r"stf`; did you mean `sft`\?"),
        ({"systems": {"a": {"rate_of": "b"}, "b": {}}}, "systems.a.*b above it"),
        ({"systems": {"../out": {}}}, "a system .*'../out'"),
        ({"systems": {"a": {}, "b": {"start": "a"}, "c": {"start": "b"}}}, "systems.c.start"),
        (
            {"systems": {"a": {}, "b": {"start": "a", "rft": {}, "sft": {"gate_start": 0.5}}}},
            "systems.b`: .* sft",
        ),
        ({"systems": {"a": {}, "b": {"start": "a", "encoder": {"rank": 8}}}}, "systems.b`: .* encoder"),
        (
            {"systems": {"a": {}, "b": {"rate_of": "a", "learning_rates": [0.1]}}},
            "systems.b`: .* learning_rates",
        ),
        ({"along": {"prefx": 1.0}}, r"prefx`; did you mean `prefix`\?"),
        ({"simulator_seeds": [11, 11]}, "simulator_seeds"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, message, experiments):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.parse(values_of("interface", experiments) | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"less": {"system": "prefix", "control": "other_subject"}}, "other_subject"),
        ({"measure": "cosine_zero"}, "diagnostics: true"),
        ({"measure": "accuracy", "task": "count"}, r"trained on \(none\), found `count`"),
        ({"measure": "bits", "less": {"system": "prefix", "control": "zero"}}, "bits .* prefix .zero."),
        (
            {"measure": "recall_at_10", "more": {"system": "prefix", "control": "noise"}},
            "real, permuted, zero, sh",
        ),
    ],
)
def test_a_claim_that_no_run_could_answer_is_refused_before_it(change, message, experiments):
    values = values_of("interface", experiments)
    values["claims"][0] |= change
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.parse(values)


@pytest.mark.parametrize(
    "wrong",
    [
        {"systems": {"prefix": None}},
        {"simulator_seeds": 3},
        {"systems": None},
        {"systems": {"prefix": {"sft": {"optimizer": 3}}}},
    ],
)
def test_a_wrong_configuration_is_one_line_in_the_quick_version_too(wrong, experiments, tmp_path):
    shutil.copytree(experiments / "recipes", tmp_path / "recipes")
    values = yaml.safe_load((experiments / "interface" / "config.yaml").read_text()) | wrong
    (tmp_path / "interface").mkdir()
    (tmp_path / "interface" / "config.yaml").write_text(yaml.safe_dump(values))
    for is_quick in (False, True):
        with pytest.raises(ConfigError, match=r"config.yaml|systems.prefix"):
            read_experiment("interface", tmp_path, is_quick=is_quick)


def test_own_learning_rates_replace_those_of_the_experiment(experiments):
    config = read_experiment("adaptation", experiments)
    assert config.grid_of("few") == (0.0001, 0.0003, 0.001)
    assert config.grid_of("pooled") == (0.003,)
    assert config.grid_of("mixed") == (0.001, 0.003, 0.01, 0.03), "of which it takes the one of pooled"


def test_fewer_worlds_are_the_first_ones(experiments):
    config = read_experiment("interface", experiments)
    assert config.first(2, 1).worlds == ((11, 0), (12, 0))
    assert config.first(None, None) == config
    for brains, models, option in (
        (0, None, "--seeds of 1 to 5"),
        (9, None, "--seeds"),
        (None, 0, "--model-seeds"),
    ):
        with pytest.raises(ConfigError, match=option):
            config.first(brains, models)


def test_questions_that_are_not_there_or_none_are_refused(experiments, tmp_path):
    with pytest.raises(ConfigError, match="did you mean `interface`"):
        read_experiments(("interfase",), experiments, is_quick=False)
    with pytest.raises(ConfigError, match="adaptation, adapters"):
        read_experiments((), experiments, is_quick=False)
    with pytest.raises(ConfigError, match=r"smollm2 \(smollm2\)"):
        read_experiments(("interface", "smollm2"), experiments, is_quick=False)
    with pytest.raises(ConfigError, match=r"questions \(questions\)"):
        read_experiments(
            ("interface", "questions"), experiments, is_quick=True
        )  # its small LLM knows questions
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        experiment_names(tmp_path)
