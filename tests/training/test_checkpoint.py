import errno
import json
import logging
import random

import numpy as np
import pytest
import torch

from bitllm.errors import OutputError
from bitllm.training.checkpoint import Checkpoints, damage, random_state, restore_random_state


def write(checkpoints, step, content="weights"):
    with checkpoints.writing(step) as folder:
        (folder / "weights.safetensors").write_text(f"{content} of {step}")
        (folder / "state.json").write_text("{}")


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_only_the_newest_are_kept_and_disk_use_is_bounded(checkpoints):
    for step in (5, 10, 100, 1000):
        write(checkpoints, step)
    assert [path.name for path in checkpoints.all()] == ["step-00000100", "step-00001000"]
    assert len(list(checkpoints.folder.iterdir())) == 2
    assert checkpoints.newest_intact().name == "step-00001000"


def test_without_a_checkpoint_there_is_none(checkpoints):
    assert checkpoints.newest_intact() is None


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "checksums.json"])
def test_a_flipped_byte_sends_the_run_back_to_the_checkpoint_before_and_says_so(checkpoints, caplog, file):
    write(checkpoints, 5)
    write(checkpoints, 10)
    damaged = checkpoints.folder / "step-00000010" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING, logger="bitllm"):
        assert checkpoints.newest_intact().name == "step-00000005"
    assert "step-00000010: damaged checkpoint (" in caplog.text
    assert "resuming from step-00000005" in caplog.text
    assert [path.name for path in checkpoints.all()] == ["step-00000005"]


def test_where_all_are_damaged_the_run_begins_anew_and_says_so(checkpoints, caplog):
    write(checkpoints, 5)
    (checkpoints.folder / "step-00000005" / "weights.safetensors").unlink()
    with caplog.at_level(logging.WARNING, logger="bitllm"):
        assert checkpoints.newest_intact() is None
    assert "weights.safetensors is missing" in caplog.text
    assert "resuming from the start: no checkpoint is intact" in caplog.text


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(checkpoints):
    write(checkpoints, 5)
    with (
        pytest.raises(OutputError, match="step-00000010: the disk is full"),
        checkpoints.writing(10) as folder,
    ):
        (folder / "weights.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000005"]
    assert damage(checkpoints.newest_intact()) is None


def test_what_a_killed_process_left_is_no_checkpoint(checkpoints):
    write(checkpoints, 5)
    half = checkpoints.folder / "step-00000010.unfinished"
    half.mkdir()
    (half / "weights.safetensors").write_text("half")
    assert checkpoints.newest_intact().name == "step-00000005"
    write(checkpoints, 10)
    assert [path.name for path in checkpoints.all()] == ["step-00000005", "step-00000010"]
    assert not half.exists()


def test_random_generators_go_on_where_they_were():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)  # noqa: NPY002

    torch.manual_seed(1)
    random.gauss(0, 1)  # leaves its second value behind
    state = random_state()
    state = json.loads(json.dumps(state))  # as a checkpoint stores it
    drawn = draw()
    assert draw() != drawn
    restore_random_state(state)
    assert draw() == drawn
