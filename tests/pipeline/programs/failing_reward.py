"""rft whose reward fails in the second process alone: ``failing_reward.py RECIPE RUN``."""

import sys
from pathlib import Path

from bitllm.pipeline.make import make_system
from bitllm.pipeline.recipe import read_recipe
from bitllm.pipeline.run import Run
from bitllm.stages.rewards import CompositeReward
from bitllm.training.distributed import process_group, rank

score = CompositeReward.__call__


def score_or_fail(self, answers):
    """The reward, but for the second process from its third step on."""
    calls[0] += 1
    if rank() == 1 and calls[0] > 2:
        raise ValueError("the reward model is gone")
    return score(self, answers)


calls = [0]
CompositeReward.__call__ = score_or_fail
with process_group():
    make_system(Run(Path(sys.argv[2]), read_recipe(sys.argv[1])), "failing")
