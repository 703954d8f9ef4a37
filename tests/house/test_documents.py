"""What README and docs promise exists: commands, options, targets, links, pins."""

import io
import os
import re
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bitllm.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^[ \t]*```(?P<kind>[\w-]*)[^\n]*\n(?P<code>.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<picture>[^)\s]+)\)")
_TWO_WORDS = ("prepare",)


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_of_a_page_exists(page: str) -> None:
    rules = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    used = {
        word
        for line in commands(page)
        if line.split()[0] == "make"
        for word in line.split()[1:]
        if re.fullmatch(r"[a-z][\w-]*", word)
    }
    assert used - set(rules) == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_of_a_page_is_understood(page: str) -> None:
    wrong = [problem for line in commands(page) if line.split()[0] == "bitllm" for problem in problems(line)]
    assert not wrong, "\n".join(wrong)


def test_readme_shows_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(commands("README.md"))


def test_the_map_of_readme_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "src" / "bitllm").glob("*/__init__.py")}
    assert {room for room in rooms if not re.search(rf"^\s+{room}/\s", readme, re.MULTILINE)} == set()


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_no_page_has_a_placeholder_left(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"@[A-Z]+@|\bT(?:ODO|BD)\b|\bFIXME\b", text) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bitllm demo --lm tiny", "--lm"),
        ("bitllm demo --sft.interface huge", "huge"),
        ("bitllm dance", "dance"),
        ("bitllm prepare nsd ROOT STORE --region V1", "--region"),
    ],
)
def test_a_planted_wrong_command_is_found(line: str, problem: str) -> None:
    assert problem in " ".join(problems(line))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    path = ROOT / page
    broken = [target for target in links(path.read_text(encoding="utf-8")) if not _leads(path, target)]
    assert not broken, "\n".join(broken)


def test_every_page_of_the_docs_is_in_the_menu_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [page for entry in site["nav"] for page in _pages_of(entry)]
    assert sorted(f"docs/{page}" for page in pages) == [page for page in PAGES if page.startswith("docs/")]


def test_every_name_of_the_reference_is_there() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert len(names) > 20
    places = [(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    assert [f"{module.__name__}.{name}" for module, name in places if not hasattr(module, name)] == []


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [wanted for extra in project["optional-dependencies"].values() for wanted in extra]
    pins = _pins()
    wrong = [
        f"{requirement} (constraints.txt: {pins.get(canonicalize_name(requirement.name), 'no pin')})"
        for requirement in map(Requirement, [*project["dependencies"], *extras])
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
        or canonicalize_name(requirement.name) not in pins
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_is_installed_first_in_the_pinned_version() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"torch=={_pins()['torch']}" in makefile


def test_the_changelog_has_a_section_for_what_is_not_released() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]\n+### \w+\n+- ", changelog, re.MULTILINE)


def commands(page: str) -> list[str]:
    """Command lines of a page's code blocks and code spans, without prompt, path and comment."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [match["code"] for match in _FENCE.finditer(text)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += _SPAN.findall(_FENCE.sub("", text))
    parts = [part.strip() for line in lines for part in re.split(r"&&|;", re.sub(r"\s#.*", "", line))]
    bare = [re.sub(r"^(\$ )?(\S*/bin/)?", "", part) for part in parts]
    return [line for line in bare if re.match(r"(make|bitllm) \S", line)]


def problems(line: str) -> list[str]:
    """What the command line would not understand."""
    words = line.split()[1:]
    if words[0].startswith("-"):
        return []
    n_words = 2 if words[0] in _TWO_WORDS else 1
    text = help_of(*words[:n_words])
    if not text:
        return [f"`{line}`: no command {' '.join(words[:n_words])}"]
    wrong = []
    for place, word in enumerate(words):
        option, _, value = word.partition("=")
        if not option.startswith("--"):
            continue
        if option != "--debug" and not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text):
            wrong.append(f"`{line}`: no option {option}")
        choices = re.search(rf"{re.escape(option)} \{{([^}}]*)\}}(?!\|)", text)
        value = value or (words[place + 1] if place + 1 < len(words) else "")
        if choices and value not in re.split(r"[,|\s]+", choices[1]):
            wrong.append(f"`{line}`: {option} is one of {choices[1]}, not {value}")
    return wrong


@cache
def help_of(*words: str) -> str:
    """What `--help` of a command prints; nothing if there is no such command."""
    printed = io.StringIO()
    wide = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    with (
        patch.dict(os.environ, wide),
        redirect_stdout(printed),
        redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit),
    ):
        main([*words, "--help"])
    return printed.getvalue() if f"usage: bitllm {' '.join(words)} " in printed.getvalue() else ""


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures that are within the project."""
    prose = _SPAN.sub("", _FENCE.sub("", text))
    targets = [match["target"] or match["picture"] for match in _LINK.finditer(prose)]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def _leads(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.exists():
        return False
    return not anchor or path.suffix != ".md" or anchor in _anchors(path.read_text(encoding="utf-8"))


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower() for heading in headings]
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def _pages_of(entry: str | dict) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inside = next(iter(entry.values()))
    return [inside] if isinstance(inside, str) else [page for part in inside for page in _pages_of(part)]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {canonicalize_name(name): version.strip() for name, version in pairs}
