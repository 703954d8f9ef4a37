"""Presets, refusals, and random streams that do not disturb one another."""

import pytest

from bitllm.errors import ConfigError
from bitllm.simulation import PRESETS, SimulationConfig, expected_gigabytes, preset
from bitllm.simulation.parameters import stream


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"found `dmeo`; did you mean `demo`\?"):
        preset("dmeo")


def test_a_plan_whose_trials_do_not_add_up_is_refused() -> None:
    values = preset("tiny").model_dump() | {"n_unique": 57}
    with pytest.raises(ConfigError, match=r"243 presentations .* found 240"):
        SimulationConfig.parse(values)


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean `shared_tuning`"):
        SimulationConfig.parse(preset("tiny").model_dump() | {"shared_tunin": 0.5})


def test_the_presets_have_the_promised_sizes() -> None:
    assert [config.preset for config in PRESETS.values()] == list(PRESETS)
    demo, bench = preset("demo"), preset("bench")
    assert demo.subjects == tuple(f"subj0{number}" for number in range(1, 9))
    assert (demo.images_per_subject, demo.n_shared, demo.trials_per_session) == (1008, 240, 252)
    assert bench.n_shared >= 1100 and bench.n_unique >= 2000
    assert 0.3 < expected_gigabytes(demo) < 1 < expected_gigabytes(bench) < 10


def test_random_streams_differ_by_purpose_and_index_and_repeat_by_seed() -> None:
    drawn = [
        stream(*key).random()
        for key in [(1, "noise"), (1, "scenes"), (1, "noise", 0), (1, "noise", 1), (2, "noise")]
    ]
    assert len(set(drawn)) == 5
    assert stream(1, "noise", 1).random() == drawn[3]
