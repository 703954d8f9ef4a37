from pathlib import Path

import pytest
import yaml

from bitllm.pipeline.make import make_system
from bitllm.pipeline.recipe import read_recipe
from bitllm.pipeline.run import Run

SIZES = {
    "encoder": {"n_queries": 32, "rank": 16, "n_brain_tokens": 4, "token_width": 16, "n_blocks": 1}
    | {"n_frequencies": 16, "dropout": 0.0},
    "align": {"optimizer": {"steps": 6, "batch_size": 16, "learning_rate": 1e-3, "log_every": 1}}
    | {"validate_every": 3},
    "sft": {
        "adapter_layers": [0, 1],
        "optimizer": {"steps": 6, "batch_size": 8, "learning_rate": 3e-3, "log_every": 1},
        "validate_every": 3,
    },
    "rft": {
        "n_captions": 4,
        "max_new_tokens": 12,
        "lora_rank": 2,
        "optimizer": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "warmup_steps": 0},
        "validate_every": 2,
    },
    "trainer": {"save_every": 2},
}


@pytest.fixture(scope="session")
def write_recipe(demo_folder):
    """Write a recipe that trains on the demo's data and models; dotted names change its values."""

    def write(folder: Path, **changes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "store": str(demo_folder / "store"),
            "split": str(demo_folder / "split.json"),
            "targets": str(demo_folder / "targets.safetensors"),
        }
        values = {"data": data, "bertscore": str(demo_folder / "clip"), **SIZES}
        values |= {name: {"source": str(demo_folder / name)} for name in ("llm", "clip")}
        path = folder / "recipe-to-train.yaml"
        path.write_text(yaml.safe_dump(changed(values, changes)))
        return path

    return write


def changed(values, changes):
    """Values with some of them changed by dotted names."""
    values = yaml.safe_load(yaml.safe_dump(values))
    for name, value in changes.items():
        inner = values
        *above, last = name.split(".")
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return values


@pytest.fixture(scope="session")
def train():
    """Train a system of a recipe in ``run`` beside its file, or in ``out``, with some values changed."""

    def make(path, system, *, out=None, progress=None, **changes):
        path = Path(path)
        text = path.read_text()
        other = path.with_name("changed.yaml")
        other.write_text(yaml.safe_dump(changed(yaml.safe_load(text), changes)))
        run = Run(Path(out or path.parent / "run"), read_recipe(str(other)), progress)
        return make_system(run, system)

    return make
