import json
import re
import shutil

import numpy as np
import pytest

from bitllm.data.store import open_store
from bitllm.evaluation.results import Results, from_json
from bitllm.evaluation.scoring.captions_file import read_captions
from bitllm.evaluation.scoring.score_file import score_file
from bitllm.evaluation.table import read_evaluation
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm

SYSTEMS = ("sft", "rft", "prefix", "prefix_mlp", "no_align")
INPUTS = ("real", "zero", "shuffle", "noise", "permuted", "constant", "nearest", "llm_alone")
STEPS = (
    *("simulate", "prepare", "split", "clip", "llm", "targets", "align", "sft", "rft"),
    *("prefix", "prefix_mlp", "no_align", "evaluate encoder", *(f"evaluate {name}" for name in SYSTEMS)),
)


@pytest.fixture(scope="module")
def results(demo_folder):
    """Content of results.json."""
    return read_results(demo_folder / "results.json")


def read_results(path):
    """Read it as dataclasses."""
    return from_json(Results, json.loads(path.read_text(encoding="utf-8")), "results.json")


@pytest.fixture(scope="module")
def evaluation(demo_folder):
    """The table, and what belongs to no row."""
    return read_evaluation(demo_folder)


def files_below(folder):
    """Relative names of files, without those of TensorBoard, which hold the time."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "/runs/" not in name}


def test_the_demo_writes_exactly_these_files(demo_folder):
    found = {
        name for name in files_below(demo_folder) if not name.startswith(("nsd/nsddata", "store/subjects/"))
    }
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    model |= {"chat_template.jinja", "log.jsonl"}
    folders = {
        "nsd": {"simulation.json", "simulation_truth/features.npy", "simulation_truth/scenes.parquet"}
        | {f"simulation_truth/subj{number:02d}.safetensors" for number in range(1, 9)},
        "store": {"manifest.json", "stimuli.parquet", "captions.parquet", "pictures.npy", "objects.parquet"}
        | {"tasks.parquet"},
        "clip": model | {"preprocessor_config.json"},
        "llm": model | {"generation_config.json"},
        "align": {"aligner.json", "aligner.safetensors", "log.jsonl", "run.json"},
        **{
            name: {"bitllm.json", "config.json", "generation_config.json", "model.safetensors"}
            | {"log.jsonl", "run.json"}
            for name in ("sft", "prefix", "prefix_mlp", "no_align")
        },
        "rft": {"rft.json", "adapter_model.safetensors", "adapter_config.json", "README.md"}
        | {"log.jsonl", "run.json"},
        "captions": {f"{name}.jsonl" for name in SYSTEMS},
        **{f"evaluation/{name}": {"rows.parquet", "part.json"} for name in ("encoder", *SYSTEMS)},
        "evaluation": {"bitllm-evaluation.json"},
        "evaluation/steps": {f"{name}.json" for name in STEPS if name.startswith("evaluate")},
        "steps": {f"{name}.json" for name in STEPS if not name.startswith("evaluate")},
    }
    expected = {f"{folder}/{name}" for folder, names in folders.items() for name in names}
    single = {
        "bitllm-run.json",
        "recipe.yaml",
        "evaluation.json",
        "evaluation.parquet",
        "evaluation_maps.npz",
        "results.json",
        "report.html",
        "split.json",
        "targets.safetensors",
    }
    assert found == expected | single


def test_nothing_half_written_is_left(demo_folder):
    left = [
        path for path in demo_folder.rglob("*") if path.name.endswith((".unfinished", ".training", ".tmp"))
    ]
    assert left == []


def test_results_name_the_data_the_subject_and_the_split(results, evaluation, demo_folder):
    about = results.about
    assert about.data.startswith("simulated brain (tiny preset, seed 0")
    assert (about.subject, about.is_subject_trained_on, about.seed) == ("subj08", False, 0)
    split = json.loads((demo_folder / "split.json").read_text())
    assert about.split_sha256 == split["sha256"]
    assert split["test_subjects"] == ["subj08"]
    images = set(evaluation.rows["nsd_id"])
    assert about.n_images == len(images)
    assert images <= set(split["test_images"])
    assert set(about.versions) >= {"python", "torch", "transformers", "peft", "bitllm"}
    assert tuple(about.seconds) == STEPS


def test_every_system_has_its_metrics_beside_every_control(results):
    assert tuple(results.systems) == SYSTEMS
    for system in results.systems.values():
        assert set(system.averaged) == set(INPUTS)
        assert list(system.single) == ["real", "permuted"]
        for name, found in system.averaged.items():
            assert {"CIDEr", "BLEU-1", "BLEU-4", "ROUGE-L"} <= set(found.scores)
            assert all(one.low <= one.value <= one.high for one in found.scores.values())
            assert ("CIDEr" in found.real_minus_this) == (name != "real")
        assert all(system.averaged[name].n_distinct == 1 for name in ("zero", "constant", "llm_alone"))
        assert set(system.averaged["permuted"].bits) == {"per_caption", "per_token", "per_word"}
        assert system.single["real"].n_captions == results.about.n_trials >= results.about.n_images


def test_retrieval_has_chance_and_the_size_of_the_gallery_beside_it(results):
    inputs = {"real", "zero", "shuffle", "permuted", "noise", "single_trial"}
    assert set(results.encoder.retrieval) == inputs
    for found in results.encoder.retrieval.values():
        assert found.n_pictures == results.about.n_images
        assert found.chance_r_at_10 == pytest.approx(10 / results.about.n_images)
    mean, sd = results.encoder.cosine_real_zero
    assert -1 <= mean <= 1
    assert sd >= 0


def test_the_nearest_caption_is_a_training_caption_and_the_constant_one_too(demo_folder, evaluation):
    store = open_store(demo_folder / "store")
    training = store.stimuli.index[store.stimuli["part"] == "train"]
    known = {caption for nsd_id in training for caption in store.captions[int(nsd_id)]}
    rows = evaluation.rows[evaluation.rows["input"].isin(["constant", "nearest"])]
    assert set(rows["answer"]) <= known


def test_scores_in_results_are_those_of_the_caption_files(results, demo_folder):
    for name in ("sft", "rft"):
        records = read_captions(demo_folder / "captions" / f"{name}.jsonl")
        assert {record.subject for record in records} == {"subj08"}
        scores = score_file(demo_folder / "captions" / f"{name}.jsonl", None)
        found = {metric: one.value for metric, one in results.systems[name].real.scores.items()}
        assert found == pytest.approx(scores.metrics)
        assert scores.references_sha256 == results.about.references_sha256


def test_the_report_is_one_file_that_needs_no_other(demo_folder):
    html = (demo_folder / "report.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html) + re.findall(r"url\(([^)]*)\)", html)
    assert len(links) > 10
    outside = [link[:60] for link in links if not link.startswith(("#", "data:"))]
    assert outside == []
    assert "@import" not in html
    assert all(word in html for word in ("subj08", "another image", "zero betas", "simulated brain"))


def test_the_terminal_shows_each_step_the_table_and_where_the_report_is(demo_folder):
    said = (demo_folder.parent / "said.txt").read_text(encoding="utf-8")
    for step in STEPS:
        assert re.search(rf"^{step} +\d+\.\d s$", said, flags=re.MULTILINE), step
    for words in ("constant caption", "zero betas", "another image", "retrieval", "report.html"):
        assert words in said
    assert "Traceback" not in said


def test_a_demo_folder_can_be_moved_and_still_decodes(demo_folder, tmp_path):
    for name in ("llm", "sft", "rft"):
        shutil.copytree(demo_folder / name, tmp_path / "moved" / name)
    system = load_captioner(tmp_path / "moved" / "rft", load_llm(tmp_path / "moved" / "llm"))
    assert system.split_sha256 == json.loads((demo_folder / "split.json").read_text())["sha256"]
    assert np.isfinite(system.model.lm_head.weight.detach().numpy()).all()
