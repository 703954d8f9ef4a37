import json
import re
import shutil

import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.store import open_store
from bitllm.errors import OutputError
from bitllm.experiments.config import experiment_names, read_experiment
from bitllm.experiments.engine import best_rate, reproduce
from bitllm.experiments.page import sentences
from bitllm.experiments.record import Kept
from bitllm.files import sha256_of_file
from bitllm.pipeline.run import Run
from bitllm.pipeline.steps import Steps

OTHERS = (
    "alignment",
    "adapters",
    "perturbation",
    "repetitions",
)
LONG = (
    "best",
    "coordinates",
    "reward",
    "verifiers",
    "adaptation",
    "few_shot",
    "full_rate",
    "larger_weights",
    "muon",
    "new_subject",
    "presence",
    "questions",
    "transfer",
    "leave_one_out",
    "longer_captioning",
    "unfreezing",
    "misalignment",
    "signal",
    "smollm2",
    "smollm2_adapters",
    "smollm2_best",
    "smollm2_frozen",
    "subjects",
    "training_data",
)


def quiet(*said):
    """Nobody listens."""


def run(names, out, folder, tell=quiet, progress=quiet):
    configs = {name: read_experiment(name, folder, is_quick=True) for name in names}
    return reproduce(configs, out, is_quick=True, tell=tell, progress=progress)


def made(told):
    """The steps that were made, as they were told."""
    return [line.split("  ")[0] for line in told if line.endswith(" s")]


def test_a_quick_run_has_one_row_for_each_system_input_and_image(quick):
    rows = pd.read_parquet(quick.folder / "results.parquet")
    assert set(rows["system"]) == {"cross_attention", "prefix", "prefix_mlp"}
    assert set(rows["control"]) == {"real", "permuted", "zero", "shuffle", "noise", "llm_alone"}
    store = open_store(quick.out / "worlds" / "brain11" / "store")
    per_arm = rows.groupby(["system", "control"])["nsd_id"].agg(["nunique", "size"])
    assert (per_arm["nunique"] == per_arm["size"]).all()
    assert set(store.stimuli.loc[rows["nsd_id"], "part"]) == {"test"}
    assert set(rows["subject"]) == {"subj08"}
    assert rows.loc[rows["control"] == "real", ["cider", "rouge_l", "bits"]].notna().all(axis=None)


@pytest.mark.parametrize("name", [*OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_every_other_question_runs_in_its_quick_version(name, quick, experiments, tmp_path):
    config, out = read_experiment(name, experiments, is_quick=True), tmp_path / "quick"
    if config.recipe == read_experiment("interface", experiments, is_quick=True).recipe:
        shutil.copytree(quick.out, out)  # with the world and the systems that they share
    record = run([name], out, experiments)[name]
    rows = pd.read_parquet(out / name / "results.parquet")
    assert set(rows["system"]) == set(config.systems)
    assert set(record["learning_rates"]) == set(config.systems)
    if config.verified:
        assert rows[["object_f1", "caption_recall_at_10"]].notna().all(axis=None)
        nearest = set(rows.loc[rows["control"] == "nearest", "system"])
        assert nearest == {one for one, system in config.systems.items() if system.start in (None, "align")}
    for task in config.asked_of(next(iter(config.systems))):
        asked = rows[rows[f"accuracy {task}"].notna()]
        assert set(asked["system"]) == {"asked", "no_signal"}
        assert set(asked["control"]) == {"real", "permuted", *config.controls, "llm_alone"}
        assert set(rows.loc[rows[f"answer_bits {task}"].notna(), "control"]) == {"real"}
    said = sentences(out / name, config, record)
    assert len(said) == len(config.claims) + 2
    assert all("undecided (1 brain, 1 model seed, " in line for line in said[:-2])


def test_every_question_runs_in_a_test_here(experiments):
    assert {*OTHERS, *LONG, "interface", "encoder"} == set(experiment_names(experiments))


def test_what_two_questions_share_is_made_once(quick):
    steps = [
        f"{path.parent.parent.name}/{path.stem}" for path in (quick.out / "worlds").glob("*/steps/*.json")
    ]
    assert sorted(step for step in steps if step.endswith("/align")) == [
        "brain11-models0 develop/align",
        "brain11-models0 poster/align",
    ]
    assert len([step for step in steps if re.search(r"poster/sft-0_[0-9]+-\w{6}$", step)]) == 1
    interface, encoder = (
        pd.read_parquet(quick.out / name / "results.parquet").query(f"system == '{system}'")
        for name, system in (("interface", "cross_attention"), ("encoder", "aligned"))
    )
    assert interface["caption"].tolist() == encoder["caption"].tolist()


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
    assert "interface: learning rates, chosen on subj07: cross_attention 0.0" in " ".join(quick.said.split())
    same = {"config_sha256": "config_sha256", "simulation_version": "simulation_version"}
    for column, key in same.items():
        assert set(rows[column]) == {record[key]}
    assert set(rows["bitllm_version"]) == {record["versions"]["bitllm"]}
    assert {"git_revision", "simulator_seed", "model_seed", "learning_rate"} <= set(rows.columns)


def test_it_says_before_it_starts_how_much_it_will_do_and_at_the_end_that_quick_means_nothing(quick):
    said = " ".join(quick.said.split())
    assert said.index("steps to do: ") < said.index("brain11 prepare")
    assert " 1 data, 1 clip, 1 llm, 1 targets" in said
    assert said.endswith("these numbers mean nothing but that everything ran")


def test_learning_rates_are_chosen_without_the_test_subject_and_the_test_images(quick):
    run = quick.out / "worlds" / "brain11-models0 develop"
    chosen_on = pd.read_parquet(next(run.glob("sft-interface-prefix-*judge.parquet")))
    assert set(chosen_on["subject"]) == {"subj07"}
    store = open_store(quick.out / "worlds" / "brain11" / "store")
    assert set(store.stimuli.loc[chosen_on["nsd_id"], "part"]) == {"validation"}
    record = json.loads((quick.folder / "results.json").read_text())
    for row in record["learning_rates"].values():
        scores = {float(rate): cider for rate, cider in row["CIDEr, validation"].items()}
        assert set(scores) == {0.003, 0.01}
        assert row["chosen"] == best_rate(scores)


def test_the_best_rate_has_the_highest_score_and_of_equal_ones_is_the_lowest():
    assert best_rate({0.01: 5.0, 0.001: 7.0, 0.003: 7.0}) == 0.001
    assert best_rate({0.01: 9.0, 0.001: 7.0}) == 0.01


def test_a_system_that_takes_anothers_rate_is_not_tried(quick, experiments, tmp_path):
    out, told = shutil.copytree(quick.out, tmp_path / "quick"), []
    record = run(["repetitions"], out, experiments, tell=told.append)["repetitions"]
    rates = record["learning_rates"]
    assert rates["single"] == {"chosen": rates["averaged"]["chosen"], "taken from": "averaged"}
    assert [step.rpartition(" ")[2] for step in made(told)] == ["trials"], "only evaluated on single trials"


def test_an_interrupted_run_resumes_and_ends_with_the_same_rows(quick, experiments, tmp_path):
    """Interrupted in the middle of the last system's training; finished parts are not made again."""
    out = shutil.copytree(quick.out, tmp_path / "quick")
    (out / "interface" / "results.parquet").unlink()
    poster = out / "worlds" / "brain11-models0 poster"
    for path in [
        *poster.glob("steps/sft-interface-prefix_mlp*"),
        *poster.glob("sft-interface-prefix_mlp*.parquet"),
    ]:
        path.unlink()
    shutil.rmtree(next(path for path in poster.glob("sft-interface-prefix_mlp*") if path.is_dir()))
    told = []

    def interrupt(what, done, total):
        if "sft (prefix_mlp)" in what and done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["interface"], out, experiments, progress=interrupt)
    assert not (out / "interface" / "results.parquet").exists()
    run(["interface"], out, experiments, tell=told.append)
    assert [step.endswith("judge") for step in made(told)] == [False, True]
    assert all("poster sft-interface-prefix_mlp" in step for step in made(told))
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(at / "interface" / "results.parquet") for at in (out, quick.out))
    )


def test_a_second_run_trains_nothing(quick, experiments, tmp_path):
    out, told = shutil.copytree(quick.out, tmp_path / "quick"), []
    run(["interface"], out, experiments, tell=told.append)
    assert made(told) == []
    assert "0 steps to do" in " ".join(told)


def test_a_system_continues_an_sft_on_trials_of_its_subject_alone(quick, experiments, tmp_path):
    out, told = shutil.copytree(quick.out, tmp_path / "quick"), []
    config = read_experiment("adaptation", experiments, is_quick=True)
    systems = {name: config.systems[name] for name in ("pooled", "session")}
    systems["session"] = systems["session"].model_copy(update={"learning_rates": (0.001,)})
    config = config.model_copy(update={"systems": systems, "claims": config.claims[:1], "along": {}})
    reproduce({"adaptation": config}, out, is_quick=True, tell=told.append, progress=quiet)
    rows = pd.read_parquet(out / "adaptation" / "results.parquet")
    assert set(rows["subject"]) == {"subj08"}
    pooled, session = (set(rows.loc[rows["system"] == name, "nsd_id"]) for name in systems)
    assert pooled == session, "both are evaluated on the same images"
    worlds = out / "worlds"
    (folder,) = worlds.glob("brain11-models0 poster n_shots_alone=75/sft-*/")
    record = json.loads((folder / "run.json").read_text())
    assert record["selection"]["subjects"] == ["subj08"]
    (start,) = worlds.glob("brain11-models0 poster/sft-0_003-??????/")
    assert record["learnt_from"]["sft to start from"] == sha256_of_file(start / "model.safetensors")


def test_every_run_of_a_world_opens_with_its_systems(quick):
    run = Run.open(quick.out / "worlds" / "brain11-models0 poster")
    trained = {path.name for path in run.folder.glob("sft-*/")}
    assert set(run.recipe.variants) == trained
    assert len(trained) == 5
    assert run.split.test_subjects == ("subj08",)
    assert run.targets.image.shape[0] == len(run.store.captions)


def test_published_worlds_are_copied_and_their_rates_used(quick, experiments, tmp_path):
    """Kept is a made-up brain 12; brain 11 has been run in the folder before."""
    out, told = shutil.copytree(quick.out, tmp_path / "quick"), []
    rows = pd.read_parquet(quick.folder / "results.parquet")
    record = json.loads((quick.folder / "results.json").read_text()) | {"worlds": ["brain12-models0"]}
    kept = Kept(rows.assign(world="brain12-models0", simulator_seed=12, caption="kept"), record)
    config = read_experiment("interface", experiments, is_quick=True)
    config = config.model_copy(update={"simulator_seeds": (12, 11)})
    now = reproduce(
        {"interface": config}, out, is_quick=True, tell=told.append, progress=quiet, kept={"interface": kept}
    )["interface"]
    assert "0 steps to do (" in " ".join(told), "no trial, nothing of brain 12"
    assert made(told) == []
    assert now["worlds"] == ["brain12-models0", "brain11-models0"]
    assert now["is_complete"]
    assert now["learning_rates"] == record["learning_rates"]
    assert now["earlier"] == [{key: record[key] for key in ("worlds", "versions", "git_revision")}]
    both = pd.read_parquet(out / "interface" / "results.parquet")
    assert set(both.loc[both["simulator_seed"] == 12, "caption"]) == {"kept"}
    columns = ["system", "control", "nsd_id", "caption", "cider", "bits"]
    pd.testing.assert_frame_equal(
        both.loc[both["simulator_seed"] == 11, columns].reset_index(drop=True), rows[columns]
    )
    assert set(both["config_sha256"]) == {now["config_sha256"]} != {record["config_sha256"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["interfase"], "found `interfase`; did you mean `interface`?"),
        (
            ["interface", "--seeds", "0"],
            "--seeds of 1 to 5",
        ),
        ([], "adaptation, adapters, alignment,"),
        (["interface", "--quick", "--keep-published"], "--keep-published"),
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
    assert "config.yaml" in capsys.readouterr().err


def test_the_folder_of_a_demo_is_not_taken(demo_folder):
    with pytest.raises(OutputError, match="reproduce"):
        Steps(demo_folder, quiet, "reproduce")
