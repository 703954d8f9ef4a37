"""The command line. A user's mistake is one line and exit status 2; ``--debug`` shows the traceback."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from bitllm import __version__
from bitllm.errors import BitLlmError

_OUT = Console()
_INTERRUPTED = 130


def simulate(
    out: tyro.conf.Positional[Path],
    /,
    preset: str = "demo",
    seed: int = 0,
    signal: float | None = None,
    noise: float | None = None,
    shared_tuning: float | None = None,
    misalignment_mm: float | None = None,
    betas_format: Literal["hdf5", "nifti"] = "hdf5",
) -> None:
    """Write a simulated brain in NSD's own file layout.

    Args:
        out: New folder for the release.
        preset: Size: tiny, demo or bench.
        seed: Of scenes, brains and noise.
        signal: Strength of the signal (1); 0 writes betas that know nothing of the images.
        noise: Strength of everything in the betas that is no response (1).
        shared_tuning: Share of the tuning that all subjects have in common, 0 to 1.
        misalignment_mm: Typical distance between anatomical and functional place, in mm.
        betas_format: Format of the beta files.
    """
    from bitllm.demo.display import Display
    from bitllm.simulation.parameters import preset as preset_of
    from bitllm.simulation.release import simulate_release

    config = preset_of(preset).changed(
        signal=signal, noise=noise, shared_tuning=shared_tuning, misalignment_mm=misalignment_mm
    )
    with Display(_OUT) as display:
        simulate_release(out, config, seed=seed, betas_format=betas_format, progress=display.progress)
    _OUT.print(
        f"{out}: simulated release written (preset {preset}, seed {seed}); next: bitllm prepare nsd {out} STORE"
    )


def prepare_nsd(
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    roi: str = "nsdgeneral",
    validation_fraction: float = 0.08,
    seed: int = 0,
) -> None:
    """Prepare a store from NSD's own file layout (real or simulated).

    Args:
        root: Folder that holds nsddata, nsddata_betas and nsddata_stimuli.
        store: New folder for the store.
        roi: Voxels to keep: a volume of ppdata/subjAA/func1pt8mm/roi.
        validation_fraction: Share of the training images set aside for choices.
        seed: Of the choice of validation images.
    """
    from bitllm.data.prepare import prepare_nsd as prepare
    from bitllm.demo.display import Display

    with Display(_OUT) as display:
        prepare(
            root,
            store,
            roi=roi,
            validation_fraction=validation_fraction,
            seed=seed,
            progress=display.progress,
        )
    _OUT.print(f"{store}: store written; look at it with: bitllm inspect {store}")


def inspect(store: tyro.conf.Positional[Path], /, json: bool = False) -> None:
    """Show what a store holds.

    Args:
        store: Folder of the store.
        json: Print JSON instead of tables.
    """
    from bitllm.data.inspect import inspect_store, render_inspection
    from bitllm.data.store import open_store

    found = inspect_store(open_store(store))
    _print_json(found) if json else _OUT.print(render_inspection(found))


def demo(
    llm: Literal["tiny", "smollm2"] = "tiny",
    out: Path = Path("demo"),
    seed: int = 0,
    signal: float | None = None,
    split: Literal["poster", "develop"] = "poster",
    full: bool = False,
    config: str | None = None,
    json: bool = False,
) -> None:
    """Run everything: simulated brain, three stages, held-out subject, report.

    Args:
        llm: Base LLM: a small Llama made on the spot, or the real SmolLM2-135M-Instruct.
        out: Folder for results; an unfinished demo in it goes on.
        seed: Of everything.
        signal: Strength of the simulated signal; 0 is the test that nothing is decoded from noise.
        split: poster holds out the last subject; develop the one before, on validation images, for choosing settings.
        full: Train every baseline (prefix, prefix_mlp, no_align).
        config: A YAML configuration instead of the packaged one.
        json: Print results.json instead of tables.
    """
    from bitllm.demo.command import run_demo

    console = Console(stderr=True) if json else _OUT
    results = run_demo(config or llm, out, seed=seed, signal=signal, split=split, full=full, console=console)
    if json:
        _print_json(results)


def score(
    captions: tyro.conf.Positional[Path],
    /,
    references: Path | None = None,
    json: bool = False,
) -> None:
    """Score captions, always beside a constant caption, permuted captions and people.

    Args:
        captions: Our captions.jsonl, or {"id": "caption"} of any decoder.
        references: {"id": ["reference", ...]} where the captions do not carry their own.
        json: Print JSON instead of a table.
    """
    from bitllm.evaluation.score_file import render_scores, score_file

    scores = score_file(captions, references)
    _print_json(scores.to_json()) if json else _OUT.print(render_scores(scores))


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "simulate": simulate,
    "prepare nsd": prepare_nsd,
    "inspect": inspect,
    "score": score,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit status 2 for a user's mistake, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["prepare"] and len(words) > 1:
        words = [" ".join(words[:2]), *words[2:]]
    _quiet_libraries()
    if words in (["--version"], ["-V"]):
        print(f"bitllm {__version__}")
        return
    try:
        tyro.extras.subcommand_cli_from_dict(
            _COMMANDS,
            args=words,
            prog="bitllm",
            description="Decode brain activity (fMRI) into language, with controls that show what comes from it.",
        )
    except BitLlmError as error:
        if debug:
            raise
        print(f"bitllm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nbitllm: interrupted; the same command goes on from the finished steps", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and notices out of our output, and the network out of reach unless asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
