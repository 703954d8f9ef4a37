"""The commands that train: train align, train sft, train rft, embed."""

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from bitllm.cli.terminal import OUT, print_json


def train_align(
    config: tyro.conf.Positional[Path],
    /,
    set: tuple[str, ...] = (),
    name: str | None = None,
    json: bool = False,
) -> None:
    """Train stage 1: the encoder, contrastively against pictures and captions. Started again, it goes on.

    Args:
        config: A run's YAML, e.g. configs/train/demo.yaml.
        set: Values instead of the file's, e.g. --set align.optimizer.steps=100 seed=1.
        name: Name of the folder in the run.
        json: Print JSON instead of a line.
    """
    _train("align", config, set, name=name, json=json)


def train_sft(
    config: tyro.conf.Positional[Path],
    /,
    set: tuple[str, ...] = (),
    name: str | None = None,
    start_from: str | None = None,
    json: bool = False,
) -> None:
    """Train stage 2: the interface between brain tokens and the frozen LLM. Started again, it goes on.

    Args:
        config: A run's YAML, e.g. configs/train/demo.yaml.
        set: Values instead of the file's, e.g. --set sft.interface=prefix.
        name: Name of the folder in the run, e.g. --name prefix.
        start_from: A finished sft to go on from, by name or folder, e.g. to adapt it to a new subject.
        json: Print JSON instead of a line.
    """
    _train("sft", config, set, name=name, start_from=start_from, json=json)


def train_rft(
    config: tyro.conf.Positional[Path],
    /,
    set: tuple[str, ...] = (),
    name: str | None = None,
    start_from: str | None = None,
    json: bool = False,
) -> None:
    """Train stage 3: LoRA of the LLM, with rewards. Started again, it goes on.

    Args:
        config: A run's YAML, e.g. configs/train/demo.yaml.
        set: Values instead of the file's, e.g. --set rft.kl_weight=0.1.
        name: Name of the folder in the run.
        start_from: The sft to start from, by name or folder.
        json: Print JSON instead of a line.
    """
    _train("rft", config, set, name=name, start_from=start_from, json=json)


def _train(
    stage: Literal["align", "sft", "rft"],
    path: Path,
    changes: tuple[str, ...],
    *,
    name: str | None,
    json: bool,
    start_from: str | None = None,
) -> None:
    from bitllm.demo.display import Display
    from bitllm.runs.config import read_run_config
    from bitllm.runs.train import say_warnings, train_stage
    from bitllm.training.distributed import is_main
    from bitllm.training.logging import read_log

    say_warnings()
    config = read_run_config(path, list(changes))
    console = Console(stderr=True) if json else OUT
    console.quiet = not is_main()
    with Display(console) as display:
        folder, was_done = train_stage(
            stage, config, name=name, start_from=start_from, progress=display.progress
        )
    rows = read_log(folder / "log.jsonl")
    validated = [row for row in rows if any(key.startswith("validation") for key in row)]
    validation = validated[-1] if validated else {}
    if json and is_main():
        print_json({"folder": str(folder), "was_finished": was_done, "validation": validation})
        return
    values = ", ".join(f"{key} {value:.4g}" for key, value in validation.items() if key != "step")
    state = "was finished before" if was_done else "finished"
    console.print(f"{stage} {state}: {folder}  ({values})", highlight=False)


def embed(
    store: tyro.conf.Positional[Path],
    /,
    clip: str,
    out: Path = Path("targets.safetensors"),
    json: bool = False,
) -> None:
    """Embed every picture and caption of a store by a frozen CLIP: what the align stage aims at.

    Args:
        store: What `bitllm prepare` wrote.
        clip: Folder or hub id of a CLIPModel, e.g. openai/clip-vit-large-patch14.
        out: File to write.
        json: Print JSON instead of a line.
    """
    from bitllm.data.store import open_store
    from bitllm.data.targets import load_clip, make_targets, save_targets

    targets = make_targets(open_store(store), load_clip(clip))
    save_targets(targets, out)
    made = {"file": str(out), "n_images": len(targets.nsd_id), "width": targets.image.shape[1]}
    if json:
        print_json(made)
        return
    OUT.print(f"{made['n_images']} images, width {made['width']}: {out}", highlight=False)
