import pytest

from bitllm.cli import main
from bitllm.demo.config import DEMOS, DemoConfig, demo_config
from bitllm.errors import ConfigError
from bitllm.simulation.parameters import PRESETS

SMALL = """
preset: tiny
encoder: {n_queries: 8}
align: {}
sft: {}
rft: {}
"""


@pytest.mark.parametrize("name", DEMOS)
def test_every_packaged_configuration_is_valid(name):
    config = demo_config(name)
    assert config.preset in PRESETS
    assert config.rft.max_new_tokens <= config.max_new_tokens


def test_a_file_gives_the_same_as_its_values(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    config = demo_config(str(tmp_path / "small.yaml"))
    parts = {part: {} for part in ("align", "sft", "rft")}
    assert config == DemoConfig.parse({"preset": "tiny", "encoder": {"n_queries": 8}, **parts})


def test_an_unknown_demo_is_refused_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"demo: expected one of .*, found `smolm2`; did you mean `smollm2`"
    ):
        demo_config("smolm2")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("presett: tiny", r"unknown key `presett`; did you mean `preset`\?"),
        ("sft: {gate_strat: 1.0}", r"unknown key `sft.gate_strat`; did you mean `gate_start`\?"),
        ("align: {optimizer: {step: 3}}", r"unknown key `align.optimizer.step`; did you mean `steps`\?"),
        ("prefix_optimizer: {steps: 1, batch_size: 1, learning_rat: 1}", r"did you mean `learning_rate`\?"),
        ("max_new_tokens: 0", r"`max_new_tokens`: input should be greater than 0, found 0"),
        ("llm: llama", r"`llm`: input should be 'small' or 'smollm2', found 'llama'"),
        ("baselines: [prefixx]", r"`baselines.0`: input should be 'prefix', .* found 'prefixx'"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(tmp_path, capsys, wrong, said):
    key = wrong.split(":")[0]
    lines = [line for line in SMALL.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "demo.yaml").write_text("\n".join([*lines, wrong]))
    with pytest.raises(ConfigError, match=said):
        demo_config(str(tmp_path / "demo.yaml"))
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--config", str(tmp_path / "demo.yaml"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: expected a YAML configuration, found no file"):
        demo_config(str(tmp_path / "none.yaml"))
