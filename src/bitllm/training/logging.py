"""The log of a stage: JSON lines, trackers (TensorBoard and others), and progress for the caller."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bitllm.errors import ConfigError
from bitllm.files import file_written_whole
from bitllm.training.distributed import is_main

Progress = Callable[[str, int, int], None]
"""Called with a description (and the last loss), the number of steps done, and the total number of steps."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed; accelerate would skip it silently."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"report_to: expected an installed tracker, found {name}; `pip install {name}`")


class StageLog:
    """Writes each row to ``log.jsonl`` and to the trackers; only the main process writes."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Start the trackers; drop rows after ``step``, which a resumed run writes again."""
        self.accelerator.init_trackers("bitllm")
        if is_main():
            rows = [row for row in read_log(self.path) if row["step"] <= step]
            with file_written_whole(self.path) as unfinished:
                unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        try:
            yield
        finally:  # `Accelerator.end_training` would also end the process group
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Log one row."""
        self.accelerator.log(row, step=step)
        if is_main():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, without an incomplete last line that a killed process may have left."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
