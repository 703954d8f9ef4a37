import json
import shutil

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.splits import load_split
from bitllm.errors import OutputError
from bitllm.experiments.config import quick_version, read_experiment
from bitllm.experiments.engine import best_rate, reproduce, seconds_per_world
from bitllm.experiments.results import sentences
from bitllm.experiments.systems import make_reward
from bitllm.experiments.world import World
from bitllm.stages.rewards import RewardWeights
from bitllm.training.steps import Steps


def quiet(*said):
    """Nobody listens."""


def test_a_quick_run_has_one_row_for_each_system_input_and_image(quick):
    rows = pd.read_parquet(quick.folder / "results.parquet")
    assert set(rows["system"]) == {"cross_attention", "prefix", "prefix_mlp"}
    assert set(rows["control"]) == {"real", "permuted", "zero", "shuffle", "llm_alone"}
    split = load_split(quick.folder / "brain11" / "poster.json")
    per_arm = rows.groupby(["system", "control"])["nsd_id"].agg(["nunique", "size"])
    assert (per_arm["nunique"] == per_arm["size"]).all()
    assert set(rows["nsd_id"]) <= set(split.test_images)
    assert set(rows["subject"]) == {"subj08"}
    assert rows.loc[rows["control"] == "real", ["cider", "rouge_l", "bits"]].notna().all(axis=None)


@pytest.mark.parametrize(
    "name",
    ["alignment", *(pytest.param(name, marks=pytest.mark.slow) for name in ("perturbation", "reward"))],
)
def test_every_other_experiment_runs_in_its_quick_version(name, experiments, tmp_path):
    config = quick_version(read_experiment(name, experiments))
    record = reproduce(name, config, tmp_path / name, is_quick=True, tell=quiet, progress=quiet)
    rows = pd.read_parquet(tmp_path / name / "results.parquet")
    assert list(dict.fromkeys(rows["system"])) == list(config.systems)
    assert set(record["learning_rates"]) == set(config.systems)
    said = sentences(tmp_path / name, record)
    assert len(said) == len(config.claims) + 2
    assert all("undecided (1 brains" in line for line in said[:-2])


def test_the_permuted_rows_are_the_real_captions_dealt_to_other_images(quick):
    rows = pd.read_parquet(quick.folder / "results.parquet")
    for _, part in rows.groupby("system"):
        real, permuted = (
            sorted(part.loc[part["control"] == control, "caption"]) for control in ("real", "permuted")
        )
        assert real == permuted
    assert rows["caption"].nunique() > 1, "else nothing is dealt"


def test_rows_and_record_say_where_they_come_from(quick):
    rows = pd.read_parquet(quick.folder / "results.parquet")
    record = json.loads((quick.folder / "results.json").read_text())
    assert record["is_quick"]
    assert record["is_complete"]
    assert record["command"] == "bitllm reproduce interface --quick"
    same = {"config_sha256": "config_sha256", "simulation_version": "simulation_version"}
    for column, key in same.items():
        assert set(rows[column]) == {record[key]}
    assert set(rows["bitllm_version"]) == {record["versions"]["bitllm"]}
    assert {"git_revision", "simulator_seed", "model_seed", "learning_rate"} <= set(rows.columns)


def test_it_says_before_it_starts_how_much_it_will_train_and_at_the_end_that_quick_means_nothing(quick):
    said = " ".join(quick.said.split())
    assert said.index("8 stages will be trained") < said.index("brain11 simulate")
    assert said.endswith("these numbers mean nothing but that everything ran")


def test_learning_rates_are_chosen_without_the_test_subject_and_the_test_images(quick):
    develop, poster = (
        load_split(quick.folder / "brain11" / f"{name}.json") for name in ("develop", "poster")
    )
    chosen_on = pd.read_parquet(next((quick.folder / "brain11-models0" / "rows").glob("develop-prefix-*")))
    assert set(chosen_on["subject"]) == {"subj07"}
    assert set(chosen_on["nsd_id"]) <= set(develop.test_images)
    assert not set(chosen_on["nsd_id"]) & (set(poster.test_images) | set(develop.train_images))
    assert not {"subj07", "subj08"} & set(develop.train_subjects)


def test_the_best_rate_has_the_highest_score_and_of_equal_ones_is_the_lowest():
    assert best_rate({0.01: 5.0, 0.001: 7.0, 0.003: 7.0}) == 0.001
    assert best_rate({0.01: 9.0, 0.001: 7.0}) == 0.01


def test_an_interrupted_run_goes_on_and_ends_with_the_same_rows(quick, experiments, tmp_path):
    """Interrupted in the middle of the last system's training; all before is kept."""
    out = shutil.copytree(quick.folder, tmp_path / "interface")
    for path in (*out.glob("results.*"), *(out / "steps").glob("*poster prefix_mlp*")):
        path.unlink()
    shutil.rmtree(out / "brain11-models0" / "poster" / "prefix_mlp-0.01")
    config = quick_version(read_experiment("interface", experiments))
    told = []

    def interrupt(what, done, total):
        if "sft (prefix_mlp)" in what and done >= 4:
            raise KeyboardInterrupt

    def go(progress, tell=quiet):
        return reproduce("interface", config, out, is_quick=True, tell=tell, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        go(interrupt)
    assert not (out / "results.parquet").exists()
    go(quiet, told.append)
    made = [line.split("  ")[0] for line in told if line.endswith(" s")]
    assert [step.split(" ", 1)[1] for step in made] == [
        "poster prefix_mlp-0.01",
        "poster prefix_mlp-0.01 judged",
    ]
    pd.testing.assert_frame_equal(*(pd.read_parquet(at / "results.parquet") for at in (out, quick.folder)))


def test_a_second_run_trains_nothing(quick, experiments, tmp_path):
    out = shutil.copytree(quick.folder, tmp_path / "interface")
    told = []
    config = quick_version(read_experiment("interface", experiments))
    reproduce("interface", config, out, is_quick=True, tell=told.append, progress=quiet)
    assert [line for line in told if line.endswith(" s")] == []


def test_the_time_of_a_world_leaves_out_the_choice_of_learning_rates(experiments, tmp_path):
    config = quick_version(read_experiment("interface", experiments))
    steps = Steps(tmp_path / "out", quiet, "reproduce")
    steps.seconds |= {"brain11 simulate": 3.0, "brain11-models0 develop align": 100.0}
    steps.seconds |= {"brain11-models0 poster align": 4.0, "brain12-models0 poster align": 50.0}
    assert seconds_per_world(steps, [World(tmp_path, config, 11, 0, steps, quiet)]) == 7.0


def test_a_permuted_reward_never_looks_at_the_image_itself(easy, small_clip_folder, experiments, tmp_path):
    config = quick_version(read_experiment("reward", experiments))
    world = World(tmp_path, config, 0, 0, Steps(tmp_path / "out", quiet, "reproduce"), quiet)
    shutil.copytree(small_clip_folder, world.folder / "clip")
    vars(world).update(store=easy.store, targets=easy.targets)
    nsd_ids = sorted(easy.split.train_images)
    weights = RewardWeights(cider=1.0, bertscore=0.0, ip=0.0)
    captions = [easy.store.captions[nsd_id][0] for nsd_id in nsd_ids]
    own, permuted = (
        make_reward(world, nsd_ids, weights, permuted=permuted)(nsd_ids, captions, [True] * len(captions))
        for permuted in (False, True)
    )
    assert (own.cider > 1).mean() > 0.9
    assert permuted.cider.mean() < 0.3 * own.cider.mean()
    assert np.isfinite(permuted.total).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["interfase"], "found `interfase`; did you mean `interface`?"),
        (["interface", "--seeds", "6"], "expected --seeds from 1 to 5"),
    ],
)
def test_a_wrong_name_or_number_is_one_line(words, message, experiments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *words, "--experiments", str(experiments)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_outside_of_the_project_it_says_where_it_must_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "interface", "--experiments", str(tmp_path)])
    assert "found none; run this in the project's own folder" in capsys.readouterr().err


def test_the_folder_of_a_demo_is_not_taken(demo_folder):
    with pytest.raises(OutputError, match="expected a new folder or that of an earlier reproduce"):
        Steps(demo_folder, quiet, "reproduce")
