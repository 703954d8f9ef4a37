"""A simulated brain with known ground truth, written in the Natural Scenes Dataset's own file layout."""

from bitllm.simulation.parameters import (
    PRESETS,
    SIMULATION_VERSION,
    SimulationConfig,
    expected_gigabytes,
    preset,
)
from bitllm.simulation.release import simulate_release

__all__ = [
    "PRESETS",
    "SIMULATION_VERSION",
    "SimulationConfig",
    "expected_gigabytes",
    "preset",
    "simulate_release",
]
