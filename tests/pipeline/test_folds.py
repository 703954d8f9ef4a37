"""A run of folds: one run for each, one table for all, with what a reader must know about its design."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.splits import load_split
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer
from bitllm.evaluation.table import read_evaluation
from bitllm.explore.work import open_session
from bitllm.pipeline.make import make_data, make_system
from bitllm.pipeline.recipe import Recipe
from bitllm.pipeline.run import Run
from bitllm.report.run import read_results
from made_up_haxby import make_up

CATEGORIES = ("cat", "face", "house", "shoe")
TINY = ("--llm.small.optimizer.steps", "3", "--llm.small.width", "32", "--llm.small.layers", "2",
        "--sft.adapter-layers", "0", "1", "--sft.optimizer.steps", "4", "--sft.validate-every", "4",
        "--encoder.n-queries", "64", "--encoder.length-mm", "4")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo on three runs of a made-up person with a strong signal."""
    root = tmp_path_factory.mktemp("demo")
    folder = make_up(root / "haxby", n_runs=3, categories=CATEGORIES).folder
    said = io.StringIO()
    with redirect_stdout(said):
        main(
            [
                "demo",
                "--recipe",
                "haxby-small",
                "--data.haxby",
                str(folder),
                *TINY,
                "--out",
                str(root / "run"),
            ]
        )
    return root / "run", said.getvalue()


def test_every_fold_is_a_run_and_shares_store_and_llm(made):
    folder, _ = made
    run = Run.open(folder)
    assert [fold.folder.name for fold in run.folds()] == ["fold-01", "fold-02", "fold-03"]
    for fold in run.folds():
        assert not (fold.folder / "store").exists()
        assert not (fold.folder / "llm").exists()
        assert Run.open(fold.folder).store.path.samefile(folder / "store")
        split = load_split(fold.folder / "split.json")
        assert not split.test_images & split.train_images


def test_the_table_of_all_folds_is_scored_against_all_references_at_once(made):
    folder, _ = made
    pooled = read_evaluation(folder)
    real = pooled.rows[(pooled.rows["system"] == "sft") & (pooled.rows["input"] == "real")].sort_values("row")
    assert sorted(real["nsd_id"]) == list(range(12))
    answers = {}
    for fold in Run.open(folder).folds():
        own = read_evaluation(fold.folder).rows
        chosen = own[(own["system"] == "sft") & (own["input"] == "real")]
        answers |= dict(zip(chosen["nsd_id"].tolist(), chosen["answer"], strict=True))
    assert answers == dict(zip(real["nsd_id"].tolist(), real["answer"], strict=True))
    captions = Run.open(folder).store.captions
    ids = real["nsd_id"].tolist()
    expected = CaptionScorer([captions[n] for n in ids]).per_caption(real["answer"].tolist())
    np.testing.assert_allclose(real["cider"], expected.cider)
    inputs = set(pooled.rows.loc[pooled.rows["system"] == "sft", "input"])
    assert inputs == {"real", "permuted", "shuffle", "noise", "zero", "constant", "llm_alone", "nearest"}


def test_results_have_the_category_task_with_its_classifier(made):
    results = read_results(made[0])
    assert results.about.n_images == results.about.n_trials == 12
    task, system = results.categories, results.systems["sft"]
    assert (task.n_categories, task.chance, task.n_permutations) == (4, 25.0, 200)
    assert task.classifier.value == 100  # a strong signal
    assert abs(task.permuted_mean - 25) < 8
    assert 0 <= system.real.scores["Category"].value <= 100
    assert "Category" in system.averaged["permuted"].real_minus_this
    assert not system.single  # every block is shown once


def test_terminal_and_report_state_design_license_and_citation(made):
    folder, said = made
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (" ".join(said.replace("│", " ").split()), page):
        assert "ame subject, unseen blocks: 3 models" in text
        assert "CC BY-SA 3.0" in text
        assert "nearest class mean, no LLM" in text
    assert "Science 293" in page
    assert "Category named by the caption" in page


def test_explore_opens_a_fold_and_the_audit_finds_no_leak(made, capsys):
    folder, _ = made
    session = open_session(folder / "fold-02", folder / "store")
    assert session.split.name == "within-subject leave-one-run-out 2 of 3"
    main(["audit", str(folder / "store"), str(folder / "fold-02")])
    assert "0 leaks" in capsys.readouterr().out


def test_a_second_demo_trains_nothing_again(made):
    run = Run.open(made[0])
    assert make_system(run, "sft") == (made[0], True)


def test_one_fold_alone_is_an_ordinary_run_with_permuted_labels_in_its_split(made, tmp_path):
    data = {"store": made[0] / "store", "split": "leave-one-run-out", "fold": 1, "permute_labels": 3}
    run = Run(tmp_path / "one", Recipe.parse({"data": data}))
    make_data(run)
    split = load_split(tmp_path / "one" / "split.json")
    assert split.permute_labels == 3
    assert split.name == "within-subject leave-one-run-out 1 of 3, labels permuted (seed 3)"


def test_a_fold_without_its_split_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--recipe", "smoke", "--data.fold", "2"])
    assert "leave-one-run-out" in capsys.readouterr().err
