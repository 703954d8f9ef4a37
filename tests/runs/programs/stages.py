"""All three stages of a run in this process, or in those that torchrun started: ``stages.py CONFIG``.

Then sft once more under the name ``joint``, the encoder learning together with the interface.
"""

import sys
from pathlib import Path

from bitllm.runs.config import read_run_config
from bitllm.runs.train import train_stage
from bitllm.training.distributed import process_group

config = read_run_config(Path(sys.argv[1]), [])
with process_group():
    for stage in ("align", "sft", "rft"):
        train_stage(stage, config)
    joint = config.model_copy(update={"sft": config.sft.model_copy(update={"encoder": "trained"})})
    train_stage("sft", joint, name="joint")
