"""The folder of a stage while it is trained, and what it must agree with to go on.

    <stage>.training/  run.json  log.jsonl  runs/  checkpoints/  best.safetensors

becomes ``<stage>/`` when the stage is finished. Started again, a stage goes on from its newest whole checkpoint, if
settings, data and versions are those it began with; otherwise it refuses and says what differs, or begins anew where
that was asked for.
"""

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pydantic import Field

from bitllm import __version__
from bitllm.config import StrictConfig
from bitllm.errors import OutputError, TrainingError
from bitllm.files import read_json, write_json
from bitllm.training.callbacks import Progress
from bitllm.training.checkpoint import Checkpoints
from bitllm.training.ranks import is_main, n_ranks, wait_for_all

_CODE = ("torch", "transformers", "peft", "accelerate")
_RUN, _LOCK = "run.json", "lock"
_LOG = logging.getLogger("bitllm")


class RunSettings(StrictConfig):
    """How a stage is run. Nothing here changes what is learnt (but ``rft.loss_type=bnpo``, whose means it cuts)."""

    save_every: int = Field(default=100, gt=0)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Number of checkpoints on disk."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Examples that one process computes at once in sft and rft; the whole of its share where it is not given."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work: copies (ddp) or shards (fsdp) of the model."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Where the Trainer sends its rows besides log.jsonl."""
    brain_tokens: Path | None = None
    """Folder where sft and rft keep the brain tokens of the frozen encoder; the memory where it is not given."""
    if_changed: Literal["refuse", "restart"] = "restart"
    """What to do with a stage that was begun with other settings."""


@dataclass(frozen=True)
class Running:
    """How a stage is run, and who is told."""

    settings: RunSettings = RunSettings()  # noqa: RUF009 - frozen
    progress: Progress | None = None


@dataclass(frozen=True)
class Workspace:
    """A stage under way.

    Attributes
    ----------
    folder
        Where it is trained.
    checkpoints
        Its checkpoints.
    """

    folder: Path
    checkpoints: Checkpoints

    @property
    def log(self) -> Path:
        """The log, one JSON object a line."""
        return self.folder / "log.jsonl"

    @property
    def best(self) -> Path:
        """The weights that were best on validation images."""
        return self.folder / "best.safetensors"


@contextmanager
def workspace(
    folder: Path, learnt_from: dict[str, Any], *, about: dict[str, Any], settings: RunSettings
) -> Iterator[Workspace]:
    """Yield the workspace of a stage; it becomes ``folder`` when the block ends without an error.

    An error or a kill leaves it with its checkpoints, so that the same command goes on; an error before the first
    checkpoint leaves nothing.

    Parameters
    ----------
    learnt_from
        JSON value of everything that decides what is learnt.
    about
        What ``run.json`` says besides.
    settings
        How it is run.

    Raises
    ------
    TrainingError
        If it was begun with other settings, data or versions, and ``settings.if_changed`` is ``refuse``; or if another
        process trains in it.
    """
    folder = Path(folder)
    under_way = folder.with_name(folder.name + ".training")
    lock = _locked(under_way) if is_main() else None
    if is_main():
        _open(under_way, {"learnt_from": learnt_from, "versions": versions()}, about, settings)
    wait_for_all()
    work = Workspace(under_way, Checkpoints(under_way / "checkpoints", keep=settings.keep_checkpoints))
    try:
        yield work
    except Exception:
        if is_main() and not work.checkpoints.all():  # nothing to go on from
            shutil.rmtree(under_way)
        raise
    finally:
        if lock is not None:
            lock.close()
    wait_for_all()
    if is_main():
        (under_way / _LOCK).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        under_way.rename(folder)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "best.safetensors").unlink(missing_ok=True)
    wait_for_all()


def is_finished(folder: Path, learnt_from: dict[str, Any]) -> bool:
    """Whether this stage was finished with these settings, data and versions.

    Raises
    ------
    TrainingError
        If it was finished with others.
    OutputError
        If the folder holds something else.
    """
    folder = Path(folder)
    if not folder.exists():
        return False
    if not (folder / _RUN).is_file():
        raise OutputError(
            f"{folder}: expected a new folder or that of a trained stage, found other files; name another run"
        )
    differences = _differences(
        read_json(folder / _RUN), _as_json({"learnt_from": learnt_from, "versions": versions()})
    )
    if differences:
        raise TrainingError(
            f"{folder}: finished with other settings ({differences}); delete the folder to train it again, or name "
            "another run"
        )
    return True


def versions() -> dict[str, str]:
    """Versions of the code that decides what is learnt."""
    return {"bitllm": __version__, **{name: version(name).split("+")[0] for name in _CODE}}


@cache  # of the code that runs: a commit made while it runs changes nothing of it
def git_revision() -> str | None:
    """Commit of the source tree that runs, if it is one; with ``+`` where files were changed since."""

    def ask(*words: str) -> str:
        place = str(Path(__file__).parent)
        command = ["git", "-C", place, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own words
        return done.stdout.strip()

    try:
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _locked(under_way: Path) -> IO[str]:
    """A file that no other process holds while this one lives: two that train in one folder would mix."""
    under_way.mkdir(parents=True, exist_ok=True)
    file = (under_way / _LOCK).open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise TrainingError(
                f"{under_way}: another process is training here; wait for its end, or stop it (a process of torchrun "
                "can outlive it)"
            ) from None
        except OSError:  # a file system without locks
            _LOG.warning("%s: this file system has no locks; see that only one run trains here", under_way)
    return file


def _open(under_way: Path, record: dict[str, Any], about: dict[str, Any], how: RunSettings) -> None:
    if (under_way / _RUN).is_file():
        before = read_json(under_way / _RUN)
        differences = _differences(before, _as_json(record))
        if not differences:
            _warn_of_rounding(under_way, before, {"processes": n_ranks(), **about})
            return
        if how.if_changed == "refuse":
            raise TrainingError(
                f"{under_way}: begun with other settings ({differences}); go back to them, or delete the folder to "
                "begin anew"
            )
    for old in under_way.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != _LOCK:
            old.unlink()
    write_json(under_way / _RUN, {**record, "processes": n_ranks(), "git": git_revision(), **about})


def _warn_of_rounding(under_way: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say what makes the rest of a run another than it had been, though no setting differs."""
    if before["processes"] != now["processes"]:
        _LOG.warning(
            "%s: begun with %s processes, goes on with %s: equal to rounding, not bit by bit; where the encoder "
            "learns, its dropout is drawn otherwise",
            under_way,
            before["processes"],
            now["processes"],
        )
    if before.get("precision", now.get("precision")) != now.get("precision"):
        _LOG.warning(
            "%s: begun with the LLM in %s, goes on in %s (`auto` is measured on each machine); name one to have "
            "the same",
            under_way,
            before["precision"],
            now["precision"],
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The values that differ, as ``key: before → now``."""
    old, new = ({**_flat(one["learnt_from"]), **_flat(one["versions"], "version")} for one in (before, now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {_short(old.get(key))} → {_short(new.get(key))}" for key in keys[:6]) + (
        f"; {len(keys) - 6} more" if len(keys) > 6 else ""
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else text[:45] + "…"


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
