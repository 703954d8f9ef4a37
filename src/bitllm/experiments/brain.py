"""The simulated brain of a world as a store with its splits, changed as a system asks for.

simulate → prepare → splits
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import WITHIN_SUBJECT, Split, few_images, images_seen, make_split, with_checksum
from bitllm.data.store import Store, open_store
from bitllm.errors import ConfigError
from bitllm.experiments.config import SplitChanges, SystemConfig
from bitllm.experiments.recipe import Recipe
from bitllm.files import folder_written_whole, read_json, sha256_of_file, write_json
from bitllm.pipeline.steps import Steps
from bitllm.simulation.parameters import SIMULATION_VERSION, SimulationConfig, preset
from bitllm.simulation.release import simulate_release
from bitllm.stages.workspace import versions
from bitllm.training.logging import Progress

SplitName = Literal["develop", "poster"]

UNCHANGED = SystemConfig()
"""A system with the recipe's own brain."""

_PLACES, _INDICES = ["x_mm", "y_mm", "z_mm"], ["i", "j", "k"]


def named(changes: Mapping[str, Any]) -> str:
    """Changes as a part of a file's name, e.g. ``signal=0.5``."""
    flat = {
        key: value
        for key, part in changes.items()
        for key, value in (
            {f"{key}.{inner}": value for inner, value in part.items()}
            if isinstance(part, Mapping)
            else {key: part}
        ).items()
    }
    return "+".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}".replace(" ", "")
        for key, value in sorted(flat.items())
    )


def data_name(simulator_seed: int, system: SystemConfig = UNCHANGED) -> str:
    """Name of the brain that a system learns from; by default that of the recipe."""
    places = {"coordinates": system.coordinates} if system.coordinates != "mni" else {}
    changes = named({**system.simulation, **places})
    return f"brain{simulator_seed}" + (f" {changes}" if changes else "")


def make_data(
    root: Path,
    simulator_seed: int,
    system: SystemConfig,
    recipe: Recipe,
    *,
    steps: Steps,
    progress: Progress,
) -> Path:
    """The folder of a brain's store, made unless it is there; its release is deleted as soon as the store is whole."""
    name = data_name(simulator_seed, system)
    folder = root / name / "store"
    if system.coordinates == "indices":
        plain = system.model_copy(update={"coordinates": "mni"})
        source = make_data(root, simulator_seed, plain, recipe, steps=steps, progress=progress)
        steps.run(
            f"{name} places",
            lambda: places_from_indices(open_store(source), folder),
            settings=None,
            after=(f"{data_name(simulator_seed, plain)} prepare",),
        )
        return folder
    simulation, share = preset(recipe.preset).changed(**system.simulation), recipe.validation_fraction
    steps.run(
        f"{name} prepare",
        lambda: _make_store(root / name, simulation, seed=simulator_seed, share=share, progress=progress),
        settings=[
            versions()["bitllm"],
            SIMULATION_VERSION,
            simulation.model_dump(mode="json"),
            simulator_seed,
            share,
        ],
    )
    return folder


def _make_store(
    folder: Path, simulation: SimulationConfig, *, seed: int, share: float, progress: Progress
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    simulate_release(folder / "nsd", simulation, seed=seed, progress=progress)
    prepare_nsd(folder / "nsd", folder / "store", seed=seed, validation_fraction=share, progress=progress)
    shutil.rmtree(folder / "nsd")


def places_from_indices(store: Store, folder: Path) -> None:
    """A copy of a store in which a voxel's place is its indices in its subject's own volume, scaled and centred as mm.

    What an encoder knows that has never heard of a common space: the same voxel of two subjects lies elsewhere.
    """
    with folder_written_whole(folder, replace=True) as unfinished:
        shutil.copytree(store.path, unfinished, dirs_exist_ok=True)
        manifest = read_json(unfinished / "manifest.json")
        for subject in store.subjects:
            path = unfinished / "subjects" / subject / "voxels.parquet"
            voxels = store.subject(subject).voxels.copy()
            indices, mm = voxels[_INDICES].to_numpy(np.float64), voxels[_PLACES].to_numpy(np.float64)
            scaled = (indices - indices.mean(axis=0)) * (mm.std() / indices.std())
            voxels[_PLACES] = scaled.astype(np.float32)
            voxels.to_parquet(path, index=False)
            manifest["subjects"][subject]["sha256"]["voxels.parquet"] = sha256_of_file(path)
        write_json(unfinished / "manifest.json", manifest)


def split_name(name: SplitName, changes: SplitChanges) -> str:
    """Name of a changed split."""
    changed = {key: value for key, value in changes.model_dump().items() if value is not None}
    return name + (f" {named(changed)}" if changed else "")


def changed_split(store: Store, name: SplitName, changes: SplitChanges, *, seed: int) -> Split:
    """The develop or the poster split with a system's changes; develop holds out the same subject always.

    Raises
    ------
    ConfigError
        If the held-out subject is none of the store's, or more training subjects are wanted than there are.
    SplitError
        If the held-out subject has fewer trials than are wanted.
    """
    split = make_split(store, name)
    if changes.held_out is not None and name == "poster":
        if changes.held_out not in store.subjects:
            raise ConfigError(
                f"held_out: expected one of {', '.join(store.subjects)}, found {changes.held_out}"
            )
        others = tuple(subject for subject in store.subjects if subject != changes.held_out)
        split = replace(
            split,
            test_subjects=(changes.held_out,),
            train_subjects=others,
            test_images=images_seen(store, (changes.held_out,), "test"),
        )
    train = split.train_subjects
    if changes.n_train_subjects is not None:
        if changes.n_train_subjects > len(train):
            raise ConfigError(
                f"n_train_subjects: expected at most {len(train)}, found {changes.n_train_subjects}"
            )
        train = train[: changes.n_train_subjects]
    images = {part: images_seen(store, train, part) for part in ("train", "validation")}
    if changes.training_share is not None:
        order = np.random.default_rng(seed).permutation(sorted(images["train"]))
        images["train"] = frozenset(order[: round(len(order) * changes.training_share)].tolist())
    label = split_name(name, changes)
    if changes.n_shots is not None:
        (held_out,) = split.test_subjects
        own = images_seen(store, (held_out,), "train") - images["train"]
        images["train"] |= few_images(store, (held_out,), own, changes.n_shots, seed=seed)
        train, label = (*train, held_out), f"{WITHIN_SUBJECT} {label}"
    if changes.n_shots_alone is not None:
        train, label = split.test_subjects, f"{WITHIN_SUBJECT} {label}"
        images = {part: images_seen(store, train, part) for part in ("train", "validation")}
        images["train"] = few_images(store, train, images["train"], changes.n_shots_alone, seed=seed)
    return with_checksum(
        replace(
            split,
            name=label,
            train_subjects=train,
            train_images=images["train"],
            validation_images=images["validation"],
        )
    )
