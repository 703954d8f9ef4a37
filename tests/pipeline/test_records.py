"""What a run's folder says of itself: of what was trained, and of nothing that was refused."""

import json
import shutil

import pytest
import yaml

from bitllm.data.store import open_store
from bitllm.data.targets import load_clip, make_targets, save_targets
from bitllm.errors import BitLlmError, DataError, TrainingError
from bitllm.pipeline.make import make_data, warnings_of
from bitllm.pipeline.recipe import read_recipe
from bitllm.pipeline.run import Run


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


def test_a_resumed_stage_keeps_its_recipe_when_other_settings_are_refused(write_recipe, train, tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(StoppedError):
        train(recipe, "align", progress=stop_at(4))
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    assert yaml.safe_load(written)["seed"] == 0
    with pytest.raises(TrainingError, match=r"align\.training: .*seed: 0 → 1"):
        train(recipe, "align", seed=1)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == written
    train(recipe, "align", **{"trainer.save_every": 3})
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["trainer"]["save_every"] == 3


def test_a_stage_killed_after_its_last_step_has_its_recipe_all_the_same(
    write_recipe, train, tmp_path, monkeypatch
):
    recipe = write_recipe(tmp_path)

    def killed(*_, **__):
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr("bitllm.stages.align.save_aligner", killed)
        train(recipe, "align")
    (tmp_path / "run" / "recipe.yaml").unlink()
    train(recipe, "align")
    assert {"align", "recipe.yaml", "split.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"store": "without pictures"}, {"data.targets": None}),
        ({}, {"align.optimizer.batch_size": 1}),
        ({}, {"data.targets": "nowhere.safetensors"}),
        ({}, {"clip.source": "nowhere", "data.targets": None}),
    ],
)
def test_a_first_start_that_is_refused_leaves_no_stage_and_no_recipe(
    write_recipe, train, demo_folder, another_store, tmp_path, fields, changes
):
    recipe = write_recipe(tmp_path)
    if fields:
        sha256 = json.loads((demo_folder / "store" / "manifest.json").read_text())["sha256"]
        folder = another_store(sha256={name: it for name, it in sha256.items() if name != "pictures.npy"})
        changes = {**changes, "data.store": str(folder)}
    with pytest.raises(BitLlmError):
        train(recipe, "align", **changes)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"bitllm-run.json", "steps", "split.json"}


def test_targets_of_another_store_are_refused_where_they_are_named_and_in_the_run(
    write_recipe, train, demo_folder, another_store, tmp_path
):
    recipe, store = write_recipe(tmp_path), open_store(demo_folder / "store")
    own = tmp_path / "targets.safetensors"
    save_targets(make_targets(store, load_clip(demo_folder / "clip")), own)
    other = another_store(sha256=store.manifest.sha256 | {"pictures.npy": "0" * 64})
    with pytest.raises(DataError, match=r"targets\.safetensors: expected the embeddings of the picture"):
        train(recipe, "align", **{"data.targets": str(own), "data.store": str(other)})
    assert not (tmp_path / "run" / "recipe.yaml").exists()


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
def test_statistics_of_a_store_that_used_the_splits_test_images_are_named_in_one_line(
    write_recipe, another_store, tmp_path, statistics, split, says
):
    store = another_store(statistics=statistics)
    recipe = write_recipe(tmp_path, **{"data.store": str(store), "data.split": split})
    run = Run(tmp_path / "run", read_recipe(str(recipe)))
    make_data(run)
    said = warnings_of(run)
    assert len(said) == says
    if says:
        assert said[0].startswith(f"{store}: ") and f"`{statistics}`" in said[0] and f"`{split}`" in said[0]
        assert "\n" not in said[0]
