"""All stages of a recipe in this process, or in those that torchrun started: ``stages.py RECIPE RUN``."""

import sys
from pathlib import Path

from bitllm.pipeline.make import make_system
from bitllm.pipeline.recipe import read_recipe
from bitllm.pipeline.run import Run
from bitllm.training.distributed import process_group

run = Run(Path(sys.argv[2]), read_recipe(sys.argv[1]))
with process_group():
    for name in ("align", *run.recipe.system_names):
        make_system(run, name)
