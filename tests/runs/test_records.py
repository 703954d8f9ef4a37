"""What a run's folder says of itself: of what was trained, and of nothing that was refused."""

import json
import shutil

import pytest
import yaml

from bitllm.data.store import open_store
from bitllm.data.targets import load_clip, make_targets, save_targets
from bitllm.errors import BitLlmError, DataError, TrainingError
from bitllm.runs.config import read_run_config
from bitllm.runs.train import train_stage


def train(config, stage, *changes, **more):
    return train_stage(stage, read_run_config(config, list(changes)), **more)


class StoppedError(Exception):
    """What ends a stage in a test."""


def stop_at(step):
    """Progress that ends a stage in the middle of its steps."""

    def progress(what, done, n):
        if done == step:
            raise StoppedError

    return progress


@pytest.fixture
def another_store(demo_folder, tmp_path):
    """A copy of the demo's store whose manifest says something else."""

    def change(**fields):
        folder = shutil.copytree(demo_folder / "store", tmp_path / "another")
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}))
        return folder

    return change


def test_a_stage_that_goes_on_keeps_its_configuration_when_other_settings_are_refused(write_run, tmp_path):
    config = write_run(tmp_path)
    with pytest.raises(StoppedError):
        train(config, "align", progress=stop_at(4))
    written = (tmp_path / "run" / "align.yaml").read_text()
    assert yaml.safe_load(written)["seed"] == 0
    with pytest.raises(TrainingError, match=r"align.training: .*\(seed: 0 → 1"):
        train(config, "align", "seed=1")
    assert (tmp_path / "run" / "align.yaml").read_text() == written
    train(config, "align", "how.save_every=3")
    assert yaml.safe_load((tmp_path / "run" / "align.yaml").read_text())["how"]["save_every"] == 3


def test_a_stage_killed_after_its_last_step_has_its_records_all_the_same(write_run, tmp_path, monkeypatch):
    config = write_run(tmp_path)

    def killed(*_, **__):
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr("bitllm.stages.align.save_aligner", killed)
        train(config, "align")
    for name in ("align.yaml", "split.json"):
        (tmp_path / "run" / name).unlink()
    train(config, "align")
    assert {"align", "align.yaml", "split.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"store": "without pictures"}, ["targets=null"]),
        ({}, ["align.optimizer.batch_size=1"]),
        ({}, ["targets=nowhere.safetensors"]),
        ({}, ["clip=nowhere", "targets=null"]),
    ],
)
def test_a_first_start_that_is_refused_leaves_no_record(
    write_run, demo_folder, another_store, tmp_path, fields, changes
):
    config = write_run(tmp_path)
    if fields:
        sha256 = json.loads((demo_folder / "store" / "manifest.json").read_text())["sha256"]
        folder = another_store(sha256={name: it for name, it in sha256.items() if name != "pictures.npy"})
        changes = [*changes, f"store={folder}"]
    with pytest.raises(BitLlmError):
        train(config, "align", *changes)
    run = tmp_path / "run"
    assert [path.name for path in (run.iterdir() if run.exists() else ())] == []


def test_targets_of_another_store_are_refused_where_they_are_named_and_in_the_run(
    write_run, demo_folder, another_store, tmp_path
):
    config, store = write_run(tmp_path), open_store(demo_folder / "store")
    own = tmp_path / "run" / "targets.safetensors"
    save_targets(make_targets(store, load_clip(demo_folder / "clip")), own)
    other = another_store(sha256=store.manifest.sha256 | {"pictures.npy": "0" * 64})
    for changes in ([f"targets={own}"], ["targets=null"]):
        with pytest.raises(
            DataError, match=r"run/targets\.safetensors: expected the embeddings of the picture"
        ):
            train(config, "align", f"store={other}", *changes)
    assert not (tmp_path / "run" / "align.yaml").exists()


@pytest.mark.parametrize(
    ("statistics", "split", "says"),
    [
        ("training", "develop", False),
        ("not-shared", "poster", False),
        ("not-shared", "develop", True),
        ("session", "poster", True),
        ("as-delivered", "develop", False),
    ],
)
def test_a_store_whose_statistics_saw_the_splits_test_images_is_told_in_one_line(
    write_run, another_store, tmp_path, caplog, statistics, split, says
):
    config, store = write_run(tmp_path), another_store(statistics=statistics)
    with pytest.raises(StoppedError):
        train(config, "align", f"store={store}", f"split={split}", progress=stop_at(1))
    said = [record.getMessage() for record in caplog.records if "statistics" in record.getMessage()]
    assert len(said) == says
    if says:
        assert said[0].startswith(f"{store}: the statistics of its z-scores (`{statistics}`) saw")
        assert f"test images of the split `{split}`" in said[0] and "\n" not in said[0]
