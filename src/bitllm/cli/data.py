"""Commands that make and look at data: simulate, prepare, inspect."""

from pathlib import Path
from typing import Literal

import tyro

from bitllm.cli.terminal import OUT, print_json


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
    with Display(OUT) as display:
        simulate_release(out, config, seed=seed, betas_format=betas_format, progress=display.progress)
    OUT.print(
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

    with Display(OUT) as display:
        prepare(
            root,
            store,
            roi=roi,
            validation_fraction=validation_fraction,
            seed=seed,
            progress=display.progress,
        )
    OUT.print(f"{store}: store written; look at it with: bitllm inspect {store}")


def inspect(store: tyro.conf.Positional[Path], /, json: bool = False) -> None:
    """Show what a store holds.

    Args:
        store: Folder of the store.
        json: Print JSON instead of tables.
    """
    from bitllm.data.inspect import inspect_store, render_inspection
    from bitllm.data.store import open_store

    found = inspect_store(open_store(store))
    print_json(found) if json else OUT.print(render_inspection(found))
