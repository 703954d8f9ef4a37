from pathlib import Path

import pytest
import yaml

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
    "how": {"save_every": 2, "if_changed": "refuse"},
}


@pytest.fixture(scope="session")
def write_run(demo_folder):
    """Write the configuration of a run on the demo's data and models."""

    def write(folder: Path, **changes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        places = {name: str(demo_folder / name) for name in ("store", "llm", "clip")}
        places |= {"split": str(demo_folder / "split.json"), "bertscore": str(demo_folder / "clip")}
        places |= {"targets": str(demo_folder / "targets.safetensors")}
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump({"run": str(folder / "run"), **places, **SIZES, **changes}))
        return path

    return write
