"""Steps of a long run that survive a kill: each is made whole, marked as done, and kept by the next run.

A step is done when its mark exists; the mark holds a key of everything that the step depends on. What a killed run
left half-written has no mark, and is made again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitllm.errors import OutputError
from bitllm.files import read_json, sha256_of_json, write_json


@dataclass
class Steps:
    """The steps of one run in one folder.

    Parameters
    ----------
    folder
        Where results and marks are kept.
    tell
        Called with one line for each step that is done or kept.
    maker
        Command that the folder belongs to; a folder of another one is refused.
    """

    folder: Path
    tell: Callable[[str], None]
    maker: str = "demo"
    seconds: dict[str, float] = field(default_factory=dict)
    """Time that each step took when it was made."""
    keys: dict[str, str] = field(default_factory=dict)
    """Key of each step that is done."""
    kept: list[str] = field(default_factory=list)
    """Steps that an earlier run had finished."""

    def __post_init__(self) -> None:
        owner = self.folder / f"bitllm-{self.maker}.json"
        is_taken = self.folder.is_dir() and any(self.folder.iterdir()) and not owner.exists()
        if self.folder.is_file() or is_taken:
            raise OutputError(
                f"{self.folder}: expected a new folder or that of an earlier {self.maker}, found other files; "
                "name another with --out"
            )
        (self.folder / "steps").mkdir(parents=True, exist_ok=True)
        write_json(owner, {"about": f"made by bitllm {self.maker}; safe to delete"})

    def run(self, name: str, make: Callable[[], None], *, settings: Any, after: tuple[str, ...] = ()) -> None:
        """Make a step unless it is done with the same settings after the same steps.

        Parameters
        ----------
        name
            Of the step.
        make
            Makes it; what it writes must appear whole or not at all.
        settings
            JSON value of everything that shapes it.
        after
            Steps whose results it uses.
        """
        key = sha256_of_json([name, settings, [self.keys[step] for step in after]])
        mark = self.folder / "steps" / f"{name}.json"
        if mark.exists() and (done := read_json(mark))["key"] == key:
            self.seconds[name], self.keys[name] = done["seconds"], key
            self.kept.append(name)
            self.tell(f"{name:<20} kept from an earlier run")
            return
        mark.unlink(missing_ok=True)
        start = time.perf_counter()
        make()
        self.seconds[name], self.keys[name] = round(time.perf_counter() - start, 1), key
        write_json(mark, {"key": key, "seconds": self.seconds[name]})
        self.tell(f"{name:<20} {self.seconds[name]:6.1f} s")
