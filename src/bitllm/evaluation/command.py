"""``bitllm ground``: open a run and a store, ground the run, write ``grounding.json`` and the maps."""

from pathlib import Path
from typing import Any

from bitllm.config import LARGEST_SEED, LONGEST_CAPTION, require_number
from bitllm.data.store import open_store
from bitllm.evaluation.attribution import attribution, write_maps
from bitllm.evaluation.ground import Progress, ground
from bitllm.evaluation.held_out import HeldOut, read_held_out
from bitllm.evaluation.options import GroundOptions
from bitllm.evaluation.rois import find_rois, roi_evidence
from bitllm.evaluation.runs import open_run
from bitllm.evaluation.words import word_categories
from bitllm.files import require_empty, require_place, write_json


def ground_files(
    run: Path, store: Path, options: GroundOptions, *, progress: Progress | None = None
) -> tuple[dict[str, Any], Path]:
    """Ground a run on a store; write ``grounding.json``, and the maps where asked for.

    Everything that can be wrong with the input is checked before anything is computed.

    Returns
    -------
    tuple
        The content of ``grounding.json``, and its path.

    Raises
    ------
    BitLlmError
        If run, store, split, subject, ROI or word list are missing or do not fit each other.
    """
    _require_sensible(options)
    data = open_store(store)
    if options.maps is not None:
        require_empty(options.maps)
    categories = word_categories(data, options.words)
    opened = open_run(run, data, options)
    held_out = read_held_out(data, opened.split, averaged=True, part=options.part, subject=options.subject)
    rois = find_rois(data, held_out.subject, options.rois.split(",") if options.rois else [])
    content, found = ground(
        opened,
        held_out,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        categories=categories,
        progress=progress,
    )
    if rois:
        content["rois"] = roi_evidence(
            opened.system,
            found,
            rois,
            categories,
            seed=options.seed,
            max_new_tokens=options.max_new_tokens,
            progress=progress,
        )
    if rois or options.maps is not None:
        voxels = attribution(opened.system, found, seed=options.seed, progress=progress)
        content["attribution"] = voxels.summary(rois)
        if options.maps is not None:
            write_maps(opened.system, held_out, voxels, options.maps)
    path = options.out or opened.folder / name_of_record(held_out, is_own_store=opened.is_own_store)
    write_json(path, content)
    return content, path


def name_of_record(held_out: HeldOut, *, is_own_store: bool) -> str:
    """``grounding.json`` for the test part of the run's own store, a name of its own for anything else."""
    if held_out.part == "test" and is_own_store:
        return "grounding.json"
    where = "" if is_own_store else f".store-{held_out.store.sha256[:8]}"
    return f"grounding{where}.{held_out.part}.{held_out.subject}.json"


def _require_sensible(options: GroundOptions) -> None:
    require_number("--seed", options.seed, least=0, most=LARGEST_SEED)
    require_number("--max-new-tokens", options.max_new_tokens, least=1, most=LONGEST_CAPTION)
    if options.out is not None:
        require_place(options.out)
