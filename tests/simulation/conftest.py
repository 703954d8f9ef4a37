"""A small release with everything of a large one, and a second data set, made once for all tests of the simulation."""

from pathlib import Path

import pytest

from bitllm.cli import main
from bitllm.data.store import Store, open_store
from bitllm.simulation import SimulationConfig, preset, simulate_release


@pytest.fixture(scope="session")
def config() -> SimulationConfig:
    """The tiny preset with three subjects."""
    return preset("tiny").model_copy(update={"sessions": (4, 3, 4)})


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory, config: SimulationConfig) -> Path:
    """A release of seed 1."""
    out = tmp_path_factory.mktemp("simulated") / "nsd"
    simulate_release(out, config, seed=1)
    return out


@pytest.fixture(scope="session")
def made(easy_release: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    """The second data set that belongs to the easy brain, of seed 3, and its store."""
    root = tmp_path_factory.mktemp("simulated") / "bold5000"
    main(["simulate", str(root), "--bold5000-of", str(easy_release / "nsd"), "--seed", "3"])
    parts = {
        "events": "ds001499",
        "rois": "ds001499/derivatives/spm",
        "transforms": "fmriprep",
        "pictures": "pictures",
    }
    words = [word for name, place in parts.items() for word in (f"--{name}", str(root / place))]
    captions = ["--captions", str(root / "captions_train2014.json")]
    main(["prepare", "bold5000", str(root / "BOLD5000"), str(root / "store"), *captions, *words])
    return root, open_store(root / "store")
