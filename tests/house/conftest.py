"""What the house tests look at: the project's own files, and its Python code as syntax trees."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Module:
    """One Python file."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Path within the project, for messages."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def lines(self) -> list[str]:
        """Lines of the file."""
        return self.text.splitlines()

    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Every function and method, nested ones too."""
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _modules(folder: str) -> list[Module]:
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).rglob("*.py"))}
    return [Module(path, text, ast.parse(text)) for path, text in texts.items()]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def source() -> list[Module]:
    """Every file of src."""
    return _modules("src")


@pytest.fixture(scope="session")
def tests() -> list[Module]:
    """Every file of tests."""
    return _modules("tests")


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Everything that belongs to the project: files at the top and in its folders, nothing that was made."""
    folders = (".ci", "benchmarks", "configs", "docs", "src", "tests")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    made = {"__pycache__", "bitllm.egg-info"}
    return sorted(
        path for path in [*ROOT.iterdir(), *inside] if path.is_file() and not made & set(path.parts)
    )
