import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bitllm.errors import CheckpointError, DataError
from bitllm.evaluation.runs import open_checkpoints
from bitllm.explore.work import open_session, system_folders
from bitllm.model.build import CARD
from bitllm.pipeline.recipe import Recipe
from bitllm.pipeline.run import RECIPE, Run


def test_two_systems_stay_in_memory(session):
    sft = session.system("sft")
    session.system("prefix")
    assert session.system("sft") is sft
    session.system("rft")
    assert set(session._loaded) == {"sft", "rft"}


def test_an_unknown_system_or_region_is_named(session):
    with pytest.raises(CheckpointError, match="expected a system of the run, found `stf`"):
        session.system("stf")
    with pytest.raises(DataError, match="expected a label of streams, found `erly`"):
        session.roi("subj08", "streams:erly")


def test_a_checkpoint_alone_is_one_system(demo_folder, monkeypatch):
    assert list(system_folders(demo_folder / "rft")) == ["rft"]
    monkeypatch.chdir(demo_folder / "sft")
    assert list(open_session(Path(), demo_folder / "store", precision="bf16").folders) == ["sft"]


def test_a_system_is_loaded_in_the_precision_that_it_was_trained_in(easy, tmp_path):
    shutil.copytree(easy.folder, tmp_path / "run")
    record = tmp_path / "run" / "sft" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"precision": "bf16"}))
    folders = {"sft": tmp_path / "run" / "sft"}
    systems = [open_checkpoints(folders, easy.store).load("sft")]
    systems += [
        open_session(folders["sft"], easy.store.path, precision=p).system("sft") for p in (None, "fp32")
    ]
    assert [one.model.lm_head.weight.dtype for one in systems] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    ]


def test_a_new_subject_is_read_as_in_the_evaluation_of_the_run(easy, tmp_path):
    shutil.copytree(easy.folder, tmp_path / "run")
    recipe = Recipe.parse({"data": {"store": str(easy.store.path)}, "evaluation": {"transport": True}})
    run = Run(tmp_path / "run", recipe)
    recipe.write(tmp_path / "run" / RECIPE)
    session = open_session(tmp_path / "run", easy.store.path)
    system = session.system("sft")
    for subject, part, is_new in (("subj08", "test", True), ("subj01", "validation", False)):
        trials = run.trials(subject, part)[:3]
        betas = np.stack([trials.betas(item) for item in range(3)])
        plain = run.captioner("sft").brain_tokens(trials)
        found = session.brain_tokens(system, subject, betas)
        assert found.equal(plain) is not is_new
        if is_new:
            assert found.equal(run.captioner("sft", adapted_to=subject).brain_tokens(trials))


def test_a_system_that_was_trained_on_questions_is_asked_by_default(demo_folder, tmp_path):
    assert open_session(demo_folder, demo_folder / "store").system_to_ask == "rft"
    shutil.copytree(demo_folder, tmp_path / "demo", ignore=shutil.ignore_patterns("store", "nsd"))
    card = tmp_path / "demo" / "prefix" / CARD
    weights = {"caption": 1.0, "count": 0.5, "presence": 0.0}
    card.write_text(json.dumps(json.loads(card.read_text()) | {"tasks": {"weights": weights}}))
    session = open_session(tmp_path / "demo", demo_folder / "store")
    assert session.system_to_ask == "prefix"
    tasks = {one.name: one.tasks for one in session.info().systems}
    assert (tasks["prefix"], tasks["rft"]) == (["count"], [])


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, demo_folder):
    with pytest.raises(CheckpointError, match="expected the folder of a run, found none"):
        open_session(tmp_path / "none", demo_folder / "store")
    with pytest.raises(CheckpointError, match="expected a checkpoint of sft"):
        open_session(tmp_path, demo_folder / "store")


def test_images_are_listed_by_their_use(session):
    listed = session.images("subj01", "train", offset=2, limit=3)
    assert listed.total > 3
    assert len(listed.images) == 3
    assert all(session.split.train_images >= {image.nsd_id} for image in listed.images)
