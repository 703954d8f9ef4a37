"""Weights and model folders, opened so that every failure is an error with the file and its remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bitllm.errors import BitLlmError, DataError, ModelError
from bitllm.files import require_file


@contextmanager
def open_tensors(path: Path, what: str, *, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file."""
    require_file(path, what)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise DataError(
            f"{path}: expected {what}, found a damaged or truncated safetensors file ({error}); "
            "copy, download or make it again"
        ) from None


def read_tensors(path: Path, what: str, *, framework: str = "pt") -> dict[str, Any]:
    """Read all tensors of a safetensors file; ``framework`` is ``pt`` or ``numpy``."""
    with open_tensors(path, what, framework=framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def require_model_files(place: str | Path) -> None:
    """Check the files of a local model folder (or a GGUF file) before `transformers` opens them.

    Does nothing if ``place`` is a hub id.
    """
    place = Path(place).expanduser()
    files = _files_of_model(place) if place.is_dir() else [place] if place.is_file() else []
    for file in files:
        if file.suffix == ".safetensors":
            with open_tensors(file, "weights of a model"):
                pass
        else:
            require_file(file, "a file of a model")


@contextmanager
def model_loading(place: str | Path, what: str, *, error: type[BitLlmError] = DataError) -> Iterator[None]:
    """Turn any failure to load the model at ``place`` into a one-line error."""
    try:
        require_model_files(place)
        yield
    except BitLlmError as problem:
        if isinstance(problem, error):
            raise
        raise error(str(problem)) from None
    except (ImportError, MemoryError):
        raise
    except Exception as problem:  # noqa: BLE001 - tokenizers and torch raise bare `Exception` and `RuntimeError`
        raise error(
            f"{place}: expected {what}, found none that loads ({_first_line(problem)}); check the name and the files"
        ) from None


@contextmanager
def model_running(place: str | Path, purpose: str) -> Iterator[None]:
    """Turn any failure of a loaded model into a one-line error."""
    try:
        yield
    except (BitLlmError, MemoryError):
        raise
    except Exception as problem:  # noqa: BLE001 - any architecture may be given, each fails in its own way
        raise ModelError(
            f"{place}: expected a model for {purpose}, found one that fails on them ({_first_line(problem)}); "
            "choose another model"
        ) from None


def _files_of_model(folder: Path) -> list[Path]:
    """The files that `transformers` opens; other formats of the same weights may be git-lfs pointers."""
    weights = [*folder.glob("model*.safetensors"), *folder.glob("adapter_model.safetensors")]
    weights = weights or [*folder.glob("pytorch_model*.bin"), *folder.glob("adapter_model.bin")]
    words = [*folder.glob("*.json"), *folder.glob("merges.txt"), *folder.glob("vocab.txt")]
    if not (folder / "tokenizer.json").is_file():
        words += folder.glob("*.model")
    return sorted([*weights, *words])


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
