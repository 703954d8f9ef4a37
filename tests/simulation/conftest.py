"""A small release with everything of a large one, made once for all tests of the simulation."""

from pathlib import Path

import pytest

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
