"""All three stages of a run in this process, or in those that torchrun started: ``stages.py CONFIG``."""

import sys
from pathlib import Path

from bitllm.runs.config import read_run_config
from bitllm.runs.train import train_stage
from bitllm.training.ranks import joined_ranks

config = read_run_config(Path(sys.argv[1]), [])
with joined_ranks():
    for stage in ("align", "sft", "rft"):
        train_stage(stage, config)
