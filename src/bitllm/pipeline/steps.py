"""Steps of a long run that survive a kill: each is completed, marked as done, and not repeated by the next run.

A step is done if its mark exists and has the key of everything that the step depends on. What a killed run left
incomplete has no mark, and is made again.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from bitllm.errors import OutputError, TrainingError
from bitllm.files import read_record, sha256_of_json, write_json

_POLL_S = 1.0

CAN_SHARE = fcntl is not None
"""Whether processes of this system can divide steps among them."""


class Unit(NamedTuple):
    """Work that one process does at a time."""

    place: str
    """Units with the same place share many parts."""
    do: Callable[[], object]


@dataclass
class Steps:
    """The steps of one run in one folder.

    Parameters
    ----------
    folder
        Folder of results and marks.
    tell
        Called with a line for each finished step.
    maker
        Command that the folder belongs to; the folder of another command is refused.
    tells_kept
        Whether to report steps that an earlier run finished.
    """

    folder: Path
    tell: Callable[[str], None]
    maker: str = "demo"
    tells_kept: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each step when it was made."""
    keys: dict[str, str] = field(default_factory=dict)
    """Key of each finished step."""
    kept: list[str] = field(default_factory=list)
    """Steps that an earlier run or another process finished."""
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        owner = self.folder / f"bitllm-{self.maker}.json"
        holds_something = self.folder.is_dir() and any(one != owner for one in self.folder.iterdir())
        if self.folder.is_file() or (holds_something and not owner.exists()):
            raise OutputError(
                f"{self.folder}: expected a new folder or that of an earlier {self.maker}, found other files; "
                "name another with --out"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        # before anything else, so that a process that starts in this folder a moment later knows it
        with suppress(FileExistsError), owner.open("x", encoding="utf-8") as file:
            file.write(json.dumps({"about": f"made by bitllm {self.maker}; safe to delete"}))
        (self.folder / "steps").mkdir(exist_ok=True)

    def run(
        self,
        name: str,
        make: Callable[[], None],
        *,
        settings: Any,
        after: tuple[str, ...] = (),
        refuse: bool = False,
        file: Path | None = None,
    ) -> None:
        """Make a step unless it is done with the same settings, after the same steps.

        Parameters
        ----------
        name
            Name of the step.
        make
            Makes the step; its files must appear complete or not at all.
        settings
            JSON value of everything that determines the result.
        after
            Steps that provide its inputs.
        refuse
            Whether a step that was done with other settings is an error; otherwise it is made again.
        file
            What the step makes: if it was deleted, the step is done again.

        Raises
        ------
        TrainingError
            If it was done with other settings and ``refuse`` is true.
        """
        key = sha256_of_json([name, settings, [self.keys[step] for step in after]])
        if self._is_kept(name, key, file):
            return
        if refuse and self._mark(name).exists():
            raise TrainingError(
                f"{self.folder}: expected the step `{name}` with these settings and inputs, found it done with others; "
                "name another run, go back to them, or set trainer.if_changed to restart"
            )
        with self.claim(name, waits=True):
            if self._is_kept(name, key, file):  # another process made it meanwhile
                return
            mark = self._mark(name)
            mark.unlink(missing_ok=True)
            start = time.perf_counter()
            make()
            self.seconds[name], self.keys[name] = round(time.perf_counter() - start, 1), key
            write_json(mark, {"key": key, "seconds": self.seconds[name]})
            self.tell(f"{name:<20} {self.seconds[name]:6.1f} s")

    def record(self, name: str, key: str, *, seconds: float | None) -> None:
        """Mark a step that was made outside `run` as done; ``seconds`` is None if it was already done before."""
        if self._is_kept(name, key):
            return
        self.seconds[name], self.keys[name] = round(seconds or 0.0, 1), key
        write_json(self._mark(name), {"key": key, "seconds": self.seconds[name]})
        if seconds is not None:
            self.tell(f"{name:<20} {self.seconds[name]:6.1f} s")

    def divide(self, units: Mapping[str, Unit]) -> None:
        """Do all units that no other process in this folder does; return when all are done.

        Units that share parts with another process's unit come last, because they would have to wait for them.
        """
        pending, told = dict(units), False
        while pending:
            name = self._do_one(pending, alone=True) or self._do_one(pending, alone=False)
            if name is not None:
                del pending[name]
                continue
            if not told:
                self.tell(f"{', '.join(pending)}: under way in another process; waiting for it")
            told = True
            time.sleep(_POLL_S)

    def _do_one(self, pending: Mapping[str, Unit], *, alone: bool) -> str | None:
        """Do the first unit that no other process does (``alone``: and that shares nothing with one in progress); its
        name.
        """
        for name, unit in pending.items():
            with self.claim(f"unit {name}") as is_mine, self.claim(f"at {unit.place}") as is_alone:
                if is_mine and (is_alone or not alone):
                    unit.do()
                    return name
        return None

    @contextmanager
    def claim(self, name: str, *, waits: bool = False) -> Iterator[bool]:
        """Reserve a name among the processes that work in this folder; yields whether it is reserved.

        Parameters
        ----------
        waits
            Whether to wait while another process has the name; otherwise yield false at once.
        """
        if fcntl is None:
            yield True
            return
        path = self.folder / "steps" / f"{name}.lock"
        file = self._locked(path, name, waits=waits)
        if file is None:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            file.close()

    def _locked(self, path: Path, name: str, *, waits: bool) -> IO[str] | None:
        """The open lock file; None if another process has the lock and ``waits`` is false."""
        while True:
            file = path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    file.close()
                    return None
                self.tell(f"{name:<20} under way in another process; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                self.tell(f"{self.folder}: this file system has no locks; run one process at a time here")
                return file
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
            file.close()  # whoever had the lock has removed the file, which others may have made again

    def _mark(self, name: str) -> Path:
        return self.folder / "steps" / f"{name}.json"

    def _is_kept(self, name: str, key: str, file: Path | None = None) -> bool:
        mark = self._mark(name)
        if file is not None and not file.exists():
            return False
        if not mark.exists() or (done := read_record(mark, "key", "seconds"))["key"] != key:
            return False
        if self.keys.get(name) != key:  # report a step once, although several questions share it
            self.kept.append(name)
            if self.tells_kept:
                is_new = mark.stat().st_mtime >= self.started
                by = f"{done['seconds']:6.1f} s in another process" if is_new else "kept from an earlier run"
                self.tell(f"{name:<20} {by}")
        self.seconds[name], self.keys[name] = done["seconds"], key
        return True
