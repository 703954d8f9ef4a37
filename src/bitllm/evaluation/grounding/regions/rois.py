"""Regions of interest: which voxels of a subject belong to an atlas, or to one label of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from bitllm.config import nearest
from bitllm.data.store import Store
from bitllm.errors import DataError


class Roi(NamedTuple):
    """The voxels of one region."""

    name: str
    """``floc-faces:FFA-1``, or ``floc-faces`` for all labels of the atlas together."""
    atlas: str
    voxels: Bool[np.ndarray, " voxels"]


def find_rois(store: Store, subject: str, wanted: Sequence[str]) -> list[Roi]:
    """The regions asked for, those without a voxel in this subject left out.

    Parameters
    ----------
    wanted
        An atlas stands for itself (all its labels together) and for each of its labels; ``ATLAS:LABEL`` for one.

    Raises
    ------
    DataError
        If the store has no such atlas or the atlas no such label, or no region has a voxel.
    """
    rois: dict[str, Roi] = {}
    for word in wanted:
        atlas, _, label = word.strip().partition(":")
        if atlas not in store.atlases:
            raise DataError(
                f"{store.path}: expected an atlas of the store, found `{atlas}`; "
                f"{nearest(atlas, list(store.atlases))}"
            )
        for roi in _of_atlas(store, subject, atlas, label):
            rois[roi.name] = roi
    found = [roi for roi in rois.values() if roi.voxels.any()]
    if wanted and not found:
        raise DataError(f"{store.path}: expected voxels of {subject} in {', '.join(wanted)}, found none")
    return found


def _of_atlas(store: Store, subject: str, atlas: str, label: str) -> list[Roi]:
    numbers = {name: number for number, name in store.atlases[atlas].items() if number > 0}
    values = store.subject(subject).voxels[atlas].to_numpy()
    if label:
        if label not in numbers:
            raise DataError(
                f"{store.path}: expected a label of {atlas}, found `{label}`; {nearest(label, list(numbers))}"
            )
        return [Roi(f"{atlas}:{label}", atlas, values == numbers[label])]
    each = [Roi(f"{atlas}:{name}", atlas, values == number) for name, number in numbers.items()]
    return [Roi(atlas, atlas, values > 0), *(each if len(each) > 1 else [])]
