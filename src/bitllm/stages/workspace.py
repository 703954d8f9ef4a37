"""The folder of a stage during training, and the fingerprint that a resumed stage must match.

    <stage>.training/  run.json  log.jsonl  runs/  checkpoints/  best.safetensors

It is renamed to ``<stage>/`` when the stage is finished. A stage that is started again resumes from its newest
intact checkpoint if settings, data and versions are the same. Otherwise it refuses and names the differences, or
starts over if ``if_changed`` is ``restart``.
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
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from bitllm import __version__
from bitllm.errors import OutputError, TrainingError
from bitllm.files import read_record, write_json
from bitllm.training.checkpoint import Checkpoints
from bitllm.training.distributed import barrier, is_main, world_size
from bitllm.training.loop import TrainerSettings

_CODE = ("torch", "transformers", "peft", "accelerate")  # another version may change the result
_RUN, _LOCK = "run.json", "lock"
_LOG = logging.getLogger("bitllm")


@dataclass(frozen=True)
class Workspace:
    """The folder of a stage during training."""

    folder: Path
    checkpoints: Checkpoints


@contextmanager
def workspace(
    folder: Path, fingerprint: dict[str, Any], *, about: dict[str, Any], settings: TrainerSettings
) -> Iterator[Workspace]:
    """Yield the workspace of a stage; it becomes ``folder`` when the block ends without an error.

    After an error or a kill its checkpoints remain, so that the same command resumes. Without a checkpoint the
    folder is removed.

    Parameters
    ----------
    fingerprint
        JSON value of everything that determines the result.
    about
        Further entries of ``run.json``.
    """
    folder = Path(folder)
    under_way = folder.with_name(folder.name + ".training")
    lock = _locked(under_way) if is_main() else None
    if is_main():
        _open(under_way, {"learnt_from": fingerprint, "versions": versions()}, about, settings)
    barrier()
    work = Workspace(under_way, Checkpoints(under_way / "checkpoints", keep=settings.keep_checkpoints))
    try:
        yield work
    except Exception:
        if is_main() and not work.checkpoints.all():  # nothing to resume from
            shutil.rmtree(under_way)
        raise
    finally:
        if lock is not None:
            lock.close()
    barrier()
    if is_main():
        (under_way / _LOCK).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        under_way.rename(folder)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "best.safetensors").unlink(missing_ok=True)
    barrier()


def is_finished(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether this stage was finished with these settings, data and versions."""
    folder = Path(folder)
    if not folder.exists():
        return False
    if not (folder / _RUN).is_file():
        raise OutputError(
            f"{folder}: expected a new folder or that of a trained stage, found other files; name another run"
        )
    differences = _differences(
        read_record(folder / _RUN), _as_json({"learnt_from": fingerprint, "versions": versions()})
    )
    if differences:
        raise TrainingError(
            f"{folder}: expected these settings, found a stage finished with others ({differences}); delete the "
            "folder to train it again, or name another run"
        )
    return True


def versions() -> dict[str, str]:
    """Versions of the packages that determine the result."""
    return {"bitllm": __version__, **{name: version(name).split("+")[0] for name in _CODE}}


@cache  # a commit made while this process runs does not change its code
def git_revision() -> str | None:
    """Commit of the running source tree, with ``+`` if files differ from it; None outside a repository."""

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
    """Lock the folder until this process ends: two processes that train in one folder would mix their files."""
    under_way.mkdir(parents=True, exist_ok=True)
    file = (under_way / _LOCK).open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise TrainingError(
                f"{under_way}: expected no other process, found one that trains here; wait for its end, or stop it "
                "(workers of a killed torchrun may still run)"
            ) from None
        except OSError:  # a file system without locks
            _LOG.warning(
                "%s: no locks on this file system; make sure that only one run trains here", under_way
            )
    return file


def _open(under_way: Path, record: dict[str, Any], about: dict[str, Any], settings: TrainerSettings) -> None:
    if (under_way / _RUN).is_file():
        before = read_record(under_way / _RUN)
        differences = _differences(before, _as_json(record))
        if not differences:
            _warn_of_rounding(under_way, before, {"processes": world_size(), **about})
            return
        if settings.if_changed == "refuse":
            raise TrainingError(
                f"{under_way}: expected these settings, found a stage started with others ({differences}); go back "
                "to them, or delete the folder to start over"
            )
    for old in under_way.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != _LOCK:
            old.unlink()
    write_json(under_way / _RUN, {**record, "processes": world_size(), "git": git_revision(), **about})


def _warn_of_rounding(under_way: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn about changes other than settings that change the rest of a run."""
    if before["processes"] != now["processes"]:
        _LOG.warning(
            "%s: started with %s processes, resumes with %s: equal up to rounding, not bit for bit, and a trained "
            "encoder gets other dropout masks",
            under_way,
            before["processes"],
            now["processes"],
        )
    if before.get("precision", now.get("precision")) != now.get("precision"):
        _LOG.warning(
            "%s: started with the LLM in %s, resumes in %s (`auto` is measured on each machine); set sft.precision and "
            "rft.precision to one of them",
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
