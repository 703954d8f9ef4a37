import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from bitllm.errors import ConfigError, DataError
from bitllm.experiments.config import (
    ExperimentConfig,
    experiment_names,
    first_brains,
    quick_version,
    read_experiment,
)
from bitllm.experiments.engine import plan_of
from bitllm.experiments.results import NOT_RUN, make_page, read_results, write_page


@pytest.fixture
def finished(quick, experiments, tmp_path):
    """A folder of experiments of which interface has results: rows of the quick run as if of three brains, with a CIDEr
    that the image alone decides, and 5 more for cross_attention."""
    folder = tmp_path / "experiments"
    shutil.copytree(experiments / "interface", folder / "interface")
    shutil.copytree(experiments / "alignment", folder / "alignment")
    rows = pd.read_parquet(quick.folder / "results.parquet")
    rows = pd.concat([rows.assign(simulator_seed=seed, world=f"brain{seed}") for seed in (1, 2, 3)])
    rows["cider"] = rows["nsd_id"] % 7 + np.where(rows["system"] == "cross_attention", 5.0, 0.0)
    rows.to_parquet(folder / "interface" / "results.parquet", index=False)
    config = read_experiment("interface", experiments).model_dump(mode="json")
    record = json.loads((quick.folder / "results.json").read_text()) | {"is_quick": False, "config": config}
    (folder / "interface" / "results.json").write_text(json.dumps(record))
    return folder


def change_record(folder, **fields):
    path = folder / "interface" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_page_in_the_docs_is_what_the_results_give(experiments):
    page = experiments.parent / "docs" / "results.md"
    assert page.read_text(encoding="utf-8") == make_page(experiments), "run `make results`"


def test_what_has_no_full_run_says_so(finished, tmp_path):
    write_page(finished, tmp_path / "results.md")
    alignment, interface = (tmp_path / "results.md").read_text().split("## ")[1:]
    assert f"*{NOT_RUN}*" in alignment
    assert NOT_RUN not in interface


def test_a_claim_stands_with_the_posters_figure_ours_the_effect_and_the_verdict(finished):
    row = next(line for line in make_page(finished).splitlines() if "parameter-matched" in line)
    assert "26.64 / 23.98" in row
    assert "+5.00 [5.00, 5.00]" in row
    assert "**borne out**" in row


def test_results_of_a_quick_or_unfinished_run_are_refused(finished):
    change_record(finished, is_quick=True)
    with pytest.raises(DataError, match="found those of a quick one"):
        make_page(finished)
    change_record(finished, is_quick=False, is_complete=False)
    with pytest.raises(DataError, match="found those of an unfinished one"):
        make_page(finished)


def test_rows_and_record_of_two_runs_are_refused(finished):
    change_record(finished, config_sha256="f" * 64)
    with pytest.raises(DataError, match="expected rows of the configuration ffffffffffff"):
        read_results(finished / "interface")


def test_a_rule_that_was_changed_after_its_result_is_refused(finished):
    path = finished / "interface" / "config.yaml"
    path.write_text(path.read_text().replace("negligible: 1.0", "negligible: 9.0"))
    with pytest.raises(DataError, match="found other claims; a rule is not changed after its result"):
        make_page(finished)


@pytest.mark.parametrize("name", ["alignment", "interface", "perturbation", "reward"])
def test_every_experiment_has_its_prediction_and_a_quick_version(name, experiments):
    readme = (experiments / name / "README.md").read_text(encoding="utf-8")
    for part in ("**Question.**", "**Prediction**", "**Command.**", "**Result.**", "**Verdict.**"):
        assert part in readme
    config = read_experiment(name, experiments)
    assert f"**Question.** {config.question}" in readme
    assert len(config.simulator_seeds) >= 3
    assert len(config.worlds) >= 9
    quick = quick_version(config)
    assert (len(quick.worlds), quick.preset, list(quick.systems)) == (1, "tiny", list(config.systems))
    assert name in experiment_names(experiments)


def test_the_plan_counts_every_stage(experiments):
    config = read_experiment("reward", experiments)
    n = (3 + 5 * 2) + 1 + 15 * (6 + 1)
    assert plan_of(config).startswith(f"{n} stages will be trained: 13 runs of 6 systems")


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
        ({"systems": {"cross_attention": {}, "prefix": {}}}, "no system prefix_mlp; did you mean `prefix`?"),
        ({"systems": {"rft": {"after": "stf"}, "sft": {}}}, "no system stf; did you mean `sft`?"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, message, experiments):
    values = yaml.safe_load((experiments / "interface" / "config.yaml").read_text())
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        ExperimentConfig.parse(values | change)


def test_a_claim_about_a_control_that_does_not_run_is_refused(experiments):
    values = yaml.safe_load((experiments / "interface" / "config.yaml").read_text())
    values["claims"][0]["less"]["control"] = "noise"
    with pytest.raises(ConfigError, match="a claim needs the control noise"):
        ExperimentConfig.parse(values)


def test_fewer_brains_are_the_first_ones(experiments):
    config = read_experiment("interface", experiments)
    assert first_brains(config, 2).simulator_seeds == config.simulator_seeds[:2]
    assert first_brains(config, None) == config
    with pytest.raises(ConfigError, match="expected --seeds from 1 to 5"):
        first_brains(config, 0)
