import os
import sys

import psutil
import pytest
import torch

from bitllm.training.callbacks import Choice, Validation
from bitllm.training.run import OptimizerConfig, make_trainer
from bitllm.training.trainer import StageTrainer
from bitllm.training.workspace import RunSettings


class Wide(torch.nn.Module):
    """A layer of 4 MB, so that anything kept for each step shows."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1024, 1024)

    def forward(self, x):
        return {"loss": self.layer(x).square().mean(), "size": float(x.mean())}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resident memory is counted otherwise")
def test_memory_after_2000_steps_is_that_after_200(tmp_path):
    used = {}
    process = psutil.Process(os.getpid())

    def measure():
        used[trainer.state.global_step] = process.memory_info().rss
        return {"loss_again": 0.0}

    config = OptimizerConfig(steps=2000, batch_size=8, learning_rate=1e-4, log_every=1)
    trainer = make_trainer(
        StageTrainer,
        Wide(),
        config,
        tmp_path,
        n_examples=100,
        collate=lambda pairs: {"x": torch.randn(len(pairs), 1024)},
        seed=0,
        settings=RunSettings(save_every=100),
    )
    choice = Choice("loss_again", greater_is_better=False)
    trainer.add_callback(Validation(200, measure, choice, log=trainer.log, keep_best=lambda _: None))
    trainer.train()
    assert used[2000] == pytest.approx(used[200], rel=0.05), used
