import os
import sys

import psutil
import pytest
import torch

from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainerSettings, TrainingData, Validation


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
        used[loop.step] = process.memory_info().rss
        return {"loss_again": 0.0}

    loop = Loop(
        Wide(),
        TrainingData(100, lambda pairs: {"x": torch.randn(len(pairs), 1024)}),
        OptimizerConfig(steps=2000, batch_size=8, learning_rate=1e-4, log_every=1),
        tmp_path,
        0,
        context=RunContext(TrainerSettings(save_every=100)),
        validation=Validation(200, measure, "loss_again", greater_is_better=False),
    )
    loop.fit()
    assert used[2000] == pytest.approx(used[200], rel=0.05), used
