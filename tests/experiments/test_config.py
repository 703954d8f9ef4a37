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
from bitllm.experiments.plan import fewer_worlds
from bitllm.experiments.recipe import read_recipe


def values_of(name, experiments):
    """A configuration as it stands in its file, with its recipe read."""
    values = yaml.safe_load((experiments / name / "config.yaml").read_text())
    return values | {"recipe": read_recipe(experiments, values["recipe"]).model_dump()}


def test_every_question_has_its_prediction_and_a_quick_version(experiments):
    for name in experiment_names(experiments):
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


def test_all_systems_differ_in_what_is_asked_alone(experiments):
    config = read_experiment("interface", experiments)
    plain = config.sft_of("cross_attention", 0.003).model_dump()
    other = config.sft_of("prefix_mlp", 0.003).model_dump()
    assert {key for key in plain if plain[key] != other[key]} == {"interface"}
    assert config.sft_of("prefix", 0.01).optimizer.learning_rate == 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": {"prefix": {"sft": {"interfase": "prefix"}}}}, "unknown key `interfase`; did you mean"),
        ({"systems": {"rft": {"after": "sft"}, "sft": {}}}, "which must stand above it"),
        (
            {"systems": {"cross_attention": {}, "prefix": {}}},
            r"no system prefix_mlp; did you mean `prefix`\?",
        ),
        ({"systems": {"rft": {"after": "stf"}, "sft": {}}}, r"no system stf; did you mean `sft`\?"),
        ({"systems": {"a": {"rate_of": "b"}, "b": {}}}, "which must stand above it"),
        ({"systems": {"../out": {}}}, "a system .*'../out'"),
        ({"along": {"prefx": 1.0}}, r"no system prefx; did you mean `prefix`\?"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, message, experiments):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.parse(values_of("interface", experiments) | change)


def test_a_claim_about_a_control_that_does_not_run_is_refused(experiments):
    values = values_of("interface", experiments)
    values["claims"][0]["less"]["control"] = "other_subject"
    with pytest.raises(ConfigError, match="a claim needs the control other_subject"):
        ExperimentConfig.parse(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "cosine_zero"}, "which `diagnostics: true` measures"),
        ({"measure": "bits", "less": {"system": "prefix", "control": "zero"}}, "is measured for real alone"),
        (
            {"measure": "recall_at_10", "more": {"system": "prefix", "control": "noise"}},
            "for real, permuted, zero, sh",
        ),
    ],
)
def test_a_claim_that_no_run_could_answer_is_refused_before_it(change, message, experiments):
    values = values_of("interface", experiments)
    values["claims"][0] |= change
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.parse(values)


@pytest.mark.parametrize(
    ("system", "idle"),
    [
        ({"after": "sft", "simulation": {"signal": 0.0}}, "simulation"),
        ({"after": "sft", "split": {"n_train_subjects": 2}, "sft": {"interface": "prefix"}}, "split, sft"),
        ({"reward_references": "permuted"}, "reward_references"),
        ({"rft": {"kl_weight": 0.1}}, "rft"),
        ({"rate_of": "sft", "learning_rates": [0.01]}, "learning_rates"),
    ],
)
def test_what_a_system_would_not_read_is_refused(system, idle, experiments):
    values = values_of("reward", experiments)
    values["systems"]["another"] = system
    with pytest.raises(ConfigError, match=f"system another: {idle} would change nothing"):
        ExperimentConfig.parse(values)


@pytest.mark.parametrize("wrong", [{"systems": {"prefix": None}}, {"simulator_seeds": 3}, {"systems": None}])
def test_a_wrong_configuration_is_one_line_in_the_quick_version_too(wrong, experiments, tmp_path):
    shutil.copytree(experiments / "recipes", tmp_path / "recipes")
    values = yaml.safe_load((experiments / "interface" / "config.yaml").read_text()) | wrong
    (tmp_path / "interface").mkdir()
    (tmp_path / "interface" / "config.yaml").write_text(yaml.safe_dump(values))
    for is_quick in (False, True):
        with pytest.raises(ConfigError, match=r"config.yaml"):
            read_experiment("interface", tmp_path, is_quick=is_quick)


def test_an_optimizer_that_is_none_is_refused_in_one_line(experiments):
    values = values_of("interface", experiments)
    values["systems"]["prefix"]["sft"]["optimizer"] = 3
    with pytest.raises(ConfigError, match="optimizer"):
        ExperimentConfig.parse(values)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"goes_on": "pooled"}, "expected goes_on and split.n_shots_alone together"),
        ({"split": {"n_shots_alone": 50}}, "expected goes_on and split.n_shots_alone together"),
        (
            {"goes_on": "session", "split": {"n_shots_alone": 50}},
            "starts from session, which must start from an",
        ),
        ({"goes_on": "poled", "split": {"n_shots_alone": 50}}, "did you mean `pooled`"),
    ],
)
def test_what_goes_on_needs_trials_of_its_own_and_a_system_to_start_from(system, message, experiments):
    values = values_of("adaptation", experiments)
    values["systems"]["another"] = system
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.parse(values)


def test_own_learning_rates_stand_for_those_of_the_recipe(experiments):
    config = read_experiment("adaptation", experiments)
    assert config.rates_of("few") == (0.0001, 0.0003, 0.001)
    assert config.rates_of("pooled") == (0.003,)
    assert config.rates_of("mixed") == ()


def test_fewer_worlds_are_the_first_ones(experiments):
    config = read_experiment("interface", experiments)
    assert fewer_worlds(config, 2, 1).worlds == ((11, 0), (12, 0))
    assert fewer_worlds(config, None, None) == config
    for brains, models, option in (
        (0, None, "--seeds of 1 to 5"),
        (9, None, "--seeds"),
        (None, 0, "--model-seeds"),
    ):
        with pytest.raises(ConfigError, match=f"expected {option}"):
            fewer_worlds(config, brains, models)


def test_questions_that_are_not_there_or_none_are_refused(experiments, tmp_path):
    with pytest.raises(ConfigError, match="did you mean `interface`"):
        read_experiments(("interfase",), experiments, is_quick=False)
    with pytest.raises(ConfigError, match="found none; name one"):
        read_experiments((), experiments, is_quick=False)
    with pytest.raises(ConfigError, match="expected a folder with experiments"):
        experiment_names(tmp_path)
