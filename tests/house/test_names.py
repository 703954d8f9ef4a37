"""Names of modules, docstrings, and the place of every room in the layers."""

import ast
import importlib
import inspect
import tomllib
from pathlib import Path
from typing import Any

_FORBIDDEN = {"util", "utils", "common", "helper", "helpers", "misc"}


def test_no_module_is_named_for_everything_and_nothing(source: list[Any], tests: list[Any]) -> None:
    found = [m.name for m in [*source, *tests] if _FORBIDDEN & {m.path.stem, *m.path.stem.split("_")}]
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is(source: list[Any]) -> None:
    assert [m.name for m in source if m.text.strip() and not ast.get_docstring(m.tree)] == []


def test_every_public_function_and_class_has_a_docstring(source: list[Any]) -> None:
    lacking = [
        f"{m.name}:{node.lineno} {node.name}"
        for m in source
        for node in m.tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not lacking, "\n".join(lacking)


def test_every_public_method_has_a_docstring_of_its_own_or_of_its_base_class(source: list[Any]) -> None:
    lacking = [
        f"{m.name}: {owner.name}.{method}"
        for m in source
        for owner in m.tree.body
        if isinstance(owner, ast.ClassDef) and not owner.name.startswith("_")
        for method in _undocumented_methods(owner)
        if not inspect.getdoc(getattr(getattr(_imported(m.path), owner.name), method))
    ]
    assert not lacking, "\n".join(lacking)


def test_every_room_has_a_place_in_the_layers(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {room.strip() for layer in layers for room in layer.split("|")}
    package = root / "src" / "bitllm"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py") if not path.name.startswith("__")}
    assert placed == {f"bitllm.{room}" for room in folders | modules}


def _undocumented_methods(owner: ast.ClassDef) -> list[str]:
    return [
        node.name
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]


def _imported(path: Path) -> Any:
    parts = path.with_suffix("").parts
    within = parts[parts.index("src") + 1 :]
    return importlib.import_module(".".join(part for part in within if part != "__init__"))
