import json

import pandas as pd
import pytest

from bitllm.errors import DataError
from bitllm.experiments.question import read_question, read_questions, read_summary, read_verdict
from bitllm.experiments.record import read_kept


def change_record(folder, **fields):
    path = folder / "interface" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(("n_worlds", "n_waves"), [(5, 1), (7, 1), (9, 1), (10, 2), (14, 2), (15, 3)])
def test_only_model_seeds_that_all_five_brains_have_count(n_worlds, n_waves, made_results):
    folder = made_results("interface", n_worlds=n_worlds)
    results = read_question("interface", folder).results
    assert set(results.rows["model_seed"]) == set(range(n_waves))
    assert set(results.rows["simulator_seed"]) == {11, 12, 13, 14, 15}
    effect = results.effects[0]
    assert (effect.n_brains, effect.n_models) == (5, n_waves)


def test_a_later_wave_does_not_stand_in_for_the_first(made_results):
    """All brains have model seed 1, one of them lacks model seed 0."""
    folder = made_results("interface", n_worlds=10)
    path = folder / "interface" / "results.parquet"
    rows = pd.read_parquet(path)
    rows[rows["world"] != "brain12-models0"].to_parquet(path, index=False)
    change_record(
        folder, worlds=[world for world in sorted(set(rows["world"])) if world != "brain12-models0"]
    )
    with pytest.raises(DataError, match="first model seed"):
        read_question("interface", folder)


def test_a_brain_without_one_of_the_systems_does_not_make_a_wave(made_results):
    folder = made_results("interface", n_worlds=5)
    path = folder / "interface" / "results.parquet"
    rows = pd.read_parquet(path)
    rows[(rows["world"] != "brain12-models0") | (rows["system"] != "prefix")].to_parquet(path, index=False)
    with pytest.raises(DataError, match="first model seed"):
        read_question("interface", folder)


def test_a_run_without_a_whole_wave_is_refused(made_results):
    folder = made_results("interface", n_worlds=4)
    with pytest.raises(DataError, match="`bitllm reproduce interface`"):
        read_question("interface", folder)


def test_a_quick_run_is_refused(made_results):
    with pytest.raises(DataError, match="quick"):
        read_questions(made_results("interface", is_quick=True))


def test_rows_and_record_of_two_runs_are_refused(made_results):
    folder = made_results("interface")
    change_record(folder, config_sha256="f" * 64)
    with pytest.raises(DataError, match="ffffffffffff"):
        read_question("interface", folder)
    made_results("interface")
    change_record(folder, worlds=["brain11-models0"])
    with pytest.raises(DataError, match="brain11-models0"):
        read_question("interface", folder)


def test_a_record_without_its_rows_is_refused(made_results):
    folder = made_results("interface")
    (folder / "interface" / "results.parquet").unlink()
    with pytest.raises(DataError, match=r"results\.parquet"):
        read_question("interface", folder)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("negligible: 1.0", "negligible: 9.0", "claims"),
        ("prefix: {sft: {interface: prefix}}", "prefix: {sft: {interface: prefix_mlp}}", "systems"),
        ("simulator_seeds: [11, ", "simulator_seeds: [10, ", "simulator_seeds"),
    ],
)
def test_a_configuration_that_was_changed_after_its_result_is_refused(old, new, what, made_results):
    folder = made_results("interface")
    path = folder / "interface" / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=f"other {what};"):
        read_questions(folder)


def test_more_brains_than_the_run_had_may_stand_in_the_configuration(made_results):
    folder = made_results("interface")
    path = folder / "interface" / "config.yaml"
    path.write_text(path.read_text().replace("14, 15]", "14, 15, 16]").replace("[0, 1, 2]", "[0, 1, 2, 3]"))
    question = read_question("interface", folder)
    assert len(question.config.simulator_seeds) == 6
    assert question.results.effects[0].n_brains == 5


def test_published_results_are_kept_with_where_they_come_from(made_results):
    folder = made_results("interface", n_worlds=5)
    assert read_kept("alignment", folder) is None
    kept = read_kept("interface", folder)
    assert kept.rates["prefix"]["chosen"] == 0.003
    assert set(kept.rows_of("brain12-models0")["simulator_seed"]) == {12}
    assert kept.rows_of("brain11-models1") is None
    (own,) = kept.origins()
    assert own == {key: kept.record[key] for key in ("worlds", "versions", "git_revision")}
    older = own | {"worlds": own["worlds"][:2], "git_revision": "older"}
    change_record(folder, earlier=[older])
    assert read_kept("interface", folder).origins() == [older, own | {"worlds": own["worlds"][2:]}]
    path = folder / "interface" / "config.yaml"
    path.write_text(path.read_text().replace("negligible: 1.0", "negligible: 9.0"))
    with pytest.raises(DataError, match="other claims"):
        read_kept("interface", folder)


def test_worlds_of_another_simulation_are_not_kept(made_results):
    folder = made_results("interface", simulation_version=0)
    with pytest.raises(DataError, match="simulation version"):
        read_kept("interface", folder)


def test_rows_that_do_not_open_are_one_line(made_results):
    folder = made_results("interface")
    path = folder / "interface" / "results.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"results\.parquet"):
        read_question("interface", folder)


def test_the_time_of_steps_may_change_after_a_run_but_not_the_recipe(made_results):
    folder = made_results("interface")
    path = folder / "seconds.yaml"
    path.write_text(path.read_text().replace("sft: 23", "sft: 46"))
    assert read_question("interface", folder).results is not None
    path = folder / "recipes" / "small.yaml"
    path.write_text(path.read_text().replace("steps: 150", "steps: 151"))
    with pytest.raises(DataError, match="other recipe;"):
        read_question("interface", folder)


def test_the_posters_questions_come_first_in_its_order(made_results, experiments):
    folder = made_results("interface", n_worlds=5)
    names = [question.name for question in read_questions(folder)]
    assert names == ["interface", "alignment", "encoder", "signal"]
    assert list(read_summary(experiments).poster)[:3] == names[:3]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("**Verdict.** Not run yet.\n", None),
        ("**Result.** No paragraph.\n", None),
        ("**Verdict.** Borne\nout. By far.\n\nMore.", "Borne out. By far."),
    ],
)
def test_the_verdict_is_one_paragraph_of_the_readme(text, verdict, tmp_path):
    (tmp_path / "README.md").write_text(f"# Interface\n\n{text}")
    assert read_verdict(tmp_path / "README.md") == verdict
    assert read_verdict(tmp_path / "none.md") is None
