import runpy
import sys

import numpy as np
import pandas as pd
import pytest

from bitllm.errors import DataError
from bitllm.experiments.publish import publish
from bitllm.experiments.question import read_question, verdict


def verdicts_of(question):
    return [
        verdict(claim, effect)
        for claim, effect in zip(question.config.claims, question.results.effects, strict=True)
    ]


def test_what_is_published_has_every_row_and_value_and_the_same_verdicts(made_results, tmp_path):
    run = made_results("interface", n_worlds=7, to=tmp_path / "run")
    folder = tmp_path / "experiments"
    sizes = publish(run, folder)
    before, now = (pd.read_parquet(at / "interface" / "results.parquet") for at in (run, folder))
    assert list(sizes) == ["interface"]
    assert sizes["interface"] < (run / "interface" / "results.parquet").stat().st_size
    assert list(now.columns) == list(before.columns)
    assert len(now["world"].unique()) == 7, "including those of an incomplete wave"
    for column in before:
        if column == "bleu_counts":
            np.testing.assert_array_equal(np.vstack(now[column]), np.vstack(before[column]))
        elif before[column].dtype == np.float64:
            np.testing.assert_allclose(now[column], before[column], rtol=1e-6)
        else:
            assert now[column].tolist() == before[column].tolist()
    assert now["cider"].dtype == np.float32
    assert set(now["learning_rate"]) == {0.003}
    published = read_question("interface", folder)
    made_results("interface", n_worlds=7)
    plain = read_question("interface", folder)
    assert verdicts_of(published) == verdicts_of(plain)
    for ours, theirs in zip(published.results.effects, plain.results.effects, strict=True):
        assert ours.difference.value == pytest.approx(theirs.difference.value, abs=1e-4)


def test_a_quick_run_is_not_published(made_results, tmp_path):
    run = made_results("interface", to=tmp_path / "run", is_quick=True)
    with pytest.raises(DataError, match="quick"):
        publish(run, tmp_path / "experiments")
    assert not (tmp_path / "experiments" / "interface" / "results.json").exists()


def test_without_names_what_has_no_whole_wave_waits(made_results, tmp_path):
    run = made_results("interface", n_worlds=3, to=tmp_path / "run")
    with pytest.raises(DataError, match="run"):
        publish(run, tmp_path / "experiments")
    made_results("alignment", n_worlds=5, to=run)
    assert list(publish(run, tmp_path / "experiments")) == ["alignment"]
    with pytest.raises(DataError, match="first model seed"):
        publish(run, tmp_path / "experiments", ("interface",))


def test_published_worlds_are_not_lost_and_nothing_is_written_where_one_question_is_refused(
    made_results, tmp_path
):
    folder = made_results("interface")
    run = made_results("interface", n_worlds=5, to=tmp_path / "run")
    made_results("alignment", to=run)
    with pytest.raises(DataError, match="brain11-models1, brain12"):
        publish(run, folder, ("alignment", "interface"))
    assert not (folder / "alignment" / "results.json").exists()
    assert len(read_question("interface", folder).results.record["worlds"]) == 15


def test_results_of_other_claims_are_not_published(made_results, tmp_path):
    run = made_results("interface", to=tmp_path / "run")
    path = tmp_path / "experiments" / "interface" / "config.yaml"
    path.write_text(path.read_text().replace("negligible: 1.0", "negligible: 9.0"))
    with pytest.raises(DataError, match="other claims"):
        publish(run, tmp_path / "experiments")


def test_the_command_prints_sizes_and_ends_with_one_line_if_it_refuses(
    made_results, tmp_path, monkeypatch, capsys
):
    run, folder = made_results("interface", to=tmp_path / "run"), tmp_path / "experiments"

    def publish_as_a_program(*words):
        monkeypatch.setattr(sys, "argv", ["publish", *map(str, words), "--experiments", str(folder)])
        monkeypatch.delitem(sys.modules, "bitllm.experiments.publish", raising=False)
        runpy.run_module("bitllm.experiments.publish", run_name="__main__")

    publish_as_a_program(run, "interface")
    assert "results.parquet: 0.0" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        publish_as_a_program(tmp_path / "nothing")
    assert len(str(ended.value.code).splitlines()) == 1
