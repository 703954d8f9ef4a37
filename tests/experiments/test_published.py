"""The published results of version 0.1 belong to today's configurations: every recorded setting, system by system."""

import json
from pathlib import Path

import pytest

from bitllm.experiments.config import read_experiment

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def settings_of_0_1(recipe, system, parent):
    """Settings of a system as version 0.1 recorded them, by their names of today."""
    of_data = system if parent is None else parent
    changes = {key: value for key, value in system["split"].items() if value is not None}
    stages = {stage: recipe[stage] | system[stage] for stage in ("sft", "rft")}
    for stage, settings in stages.items():
        settings["optimizer"] = recipe[stage]["optimizer"] | system[stage].get("optimizer", {})
    if parent is not None and system["after"]:
        stages["sft"] = recipe["sft"] | parent["sft"]
    if of_data["encoder"] == "trained":
        stages["sft"]["encoder"] = "trained"
    if system["reward_references"] != "own":
        stages["rft"]["reward_references"] = system["reward_references"]
    return {
        "data": {
            "preset": recipe["preset"],
            "validation_fraction": recipe["validation_fraction"],
            "coordinates": of_data["coordinates"],
            **of_data["simulation"],
            **(changes or {key: value for key, value in of_data["split"].items() if value is not None}),
        },
        "clip": {"small": recipe["small_clip"]},
        "llm": {
            "source": recipe["llm"],
            **({"small": recipe["small_llm"]} if recipe["llm"] == "small" else {}),
        },
        "encoder": recipe["encoder"] | system["sizes"],
        "align": recipe["align"],
        **stages,
        "evaluation": {"max_new_tokens": recipe["max_new_tokens"]},
    }


def differences(old, new, place=""):
    """Values of ``old`` that are other ones in ``new``."""
    if not isinstance(old, dict):
        return [] if old == new else [f"{place}: {old} → {new}"]
    return [one for key in old for one in differences(old[key], new.get(key, "missing"), f"{place}.{key}")]


OF_0_1 = [
    path
    for path in sorted(EXPERIMENTS.glob("*/results.json"))
    if "preset" in json.loads(path.read_text())["config"]["recipe"]
]
"""Later ones record a recipe, which `require_same` compares."""


@pytest.mark.parametrize("path", OF_0_1, ids=lambda path: path.parent.name)
def test_the_settings_of_every_published_system_are_those_of_its_configuration(path):
    config = read_experiment(path.parent.name, EXPERIMENTS)
    then = json.loads(path.read_text())["config"]
    assert list(then["systems"]) == list(config.systems)
    recipe = then["recipe"]
    for system, settings in then["systems"].items():
        start = settings["after"] or settings.get("goes_on")
        parent = None if start is None else then["systems"][start]
        now = config.recipe_of(system).model_dump(mode="json")
        assert differences(settings_of_0_1(recipe, settings, parent), now) == [], system
        usual = {"aligned": None, "random": "random", "trained": "random"}
        assert config.systems[system].start == (start or usual[settings["encoder"]])
        assert config.systems[system].averaged == settings["averaged"]
        assert config.systems[system].rate_of == settings["rate_of"]
        stage = "learning_rates" if settings["after"] is None else "rft_learning_rates"
        assert list(config.grid_of(system)) == (settings.get("learning_rates") or recipe[stage])
    assert (list(config.controls), config.diagnostics) == (recipe["controls"], then["diagnostics"])
    assert (config.along, config.unit) == (then["along"], then["unit"])
