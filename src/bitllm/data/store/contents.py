"""What a store is made of, whatever format it came from: plain tables, and betas that are read by session."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8

from bitllm.config import StrictConfig
from bitllm.data.store.normalize import Normalization

_SUBJECTS_OWN = frozenset(
    {"t1w", "t2w", "native", "func", "bold", "boldref", "anat", "orig", "individual", "scanner"}
)
"""In lower case; BIDS's names of a subject's own spaces, and what labs call them. NSD's func1pt8mm is not among
them, since its stores hold MNI coordinates; a space of another name may be common to all."""

_CODES_AGAINST_MNI = frozenset({"scanner", "talairach"})
_CODES_AGAINST_OWN = frozenset({"talairach", "mni", "template"})
"""NIfTI's codes. ``aligned`` contradicts nothing: it may mean aligned to a template."""


def contradicts(space: str, code: str) -> bool:
    """Whether the code of a NIfTI affine says that the coordinates are in another space."""
    if is_subjects_own(space):
        return code in _CODES_AGAINST_OWN
    return space.lower().removeprefix("space-").startswith("mni") and code in _CODES_AGAINST_MNI


def is_subjects_own(space: str) -> bool:
    """Whether coordinates in this space cannot be compared between subjects."""
    return space.lower().removeprefix("space-") in _SUBJECTS_OWN


TRIAL_COLUMNS = ("session", "run", "trial", "nsd_id", "repetition", "shared")
TRIAL_OPTIONAL = ("session_name",)
"""The label of a session where it is no plain number; sessions are numbered in the order of the trials."""
VOXEL_COLUMNS = ("i", "j", "k", "x_mm", "y_mm", "z_mm", "ncsnr")
STIMULUS_COLUMNS = ("nsd_id", "coco_id", "shared", "part")
STIMULUS_OPTIONAL = ("stimulus_name",)
"""The name of an image where its makers did not count it; the store counts it all the same."""

SessionReader = Callable[[int], np.ndarray]
"""Reads a session's betas [trials, voxels] by the session's number; picklable, for worker processes."""


class StoreSettings(StrictConfig):
    """Where a store's data came from, and what is done with them on the way."""

    source: str
    """``nsd``, ``simulated``, or the name of another format."""
    simulation: dict[str, object] | None = None
    """The simulator's own record, if the data are simulated."""
    beta_version: str = "unknown"
    space: str = "func1pt8mm"
    roi: str = "nsdgeneral"
    normalization: Normalization = "training"
    validation_fraction: float = 0.08
    seed: int = 0
    """Of the choice of validation images."""


@dataclass(frozen=True)
class View:
    """Which voxels were in the field of view of a session, as a file says."""

    origin: str
    """The file that notes name."""
    voxels: Bool[np.ndarray, " voxels"]


@dataclass(frozen=True)
class SubjectContents:
    """One subject on the way into a store.

    Parameters
    ----------
    name
        For example ``subj01``.
    trials
        One row a trial, in the order of the betas, sessions ascending: ``session`` and ``nsd_id`` at least;
        ``run``, ``trial``, ``repetition`` where they are known.
    voxels
        One row a voxel, in the order of the betas: ``x_mm``, ``y_mm``, ``z_mm`` at least, and one column for
        each atlas (0 = unlabelled); ``i``, ``j``, ``k``, ``ncsnr`` where they are known.
    read_session
        Betas of a session [trials, voxels], in percent signal change or any other unit, or in z-scores.
    origin
        The file or folder that errors name.
    is_z_scored
        Whether the betas are z-scores already; they are then stored as delivered, never z-scored twice.
    fingerprint
        Changes when the files behind ``read_session`` change; an unfinished store with another is not gone
        on with.
    """

    name: str
    trials: pd.DataFrame
    voxels: pd.DataFrame
    read_session: SessionReader
    origin: str
    is_z_scored: bool = False
    fingerprint: str = ""
    views: Mapping[int, View] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreContents:
    """All that a store will hold.

    Parameters
    ----------
    subjects
        At least one.
    stimuli
        One row an image: ``nsd_id`` and ``shared`` (whether it is a test image) at least; ``coco_id`` where
        it is known; ``part`` (train, validation, test) where the format fixes it; ``stimulus_name`` where
        images have names.
    captions
        ``nsd_id`` and ``caption``, one or more for each image.
    pictures
        Makes an iterator of blocks of pictures, in the order of ascending ``nsd_id``; ``None`` without.
    atlases
        Name of every label, by atlas; every atlas is a column of each subject's voxels.
    origin
        The file or folder that errors about images and captions name.
    """

    subjects: list[SubjectContents]
    stimuli: pd.DataFrame
    captions: pd.DataFrame
    origin: str
    pictures: Callable[[], Iterator[UInt8[np.ndarray, "n h w 3"]]] | None = None
    atlases: dict[str, dict[int, str]] = field(default_factory=dict)
