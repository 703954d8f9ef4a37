"""Every leak of a store, of a split, and of a run that used them."""

import json
from pathlib import Path
from typing import Any

from bitllm.data.checks.leaks import split_leaks, store_leaks
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
        A split to look at beside the store.
    run
        A folder with ``split.json`` and results; every ``split_sha256`` in its JSON files must be that
        split's.

    Returns
    -------
    dict
        ``store``, ``split`` (checksum, or ``None``), ``leaks`` (one sentence each) and ``is_clean``.

    Raises
    ------
    DataError
        If ``run`` holds no split.
    """
    leaks = list(store_leaks(store))
    if run is not None:
        path = Path(run) / "split.json"
        if not path.is_file():
            raise DataError(f"{path}: expected the split of the run, found none; name the run's folder")
        split = load_split(path)
        leaks += _run_leaks(Path(run), split)
    if split is not None:
        leaks += split_leaks(store, split)
    return {
        "store": str(store.path),
        "split": split.sha256 if split else None,
        "leaks": leaks,
        "is_clean": not leaks,
    }


def _run_leaks(run: Path, split: Split) -> list[str]:
    leaks = []
    for path in sorted(run.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            continue
        written = content.get("split_sha256") if isinstance(content, dict) else None
        if written not in (None, split.sha256):
            leaks.append(
                f"result of another split: {path} carries {str(written)[:12]}, the run's split is "
                f"{split.sha256[:12]}"
            )
    return leaks
