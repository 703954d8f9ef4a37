"""What the code must never do, and what the repository must never hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
                 "pandas.read_pickle", "pd.read_pickle", "eval", "exec"}  # fmt: skip
_UNSAFE_FLAGS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}

# the folders of someone's own machine; "(...)" keeps this line from naming one itself
_MACHINE_PATH = re.compile(r"(?<![\w.~<])/(home|root|Users|tmp|mnt|scratch|media|private)/\w|[A-Z]:\\Users\\")
_DATA_SUFFIXES = {".npy", ".npz", ".h5", ".hdf5", ".mat", ".nii", ".gz", ".mgz", ".parquet", ".safetensors",
                  ".pt", ".bin", ".gguf", ".pkl", ".tar", ".jpg", ".jpeg"}  # fmt: skip
_LARGEST_BYTES = 1_000_000


# GLMsingle's .npy is a pickle; with the user's consent it is read by an unpickler that admits arrays alone.
_ADMITTED = {"src/bitllm/data/io/pickles.py": ["pickle"]}


def test_no_source_file_unpickles_or_runs_a_shell(source: list[Any]) -> None:
    found = {m.name: [what for _, what in unsafe(m.tree)] for m in source}
    assert {name: what for name, what in found.items() if what} == _ADMITTED


def test_the_one_pickle_is_read_by_the_restricted_unpickler(source: list[Any]) -> None:
    module = next(m for m in source if m.name in _ADMITTED)
    used = {
        ast.unparse(n)
        for n in ast.walk(module.tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"
    }
    assert used == {"pickle.Unpickler", "pickle.UnpicklingError"}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_a_planted_unsafe_line_is_found(line: str) -> None:
    assert len(list(unsafe(ast.parse(line)))) == 1


def test_safe_lines_are_let_pass() -> None:
    text = "yaml.safe_load(t)\nnp.load(p)\nsubprocess.run(['git'], shell=False)\nmodel.eval()\nload_file(p)"
    assert list(unsafe(ast.parse(text))) == []


def test_no_file_names_a_folder_of_someones_machine(root: Path, project_files: list[Path]) -> None:
    own = root.parent.as_posix() + "/"
    found = []
    for path in project_files:
        for number, line in enumerate(_text(path).splitlines(), start=1):
            if _MACHINE_PATH.search(line) or (
                len(own) > 2 and re.search(rf"(?<![\w.]){re.escape(own)}", line)
            ):
                found.append(f"{path.relative_to(root)}:{number} {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_no_data_and_no_large_file_is_kept_in_the_repository(root: Path, project_files: list[Path]) -> None:
    found = [
        str(path.relative_to(root))
        for path in project_files
        if path.suffix in _DATA_SUFFIXES or path.stat().st_size > _LARGEST_BYTES
    ]
    assert not found, "\n".join(found)


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every unsafe import, call and flag."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in _UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _UNSAFE_MODULES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call):
            yield from _unsafe_call(node)


def _unsafe_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    if (name := ast.unparse(call.func)) in _UNSAFE_CALLS:
        yield call.lineno, name
    for keyword in call.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in _UNSAFE_FLAGS and value is _UNSAFE_FLAGS[keyword.arg]:
            yield call.lineno, f"{keyword.arg}={value}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")
