"""What a run's folder says of its stages: ``split.json``, and for each stage the YAML that it was started with.

Both are written at the first step that a stage does: a start that was refused until then changes neither.
"""

from collections.abc import Callable
from pathlib import Path

from bitllm.data.splits import Split, load_split, save_split
from bitllm.errors import SplitError
from bitllm.runs.config import RunConfig
from bitllm.training.logging import Progress

_SPLIT = "split.json"


def require_same_split(split: Split, run: Path) -> None:
    """Refuse another split than that of the run.

    Raises
    ------
    SplitError
        If a stage of the run was trained with another one.
    """
    place = run / _SPLIT
    if place.is_file() and load_split(place).sha256 != split.sha256:
        raise SplitError(
            f"{place}: the run has another split ({load_split(place).sha256[:12]}) than its configuration "
            f"({split.sha256[:12]}); name another run, or go back to that split"
        )


def write_records(config: RunConfig, split: Split, stage: str) -> None:
    """Write the run's split, and the configuration beside the stage's folder."""
    config.run.mkdir(parents=True, exist_ok=True)
    save_split(split, config.run / _SPLIT)
    config.write(config.run / f"{stage}.yaml")


def after(write: Callable[[], None], progress: Progress | None) -> Progress:
    """Progress that calls ``write`` before it tells the first step, which nothing refused any more."""
    is_written = False

    def tell(what: str, done: int, n: int) -> None:
        nonlocal is_written
        if not is_written:
            write()
            is_written = True
        if progress is not None:
            progress(what, done, n)

    return tell
