"""One quick run of two questions by the real command; for tests that only read."""

import io
from collections.abc import Callable
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
def quick(made_once: Callable[[str, Callable[[Path], None]], Path]) -> QuickRun:
    def make(folder: Path) -> None:
        out, said = folder / "quick", io.StringIO()
        with redirect_stdout(said):
            main(["reproduce", *QUESTIONS, "--quick", "--out", str(out), "--experiments", str(EXPERIMENTS)])
        (folder / "said.txt").write_text(said.getvalue(), encoding="utf-8")

    folder = made_once("reproduce", make)
    out = folder / "quick"
    return QuickRun(out, out / "interface", (folder / "said.txt").read_text(encoding="utf-8"))


@pytest.fixture
def experiments() -> Path:
    """The project's own experiments."""
    return EXPERIMENTS
