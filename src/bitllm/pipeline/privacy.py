"""`bitllm audit RUN --privacy`: what a trained system gives away about its data, as ``privacy.json`` of the run."""

from pathlib import Path
from typing import Any

from bitllm.data.store import open_store
from bitllm.evaluation.options import EvaluateOptions
from bitllm.evaluation.privacy import what_files_hold, what_model_gives_away
from bitllm.evaluation.runs import checkpoint_folder, final_of, open_checkpoints, system_names
from bitllm.files import write_json
from bitllm.model.checkpoint.weights import RFT_CARD, sft_beneath
from bitllm.pipeline.run import Run

PRIVACY = "privacy.json"


def audit_privacy(
    run: Path,
    store: Path | None = None,
    *,
    options: EvaluateOptions = EvaluateOptions(),  # noqa: B008 - frozen
    n_items: int = 200,
) -> dict[str, Any]:
    """Measure what the final system of a run gives away, and write it next to its checkpoint.

    Parameters
    ----------
    run
        A run folder, or the folder of one checkpoint of sft or rft.
    store
        The store that it was trained on; by default that of the run.
    options
        ``llm``, ``split``, ``precision`` and ``seed``.
    n_items
        Largest number of trials of each kind.

    Raises
    ------
    BitLlmError
        If run or store are missing, or the run was not trained on this store.
    """
    names = system_names(run) if run.is_dir() else []
    folder = checkpoint_folder(run, final_of(names) if names else None)
    data = Run.open(folder.parent).store if store is None else open_store(store)
    checkpoints = open_checkpoints({folder.name: folder}, data, options)
    seed = options.seed or 0
    found = what_model_gives_away(
        checkpoints.load(folder.name), data, checkpoints.split, n_items=n_items, seed=seed
    )
    folders = [folder, sft_beneath(folder)] if (folder / RFT_CARD).is_file() else [folder]
    record = {
        "version": 1,
        "system": folder.name,
        "split_sha256": checkpoints.split.sha256,
        "store_sha256": data.sha256,
        "seed": seed,
        **found,
        "files": what_files_hold(folders, data),
    }
    write_json(folder.parent / PRIVACY, record)
    return record
