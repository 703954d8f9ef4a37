import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bitllm.data.store import open_store
from bitllm.evaluation.scoring.captions_file import read_captions
from bitllm.evaluation.scoring.score_file import score_file
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm

SYSTEMS = ("sft", "rft", "prefix", "prefix_mlp", "no_align")
INPUTS = ("real", "zero", "shuffle", "noise", "permuted", "constant", "nearest", "llm_alone")
STEPS = (
    *("simulate", "prepare", "split", "clip", "llm", "targets", "align", "sft", "rft"),
    *("prefix", "prefix_mlp", "no_align", "judge encoder", *(f"judge {name}" for name in SYSTEMS)),
)


@pytest.fixture(scope="module")
def results(demo_folder):
    """What stands in results.json."""
    return json.loads((demo_folder / "results.json").read_text(encoding="utf-8"))


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
        "store": {"manifest.json", "stimuli.parquet", "captions.parquet", "pictures.npy"},
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
        "judged/encoder": {"encoder.json"},
        **{
            f"judged/{name}": {
                "scores.json",
                "words.json",
                *(f"{x}.jsonl" for x in (*INPUTS, "single_trial")),
            }
            for name in SYSTEMS
        },
        "steps": {f"{name}.json" for name in STEPS},
    }
    expected = {f"{folder}/{name}" for folder, names in folders.items() for name in names}
    single = {
        "bitllm-run.json",
        "recipe.yaml",
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


def test_results_name_the_data_the_subject_and_the_split(results, demo_folder):
    assert results["data"].startswith("simulated brain (tiny preset, seed 0")
    assert (results["subject"], results["seed"]) == ("subj08", 0)
    split = json.loads((demo_folder / "split.json").read_text())
    assert results["split_hash"] == split["sha256"]
    assert split["test_subjects"] == ["subj08"]
    images = {record.nsd_id for record in read_captions(demo_folder / "judged" / "rft" / "real.jsonl")}
    assert results["n_images"] == len(images)
    assert images <= set(split["test_images"])
    assert set(results["versions"]) >= {"python", "torch", "transformers", "peft", "bitllm"}


def test_every_system_has_its_metrics_beside_every_control(results):
    assert tuple(results["systems"]) == SYSTEMS
    for name in SYSTEMS:
        rows = {"real": results["systems"][name], **results["controls"][name]}
        assert set(rows) == set(INPUTS)
        for row in rows.values():
            assert {"CIDEr", "BLEU-1", "BLEU-4", "ROUGE-L", "distinct"} <= set(row)
            assert all(math.isfinite(value) for value in row.values())
        assert set(results["differences"][name]) == set(INPUTS) - {"real"}
        assert {"difference", "low", "high", "p"} == set(results["differences"][name]["permuted"]["CIDEr"])
        interval = results["intervals"][name]["BLEU-1"]
        assert interval["low"] <= rows["real"]["BLEU-1"] <= interval["high"]
        assert set(results["bits"][name]) == {"per_caption", "per_token", "per_word"}
        assert results["single_trial"][name]["n_trials"] >= results["n_images"]


def test_zero_constant_and_llm_alone_are_one_distinct_caption(results):
    for name in SYSTEMS:
        for control in ("zero", "constant", "llm_alone"):
            assert results["controls"][name][control]["distinct"] == 1


def test_retrieval_has_chance_and_the_size_of_the_gallery_beside_it(results):
    inputs = {"real", "zero", "shuffle", "permuted", "single_trial"}
    assert set(results["retrieval"]) == inputs
    for row in results["retrieval"].values():
        assert {"R@1", "R@5", "R@10", "MedR", "chance_R@10", "chance_MedR", "low", "high"} <= set(row)
        assert row["N"] == results["n_images"]
        assert row["chance_R@10"] == pytest.approx(10 / results["n_images"])
    assert -1 <= results["cosine_real_zero"]["mean"] <= 1
    assert results["cosine_real_zero"]["sd"] >= 0


def test_every_step_has_its_seconds(results):
    assert tuple(results["seconds"]) == STEPS
    assert all(seconds >= 0 for seconds in results["seconds"].values())


def test_captions_are_records_of_the_held_out_subject(demo_folder):
    for name in SYSTEMS:
        for control in INPUTS:
            records = read_captions(demo_folder / "judged" / name / f"{control}.jsonl")
            assert {record.subject for record in records} == {"subj08"}
            assert {record.control for record in records} == {control}
            assert all(len(record.references) == 5 for record in records)
    single = read_captions(demo_folder / "judged" / "sft" / "single_trial.jsonl")
    assert {record.n_repetitions for record in single} == {1}
    averaged = read_captions(demo_folder / "judged" / "sft" / "real.jsonl")
    assert len(single) == sum(record.n_repetitions for record in averaged)


def test_the_nearest_caption_is_a_training_caption_and_the_constant_one_too(demo_folder):
    encoder = json.loads((demo_folder / "judged" / "encoder" / "encoder.json").read_text())
    store = open_store(demo_folder / "store")
    training = store.stimuli.index[store.stimuli["part"] == "train"]
    known = {caption for nsd_id in training for caption in store.captions[int(nsd_id)]}
    assert {encoder["constant"], *encoder["nearest"]} <= known


def test_scores_in_results_are_those_of_the_caption_files(results, demo_folder):
    for name, control in (("sft", "real"), ("rft", "nearest")):
        scores = score_file(demo_folder / "judged" / name / f"{control}.jsonl", None)
        kept = results["systems"][name] if control == "real" else results["controls"][name][control]
        assert {key: pytest.approx(kept[key]) for key in scores.metrics} == scores.metrics
        assert scores.references_sha256 == results["references_sha256"]


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


def test_the_same_seed_gives_the_same_captions_and_scores(demo_folder, results, tmp_path):
    """In a process of its own, with nothing on standard output but JSON."""
    command = ["demo", "--recipe", "smoke", "--out", str(tmp_path / "again"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "bitllm", *command], capture_output=True, text=True, check=True
    )
    again = json.loads(done.stdout)
    for path in sorted((demo_folder / "judged").rglob("*.jsonl")):
        place = path.relative_to(demo_folder)
        assert (tmp_path / "again" / place).read_bytes() == path.read_bytes(), place
    for name in ("align/aligner", "sft/model", "prefix/model", "rft/adapter_model"):
        weights = (tmp_path / "again" / f"{name}.safetensors").read_bytes()
        assert weights == (demo_folder / f"{name}.safetensors").read_bytes(), name
    moving = {"seconds", "peak_memory_gb", "command", "git_revision"}
    assert {key: value for key, value in again.items() if key not in moving} == {
        key: value for key, value in results.items() if key not in moving
    }


def test_a_demo_folder_can_be_moved_and_still_decodes(demo_folder, tmp_path):
    for name in ("llm", "sft", "rft"):
        shutil.copytree(demo_folder / name, tmp_path / "moved" / name)
    system = load_captioner(tmp_path / "moved" / "rft", load_llm(tmp_path / "moved" / "llm"))
    assert system.split_sha256 == json.loads((demo_folder / "split.json").read_text())["sha256"]
    assert np.isfinite(system.model.lm_head.weight.detach().numpy()).all()
