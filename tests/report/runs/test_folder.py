"""What is read from a run's folder, and which images are shown."""

import json
import shutil

import pytest

from bitllm.cli import main
from bitllm.errors import DataError
from bitllm.report.headline import headline
from bitllm.report.runs.folder import chosen_rows, read_curves, read_run
from bitllm.report.runs.grounding import results_of_grounding


def test_a_demo_has_everything(demo_folder):
    run = read_run(demo_folder)
    assert run.results["subject"] == "subj08"
    assert {"align", "sft", "rft", "prefix"} <= set(run.curves)
    assert {item.label for item in run.gallery} == {"best", "median", "worst", "random"}
    assert all(item.picture is not None and item.references for item in run.gallery)
    assert run.brain is not None


def test_every_caption_of_a_system_has_its_words_with_bits(demo_folder):
    for item in read_run(demo_folder).gallery:
        assert set(item.words) == {"rft", "sft", "rft, permuted betas"}
        for name, words in item.words.items():
            assert [word.word for word in words] == item.captions[name].lower().rstrip(".").split()


def test_pictures_can_be_left_out(demo_folder):
    assert all(item.picture is None for item in read_run(demo_folder, pictures=False).gallery)


def test_real_pictures_are_shown_only_if_asked_for(demo_folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(demo_folder, copy, ignore=shutil.ignore_patterns("nsd", "llm", "clip"))
    manifest = copy / "store" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"source": "simulated"', '"source": "nsd"'))
    assert read_run(copy).gallery[0].picture is None
    assert read_run(copy, pictures=True).gallery[0].picture is not None


def test_the_store_may_lie_elsewhere(demo_folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(demo_folder, copy, ignore=shutil.ignore_patterns("nsd", "llm", "clip", "store"))
    assert read_run(copy).brain is None
    run = read_run(copy, store=demo_folder / "store")
    assert run.brain is not None
    assert run.gallery[0].picture is not None


def test_rows_are_best_median_worst_and_random():
    cider = [5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0]
    chosen = chosen_rows(cider, seed=0, n_each=2)
    assert chosen["best"] == [2, 6]
    assert chosen["worst"] == [1, 5]
    assert set(chosen["median"]) == {3, 0}
    assert len(set(chosen["random"])) == 2
    assert chosen == chosen_rows(cider, seed=0, n_each=2)


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    with pytest.raises(DataError, match=r"expected results\.json of `bitllm demo` or grounding\.json"):
        read_run(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")])
    assert ended.value.code == 2
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match=r"expected an object in results\.json, found list"):
        read_run(tmp_path)


def test_a_damaged_log_is_refused(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(DataError, match=r"log\.jsonl: expected JSON lines"):
        read_curves(tmp_path)


def test_a_grounded_run_has_its_numbers(grounding, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "grounding.json").write_text(json.dumps(grounding))
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    run = read_run(folder)
    assert run.curves == {"mine": [{"step": 1, "loss": 2.0}]}
    assert run.gallery == []
    assert run.results["systems"] == {"sft": {"CIDEr": 50.0, "distinct": 7, "mean_length": 8.0}}
    assert run.results["controls"]["sft"]["permuted"]["CIDEr"] == 9.0
    assert run.results["single_trial"]["sft"]["n_trials"] == 30
    assert headline(run.results).is_evidence


def test_several_grounded_systems_stand_beside_each_other(grounding):
    results = results_of_grounding({"sft": grounding, "rft": grounding})
    assert set(results["systems"]) == set(results["bits"]) == {"sft", "rft"}
    assert results["retrieval"]["real"]["R@10"] == 0.5


@pytest.mark.parametrize("key", ["subject", "part", "split_sha256", "store_sha256", "references_sha256"])
def test_scores_of_different_data_are_not_put_into_one_table(grounding, key):
    one, other = ({**grounding, "about": {**grounding["about"], key: value}} for value in ("a", "b"))
    with pytest.raises(DataError, match=f"judged on the same data, found the {key} a and b; ground them on"):
        results_of_grounding({"sft": one, "rft": other})
    older = {**grounding, "about": {name: value for name, value in one["about"].items() if name != key}}
    assert set(results_of_grounding({"sft": one, "rft": older})["systems"]) == {"sft", "rft"}


def test_what_is_of_the_encoder_is_that_of_the_system_in_the_headline(grounding):
    without = {**grounding, "encoder": {"cosine_real_zero": {"mean": 0.9}}}
    results = results_of_grounding({"no_align": without, "sft": grounding})
    assert results["retrieval"]["real"]["R@10"] == 0.5
    assert results["cosine_real_zero"] == grounding["encoder"].get("cosine_real_zero", {})


@pytest.fixture
def grounding():
    """A grounding.json of two inputs."""
    lead = {"CIDEr": {"difference": 41.0, "low": 30.0, "high": 52.0, "p": 0.002}}
    real = {
        "metrics": {"CIDEr": 50.0},
        "intervals": {"CIDEr": {"low": 44.0, "high": 57.0}},
        "distinct": 7,
        "mean_length": 8.0,
    }
    permuted = {
        "metrics": {"CIDEr": 9.0},
        "intervals": {},
        "distinct": 7,
        "mean_length": 8.0,
        "real - control": lead,
    }
    return {
        "about": {"run": "sft", "data": "nsd", "subject": "subj08", "n_images": 10, "n_trials": 30, "seed": 0,
                  "split": "poster", "part": "test", "split_sha256": "abc", "llm": "llama"},
        "captions": {"averaged": {"real": real, "permuted": permuted}, "single": {"real": real, "permuted": permuted},
                     "human": {"CIDEr": 90.0}},
        "bits": {"averaged": {"permuted": {"per_caption": {"mean": 3.0, "low": 2.0, "high": 4.0, "p": 0.01}}}},
        "encoder": {"averaged": {"retrieval": {"real": {"R@10": 0.5, "N": 10}}}},
    }  # fmt: skip
