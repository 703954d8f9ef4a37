"""A store as the encoder of another data set reads it: coordinates in its space, labels by its names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitllm.data.store import Store, SubjectData
from bitllm.data.store.spaces import Frame, converted, frame_of
from bitllm.errors import SplitError

_COORDINATES = ["x_mm", "y_mm", "z_mm"]


@dataclass(frozen=True)
class VoxelsAs:
    """Changes a subject's table of voxels; picklable, for worker processes."""

    source: Frame
    target: Frame
    numbers: Mapping[str, Mapping[int, int]]
    """For each atlas of the encoder: its label for each label of the store; all others become 0, unknown."""

    def __call__(self, data: SubjectData) -> SubjectData:
        """The same subject with other coordinates and labels."""
        voxels = data.voxels.copy()
        mm = converted(voxels[_COORDINATES].to_numpy(np.float64), source=self.source, target=self.target)
        voxels[_COORDINATES] = mm.astype(np.float32)
        for atlas, numbers in self.numbers.items():
            found = voxels[atlas].map(lambda n, of=numbers: of.get(n, 0)) if atlas in voxels else 0
            voxels[atlas] = found
        return replace(data, voxels=voxels)


def space_of_training(store: Store, atlases: Sequence[str]) -> dict[str, Any]:
    """Entries of a checkpoint's card: the space of the coordinates, and the labels of the atlases."""
    labels = {atlas: {str(n): name for n, name in store.atlases[atlas].items()} for atlas in atlases}
    return {"space": store.manifest.space, "labels": labels}


def require_same_space(store: Store, card: Mapping[str, Any], *, where: object) -> None:
    """Refuse to continue a model on a store in another space, or with other numbers for the same labels."""
    trained = str(card.get("space", "unknown"))
    frames = {frame_of(name) or "unknown" for name in (store.manifest.space, trained)}
    if len(frames) > 1 and "unknown" not in frames:
        raise SplitError(
            f"{store.path}: expected coordinates in the space that {where} was trained in (`{trained}`), found "
            f"`{store.manifest.space}`; prepare the store in that space"
        )
    for atlas, names in card.get("labels", {}).items():
        found = {str(n): name for n, name in store.atlases.get(atlas, {}).items()}
        other = next((n for n in names if n in found and found[n] != names[n]), None)
        if other is not None:
            raise SplitError(
                f"{store.path}: expected the label {other} of `{atlas}` to be `{names[other]}`, as {where} was "
                f"trained, found `{found[other]}`; prepare the store with the same atlas"
            )


def as_trained_on(store: Store, card: Mapping[str, Any], *, where: object) -> tuple[Store, tuple[str, ...]]:
    """A store of another data set as an encoder reads it, and a note about each change.

    MNI305 (fsaverage) and MNI152 are converted into each other. Labels are joined by name; an atlas or a label that the
    store or the encoder lacks becomes 0, "unknown".

    Parameters
    ----------
    store
        The store to read.
    card
        Card of the checkpoint with ``atlases``, and ``space`` and ``labels`` if they were recorded.
    where
        The checkpoint, for errors.

    Raises
    ------
    SplitError
        If one of both is in a subject's own space, which cannot be compared.
    """
    notes = []
    own, trained = store.manifest.space, card.get("space", "unknown")
    source, target = frame_of(own) or "unknown", frame_of(str(trained)) or "unknown"
    if "own" in (source, target):
        raise SplitError(
            f"{store.path}: expected coordinates in the space that {where} was trained in (`{trained}`), found "
            f"`{own}`, and a subject's own space cannot be compared; prepare the store with coordinates in MNI"
        )
    if "unknown" in (source, target):
        source = target = "unknown"
        notes.append(f"coordinates: the run was trained in `{trained}`, the store has `{own}`; not checked")
    elif source != target:
        notes.append(
            f"coordinates of {store.path} are converted from `{own}` to that of the run, `{trained}`"
        )
    elif own != trained:
        notes.append(f"coordinates: `{own}` and the run's `{trained}` are both {target}; used as they are")
    labels: Mapping[str, Mapping[str, str]] = card.get("labels", {})
    numbers: dict[str, dict[int, int]] = {}
    for atlas in card["atlases"]:
        found = store.atlases.get(atlas)
        if found is None:
            numbers[atlas] = {}
            notes.append(f"{store.path} has no atlas `{atlas}`: its label is unknown for every voxel")
        elif atlas in labels:
            number = {name: int(n) for n, name in labels[atlas].items()}
            numbers[atlas] = {n: number[name] for n, name in found.items() if name in number}
            lost = sorted(set(found.values()) - number.keys())
            if lost:
                notes.append(f"{len(lost)} labels of `{atlas}` are unknown to the run, such as `{lost[0]}`")
    return store.with_voxels(VoxelsAs(source, target, numbers)), tuple(notes)
