"""Commands for training: train, embed."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from bitllm.cli.terminal import OUT, print_json

if TYPE_CHECKING:
    from bitllm.pipeline.recipe import Recipe


def train(
    steps: tyro.conf.Positional[tuple[str, ...]] = ("all",),
    out: Path = Path("run"),
    json: bool = False,
    *,
    recipe: "Recipe",
) -> None:
    """Train stages of a recipe in a run folder; resumes an interrupted stage. Name the recipe first.

    Args:
        steps: align, sft, rft, a variant of the recipe, or all. Steps that they start from are trained first.
        out: Folder of the run.
        json: Print JSON instead of a line for each step.
        recipe: Values of the recipe.
    """
    from bitllm.cli.display import Display
    from bitllm.pipeline.make import make_system, warnings_of
    from bitllm.pipeline.run import Run
    from bitllm.training.distributed import is_main
    from bitllm.training.logging import read_log

    _print_warnings(is_main)
    first = ("align",) if recipe.needs_clip else ()
    names = (*first, *recipe.system_names) if "all" in steps else steps
    for name in names:
        if name != "align":
            recipe.system(name)
    console = Console(stderr=True) if json else OUT
    console.quiet = not is_main()
    found: list[dict[str, Any]] = []
    with Display(console) as display:
        run = Run(out, recipe, display.progress, display.tell)
        for name in names:
            folder, was_finished = make_system(run, name)
            rows = read_log(folder / "log.jsonl")
            validated = [row for row in rows if any(key.startswith("validation") for key in row)]
            found.append(
                {
                    "step": name,
                    "folder": str(folder),
                    "was_finished": was_finished,
                    "validation": validated[-1] if validated else {},
                }
            )
    for line in warnings_of(run):
        logging.getLogger("bitllm").warning(line)
    if json and is_main():
        print_json(found)
        return
    for one in found:
        values = ", ".join(f"{key} {value:.4g}" for key, value in one["validation"].items() if key != "step")
        state = "was finished before" if one["was_finished"] else "finished"
        console.print(f"{one['step']} {state}: {one['folder']}  ({values})", highlight=False)


def _print_warnings(is_main) -> None:  # type: ignore[no-untyped-def]
    """Print this package's warnings, such as that of a damaged checkpoint, in the main process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bitllm: %(message)s"))
    handler.addFilter(lambda _: is_main())
    log = logging.getLogger("bitllm")
    log.handlers, log.propagate = [handler], False


def embed(
    store: tyro.conf.Positional[Path],
    /,
    clip: str,
    out: Path = Path("targets.safetensors"),
    json: bool = False,
) -> None:
    """Embed every image and caption of a store with a frozen CLIP: the targets of the align stage.

    Args:
        store: A store that `bitllm prepare` wrote.
        clip: Folder or hub id of a CLIPModel, e.g. openai/clip-vit-large-patch14.
        out: File to write.
        json: Print JSON instead of a line.
    """
    from bitllm.files import require_place

    require_place(out)
    from bitllm.data.store import open_store
    from bitllm.data.targets import load_clip, make_targets, save_targets
    from bitllm.training.distributed import device

    targets = make_targets(open_store(store), load_clip(clip, device=device()))
    save_targets(targets, out)
    made = {"file": str(out), "n_images": len(targets.nsd_id), "width": targets.image.shape[1]}
    if json:
        print_json(made)
        return
    OUT.print(f"{made['n_images']} images, width {made['width']}: {out}", highlight=False)
