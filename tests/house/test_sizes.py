"""Sizes of files, functions, signatures and blocks."""

import ast
import re
from collections.abc import Iterator
from typing import Any

FILE_LINES = 500
FUNCTION_LINES = 50
ARGUMENTS = 8
NESTING = 3
TEST_STATEMENTS = 32

_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_MARK = re.compile(r"# noqa: PLR0913(?P<reason> - \S.*)?$")


def test_files_are_short(source: list[Any], tests: list[Any]) -> None:
    long = [f"{m.name}: {len(m.lines)}" for m in [*source, *tests] if len(m.lines) > FILE_LINES]
    assert not long, "\n".join(long)


def test_functions_are_short(source: list[Any], tests: list[Any]) -> None:
    """Counted are the lines of the body: no signature, docstring, blank line or comment of its own."""
    long = [
        f"{m.name}:{f.lineno} {f.name}: {n}"
        for m in [*source, *tests]
        for f in m.functions()
        if (n := code_lines(f, m.lines)) > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_signatures_are_short_or_marked(source: list[Any]) -> None:
    """Counted is every argument but self and cls; a longer signature is marked, with its reason."""
    long = [
        f"{m.name}:{f.lineno} {f.name}: {n}"
        for m in source
        for f in m.functions()
        if (n := n_arguments(f)) > ARGUMENTS and not _marks(m.lines[f.lineno - 1])
    ]
    assert not long, "\n".join(long)


def test_marks_of_long_signatures_are_few_and_say_why(source: list[Any]) -> None:
    marked = [f"{m.name}: {line.strip()}" for m in source for line in m.lines if _marks(line)]
    assert [line for line in marked if not _MARK.search(line)["reason"]] == []  # type: ignore[index]
    assert len(marked) <= 10, marked


def test_blocks_are_shallow(source: list[Any]) -> None:
    """Counted are if, for, while, with, try and match inside one another; elif is no level of its own, and
    a function within a block is counted by itself."""
    deep = [
        f"{m.name}:{f.lineno} {f.name}: {n}"
        for m in source
        for f in m.functions()
        if (n := depth(f.body)) > NESTING
    ]
    assert not deep, "\n".join(deep)


def test_test_functions_are_short(tests: list[Any]) -> None:
    """Counted is every statement at any depth, without the docstring."""
    long = [
        f"{m.name}:{f.lineno} {f.name}: {n}"
        for m in tests
        for f in m.functions()
        if f.name.startswith("test_") and (n := n_statements(f)) > TEST_STATEMENTS
    ]
    assert not long, "\n".join(long)


def test_the_counting_itself_counts_right() -> None:
    text = (
        "def f(self, a, *b, c=1, **d):\n"
        '    """Two\n    lines."""\n'
        "    # a comment\n\n"
        "    if a:\n"
        "        with c:\n"
        "            pass\n"
        "    elif b:\n"
        "        for x in [\n            1,\n        ]:\n"
        "            def g():\n"
        "                while x: pass\n"
    )
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert code_lines(function, text.splitlines()) == 9
    assert n_arguments(function) == 2
    assert depth(function.body) == 2
    assert n_statements(function) == 8


def code_lines(function: Any, lines: list[str]) -> int:
    """Lines of a function's statements."""
    body = _without_docstring(function)
    if not body:
        return 0
    within = lines[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(1 for line in within if line.strip() and not line.strip().startswith("#"))


def n_arguments(function: Any) -> int:
    """Named arguments of a function, self and cls left out."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(1 for argument in given if argument.arg not in ("self", "cls"))


def depth(body: list[ast.stmt]) -> int:
    """How many blocks lie inside one another."""
    return max((_depth_of(statement) for statement in body), default=0)


def n_statements(function: Any) -> int:
    """Statements of a function at any depth."""
    body = _without_docstring(function)
    return sum(isinstance(node, ast.stmt) for statement in body for node in ast.walk(statement))


def _depth_of(statement: ast.stmt) -> int:
    if isinstance(statement, _FUNCTIONS):
        return 0
    inner = max((depth(body) for body in _bodies(statement)), default=0)
    if not isinstance(statement, _BLOCKS):
        return inner
    if (
        isinstance(statement, ast.If)
        and len(statement.orelse) == 1
        and isinstance(statement.orelse[0], ast.If)
    ):
        return max(1 + depth(statement.body), _depth_of(statement.orelse[0]))
    return 1 + inner


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(statement, name, [])
    for part in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
        yield part.body


def _without_docstring(function: Any) -> list[ast.stmt]:
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def _marks(line: str) -> bool:
    return _MARK.search(line) is not None
