"""One quick run of two questions by the real command; for tests that only read."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from bitllm.cli import main

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
QUESTIONS = ("interface", "encoder")


class QuickRun(NamedTuple):
    """The folder of a run, that of its first question, and what it said."""

    out: Path
    folder: Path
    said: str


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    out = tmp_path_factory.mktemp("reproduce") / "quick"
    said = io.StringIO()
    with redirect_stdout(said):
        main(["reproduce", *QUESTIONS, "--quick", "--out", str(out), "--experiments", str(EXPERIMENTS)])
    return QuickRun(out, out / "interface", said.getvalue())


@pytest.fixture
def experiments() -> Path:
    """The project's own experiments."""
    return EXPERIMENTS
