import re
from pathlib import Path

import pytest
import yaml

from bitllm.cli import main
from bitllm.errors import ConfigError
from bitllm.pipeline.recipe import PACKAGED, Recipe, read_recipe
from bitllm.preflight.cost import count_parameters
from bitllm.simulation.parameters import PRESETS

OF_EXPERIMENTS = sorted(str(path) for path in Path(__file__).parents[2].glob("experiments/recipes/*.yaml"))
SMALL = """
data: {preset: tiny}
encoder: {n_queries: 8}
"""


def test_the_recipes_of_haxby_train_encoder_and_interface_together_on_folds():
    small, whole = read_recipe("haxby-small"), read_recipe("haxby")
    for recipe in (small, whole):
        assert recipe.system_names == ("sft",)
        assert (recipe.system("sft").start, recipe.sft.encoder) == ("random", "trained")
        assert recipe.is_of_folds
        assert not recipe.needs_clip
    assert small.encoder == whole.encoder


def test_the_recipe_with_questions_is_the_demos_sft_on_a_mixture_of_tasks():
    asked, demo = read_recipe("demo-questions"), read_recipe("demo")
    assert asked.system_names == ("sft",)
    assert asked.sft.tasks.keys() > {"caption", "count", "visdial"}
    assert asked.sft.model_copy(update={"tasks": demo.sft.tasks}) == demo.sft


@pytest.mark.parametrize(
    "name", [name for name in PACKAGED if not name.startswith("haxby") and name != "demo-questions"]
)
def test_every_packaged_recipe_is_valid(name):
    recipe = read_recipe(name)
    assert recipe.data.preset in PRESETS
    assert recipe.rft.max_new_tokens <= recipe.evaluation.max_new_tokens
    posters = ("prefix", "prefix_mlp", "no_align")
    variants = ("prefix_mlp", "instructed", "poster", "poster_rft") if name == "demo" else posters
    assert recipe.system_names == ("sft", "rft", *variants)
    is_best = name in ("demo", "best")
    assert (recipe.sft.encoder, recipe.rft.rewards.ip) == (("trained", 0.0) if is_best else ("frozen", 1.0))


def test_the_demo_trains_the_posters_method_with_the_settings_of_its_own_recipe_but_its_own_optimizer():
    demo, poster = read_recipe("demo"), read_recipe("demo-poster")

    def settings(stage):
        return stage.model_dump(exclude={"optimizer"})

    assert settings(demo.system("poster").sft) == settings(poster.sft)
    assert settings(demo.system("poster_rft").rft) == settings(poster.rft)
    assert settings(demo.system("prefix_mlp").sft) == settings(poster.system("prefix_mlp").sft)
    for name in ("poster", "prefix_mlp"):  # the optimizer is that of the demo's other systems
        assert demo.system(name).sft.optimizer == demo.sft.optimizer.model_copy(update={"steps": 200})
    assert demo.system("poster_rft").rft.optimizer == demo.rft.optimizer
    assert demo.system("instructed").sft.tasks.keys() == {"caption", "presence", "count", "vqa-v2"}


def pairs_of(name):
    recipe = read_recipe(name)
    return set(recipe.comparisons(recipe.system_names))


def test_a_system_is_compared_with_its_start_and_with_the_most_similar_of_its_stage():
    assert pairs_of("demo") == {
        ("rft", "sft"), ("instructed", "sft"), ("poster_rft", "poster"),  # each and its start
        ("sft", "poster"), ("rft", "poster_rft"),
        ("poster", "prefix_mlp"),  # as many steps as the poster's, on a frozen encoder like it
    }  # fmt: skip
    assert pairs_of("demo-poster") == {
        ("rft", "sft"), ("sft", "prefix"), ("sft", "prefix_mlp"), ("sft", "no_align"),
    }  # fmt: skip


def test_systems_that_are_not_there_are_compared_with_nothing():
    recipe = read_recipe("demo")
    assert recipe.comparisons(["sft", "prefix_mlp"]) == [("sft", "prefix_mlp")]
    assert recipe.comparisons(["rft", "instructed"]) == []


@pytest.mark.parametrize("name", [*PACKAGED, *OF_EXPERIMENTS])
def test_every_recipe_runs_with_params_and_preflight_and_is_read_by_demo_and_train(name, capsys):
    table = count_parameters(read_recipe(name)).to_json()
    for words in (["params", name], ["preflight", name, "--limit-gb", "0"]):
        main([*words, "--json"])
        assert f'"sft": {table["trainable"]["sft"]}' in capsys.readouterr().out
    steps = read_recipe(name).sft.optimizer.steps
    for words in (["demo", "--recipe", name], ["train", name]):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code in (0, None)
        said = capsys.readouterr().out
        assert re.search(rf"--sft\.optimizer\.steps\s(?:(?!--sft).)*\b{steps}\b", said, re.DOTALL)


def test_every_yaml_with_a_recipe_is_tested():
    root = Path(__file__).parents[2]
    with_recipes = [
        *root.glob("src/**/*.yaml"),
        *root.glob("configs/**/*.yaml"),
        *root.glob("experiments/recipes/*"),
    ]
    assert {path.stem for path in with_recipes} == {*PACKAGED, *(Path(name).stem for name in OF_EXPERIMENTS)}


def test_a_file_gives_the_same_as_its_values(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    assert read_recipe(str(tmp_path / "small.yaml")) == Recipe.parse(yaml.safe_load(SMALL))


def test_a_recipe_extends_another_key_by_key(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: smoke\nsft: {optimizer: {steps: 3}}\nseed: 4")
    (tmp_path / "yours.yaml").write_text("base: mine.yaml\nseed: 5")
    smoke, yours = read_recipe("smoke"), read_recipe(str(tmp_path / "yours.yaml"))
    assert (yours.seed, yours.sft.optimizer.steps) == (5, 3)
    assert yours.sft.optimizer.batch_size == smoke.sft.optimizer.batch_size
    assert yours.model_copy(update={"seed": 0, "sft": smoke.sft}) == smoke


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        read_recipe(str(tmp_path / "a.yaml"))


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"`demo-smolm2`; did you mean `demo-smollm2`"):
        read_recipe("demo-smolm2")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("dota: {}", r"unknown key `dota`; did you mean `data`\?"),
        ("data: {presett: tiny}", r"unknown key `data.presett`; did you mean `preset`\?"),
        ("data: {preset: tinny}", r"`tinny`; did you mean `tiny`"),
        ("data: {voxels: {}}", "data.voxels"),
        ("data: {voxels: {subj01: 0}}", "expected at least one voxel"),
        ("sft: {gate_strat: 1.0}", r"unknown key `sft.gate_strat`; did you mean `gate_start`\?"),
        ("sft: {encoder: learned}", "`sft.encoder`"),
        ("sft: {encoder_learning_rate: 0.1}", "frozen encoder"),
        ("rft: {n_captions: 1}", "`rft.n_captions`"),
        ("align: {optimizer: {step: 3}}", r"unknown key `align.optimizer.step`; did you mean `steps`\?"),
        ("evaluation: {max_new_tokens: 0}", r"`evaluation.max_new_tokens`: .* found 0"),
        ("llm: {sizes: {hidden_sizes: 3}}", r"unknown key `llm.sizes.hidden_sizes`"),
        ("variants: {mine: {sft: {interfase: prefix}}}", r"`interfase`; did you mean `interface`"),
        ("variants: {mine: {rft: {}, start: align}}", r"variants.mine.start"),
        ("data: {preset: tiny, misalignment_mm: -1}", "data.misalignment_mm"),
        ("data: {preset: tiny, training_share: 1.5}", "data.training_share"),
        ("data: {preset: tiny, fold: 2}", "leave-one-run-out"),
        ("stages: [rft]", "stages"),
        ("variants: {store: {}}", "variants.store"),
        ("variants: {../x: {}}", r"variants\.\.\./x"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(tmp_path, capsys, wrong, said):
    key = wrong.split(":")[0]
    lines = [line for line in SMALL.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "demo.yaml").write_text("\n".join([*lines, wrong]))
    with pytest.raises(ConfigError, match=said):
        read_recipe(str(tmp_path / "demo.yaml"))
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--recipe", str(tmp_path / "demo.yaml"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("command", ["train", "params", "preflight"])
def test_a_command_without_its_recipe_names_the_packaged_ones(command, capsys):
    with pytest.raises(SystemExit):
        main([command])
    assert "poster" in capsys.readouterr().err


def test_dotted_options_change_values_of_the_recipe(tmp_path, capsys):
    main(["params", "poster", "--sft.interface", "prefix", "--json"])
    assert '"sft": 3148800' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["params", "poster", "--sft.interfase", "prefix"])
    assert "--sft.interface" in capsys.readouterr().err


def test_sizes_of_an_llm_are_read_from_its_folder(demo_folder, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"base: smoke\nllm: {{source: {demo_folder / 'llm'}, sizes: null}}")
    mine, smoke = (count_parameters(read_recipe(name)) for name in (str(tmp_path / "mine.yaml"), "smoke"))
    assert mine == smoke
    config = Path(demo_folder / "llm" / "config.json").read_text().replace('"llama"', '"gpt2"')
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(config)
    (tmp_path / "other.yaml").write_text(f"base: smoke\nllm: {{source: {tmp_path / 'gpt2'}, sizes: null}}")
    with pytest.raises(ConfigError, match="gpt2"):
        count_parameters(read_recipe(str(tmp_path / "other.yaml")))
    (tmp_path / "hub.yaml").write_text("base: smoke\nllm: {source: someone/llama, sizes: null}")
    with pytest.raises(ConfigError, match=r"llm\.sizes"):
        count_parameters(read_recipe(str(tmp_path / "hub.yaml")))
