"""Every leak of a store, of a split, and of a run that used them."""

from pathlib import Path
from typing import Any

from bitllm.data.checks.leaks import split_leaks, store_leaks, store_notes
from bitllm.data.checks.runs import run_leaks, run_notes
from bitllm.data.splits import Split, load_split
from bitllm.data.store import Store
from bitllm.errors import DataError


def audit(store: Store, *, split: Split | None = None, run: Path | None = None) -> dict[str, Any]:
    """Look for leaks; nothing is changed.

    Parameters
    ----------
    store
        An open store.
    split
        A split to look at beside the store; by default the run's own ``split.json``.
    run
        A folder with results, and perhaps ``split.json``: every ``split_sha256`` in its JSON files and every
        ``split`` of a ``run.json`` must be that split's; nothing may have been chosen on test images or test
        subjects (``run.json``), nor the test part been looked at while training went on (``log.jsonl``).

    Returns
    -------
    dict
        ``store``, ``split`` (checksum, or ``None``), ``leaks`` and ``notes`` (one sentence each) and
        ``is_clean``.

    Raises
    ------
    DataError
        If ``run`` holds no split and none is given.
    """
    leaks = list(store_leaks(store))
    notes = store_notes(store)
    if run is not None:
        path = Path(run) / "split.json"
        if not path.is_file() and split is None:
            raise DataError(
                f"{path}: expected the split of the run, found none; name the run's folder, or the split with --split"
            )
        of_run = load_split(path) if path.is_file() else split
        assert of_run is not None, "the run's or the given one"
        if split is not None and of_run.sha256 != split.sha256:
            leaks.append(
                f"run of another split: {path} is {of_run.sha256[:12]}, the audited split is {split.sha256[:12]}"
            )
        split = split or of_run
        leaks += run_leaks(store, Path(run), split)
        notes += run_notes(store, Path(run))
    if split is not None:
        leaks += split_leaks(store, split)
    return {
        "store": str(store.path),
        "split": split.sha256 if split else None,
        "leaks": leaks,
        "notes": notes,
        "is_clean": not leaks,
    }
