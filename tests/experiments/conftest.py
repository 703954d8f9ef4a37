"""One quick run of the interface experiment by the real command; for tests that only read."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from bitllm.cli import main

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


class QuickRun(NamedTuple):
    """The folder of a run and what it said."""

    folder: Path
    said: str


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    folder = tmp_path_factory.mktemp("reproduce") / "interface"
    said = io.StringIO()
    with redirect_stdout(said):
        main(["reproduce", "interface", "--quick", "--out", str(folder), "--experiments", str(EXPERIMENTS)])
    return QuickRun(folder, said.getvalue())


@pytest.fixture
def experiments() -> Path:
    """The project's own experiments."""
    return EXPERIMENTS
