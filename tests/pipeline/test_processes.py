"""Two processes against one: the same trajectory at the same global batch, as copies (DDP) and as shards (FSDP2)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from bitllm.data.targets import load_targets
from bitllm.training.logging import read_log

PROGRAM = Path(__file__).parent / "programs" / "stages.py"
WEIGHTS = {"align": "aligner.safetensors", "sft": "model.safetensors", "rft": "adapter_model.safetensors"}
WEIGHTS |= {"joint": "model.safetensors"}


def train(recipe, n_processes):
    """Train every stage of a recipe; return the folder of the run."""
    done = started(n_processes, PROGRAM, recipe, recipe.parent / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    return recipe.parent / "run"


def started(n_processes, *words):
    """A program that ran in one process or in two."""
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *(together if n_processes == 2 else []), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(write_recipe, tmp_path_factory):
    """One process; two with copies, whose share comes in micro-batches; two with shards."""
    folder = tmp_path_factory.mktemp("processes")
    joint = {"variants": {"joint": {"sft": {"encoder": "trained"}}}}
    ddp = write_recipe(folder / "ddp", **joint, **{"trainer.micro_batch": 2, "data.targets": None})
    fsdp = write_recipe(folder / "fsdp", **joint, **{"trainer.parallel": "fsdp"})
    return {
        "one": train(write_recipe(folder / "one", **joint), 1),
        "ddp": train(ddp, 2),
        "fsdp": train(fsdp, 2),
    }


def rows(run, stage):
    """What was logged, without the norm of gradients, which is large and rounds otherwise."""
    return [
        {key: value for key, value in row.items() if key != "grad_norm"}
        for row in read_log(run / stage / "log.jsonl")
    ]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", WEIGHTS)
def test_two_processes_follow_the_trajectory_of_one(runs, stage, how):
    expected, found = rows(runs["one"], stage), rows(runs[how], stage)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=2e-5)
    weights, others = (load_file(run / stage / WEIGHTS[stage]) for run in (runs["one"], runs[how]))
    assert set(weights) == set(others)
    for name, tensor in weights.items():
        assert (tensor - others[name]).norm() <= 2e-3 * tensor.norm() + 1e-6, name


def test_two_processes_embed_the_pictures_together(runs, demo_folder):
    """`ddp` makes its own targets; the others read those of the demo."""
    found, expected = (load_targets(run / "targets.safetensors") for run in (runs["ddp"], demo_folder))
    assert found.made_from == expected.made_from
    for name in ("nsd_id", "image", "text"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


def test_nothing_is_left_over_and_every_process_wrote_its_own_state(runs):
    for run in runs.values():
        assert {path.name for path in run.iterdir() if path.is_dir()} == {*WEIGHTS, "steps"}


def test_captions_that_are_sampled_do_not_depend_on_the_number_of_processes(runs):
    for key in ("reward", "reward_cider", "length", "distinct", "ended"):
        values = {how: next(row[key] for row in rows(run, "rft") if key in row) for how, run in runs.items()}
        assert len({round(value, 5) for value in values.values()}) == 1, values


def test_a_reward_that_fails_in_one_process_stops_both_after_a_checkpoint(runs, write_recipe, tmp_path):
    """With shards, where all processes take part in writing the checkpoint."""
    failing = {"failing": {"start": str(runs["one"] / "sft"), "rft": {}}}
    changes = {"trainer": {"save_every": 100, "parallel": "fsdp"}, "variants": failing}
    recipe = write_recipe(tmp_path, **changes)
    done = started(2, PROGRAM.with_name("failing_reward.py"), recipe, tmp_path / "run")
    assert done.returncode != 0
    assert "found ValueError (the reward model is gone)" in done.stderr
    assert "an error in another process" in done.stderr
    place = tmp_path / "run" / "failing.training" / "checkpoints"
    assert [path.name for path in place.iterdir()] == ["step-00000002"]
    assert {path.name for path in (place / "step-00000002").iterdir()} >= {
        "rank-0.json",
        "rank-1.json",
        "weights.safetensors",
    }
