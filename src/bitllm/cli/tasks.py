"""Command that adds questions to a store."""

from pathlib import Path

import tyro

from bitllm.cli.terminal import OUT, print_json


def tasks(
    store: tyro.conf.Positional[Path],
    source: tyro.conf.Positional[str | None] = None,
    files: tyro.conf.Positional[tuple[Path, ...]] = (),
    /,
    derive: bool = False,
    memory: bool = False,
    seed: int = 0,
    license: str | None = None,
    json: bool = False,
) -> None:
    """Add questions about images to a store, or list those that it has; questions of the same source are replaced.

    Args:
        store: Folder of the store.
        source: vqa-v2, ok-vqa, tdiuc, a-okvqa, visdial, llava, coco-qa, visual-genome, nsd-vqa, or table for a CSV.
        files: Files of the source; questions about other images are left out.
        derive: Derive questions from the objects of the images: presence, count, choice, category, left_right.
        memory: Derive questions about earlier trials: seen, before.
        seed: Seed of the derived questions.
        license: License of the files; by default that of the source.
        json: Print JSON instead of a table.
    """
    from bitllm.config import LARGEST_SEED, require_number
    from bitllm.data.store import open_store
    from bitllm.data.tasks.sources import add_tasks, derive_from, memory_from, read_source
    from bitllm.data.tasks.summary import render_tasks, summary_of_tasks

    require_number("--seed", seed, least=0, most=LARGEST_SEED)
    opened = open_store(store)
    found = derive_from(opened, seed=seed) if derive else []
    found += memory_from(opened, seed=seed) if memory else []
    if source is not None:
        found += read_source(source, files, opened.stimuli, opened.path, license_name=license)
    if found:
        opened = add_tasks(opened, found)
    summary = summary_of_tasks(opened)
    print_json(summary) if json else OUT.print(render_tasks(summary))
