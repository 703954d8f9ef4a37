"""Contents of a store in a form common to all input formats: plain tables, and betas that are read by session."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Bool, UInt8

from bitllm.config import StrictConfig
from bitllm.data.store.normalize import Normalization

TRIAL_COLUMNS = ("session", "run", "trial", "nsd_id", "repetition", "shared")
TRIAL_OPTIONAL = ("session_name",)
"""Labels of sessions that are not plain numbers; sessions are then numbered in the order of the trials."""
VOXEL_COLUMNS = ("i", "j", "k", "x_mm", "y_mm", "z_mm", "ncsnr")
STIMULUS_COLUMNS = ("nsd_id", "coco_id", "shared", "part")
STIMULUS_OPTIONAL = ("stimulus_name",)
"""Name of an image in formats without image numbers; the store numbers the images."""

OBJECT_COLUMNS = ("nsd_id", "category", "supercategory", "is_crowd", "x", "y", "w", "h", "area")
"""One row per object. ``x``, ``y`` (top left), ``w``, ``h`` are fractions of the image's sides, ``area`` of its area.
A row with ``is_crowd`` is a region with many objects of the category: use it for presence, not for counts."""

_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
TASK_SCHEMA = pa.schema(
    [
        ("id", _TEXT),
        ("nsd_id", pa.int64()),
        ("task", _TEXT),
        ("questions", _TEXTS),
        ("answers", pa.list_(_TEXTS)),
        ("options", pa.list_(_TEXTS)),
        ("answer_type", _TEXT),
        ("source", _TEXT),
        ("license", _TEXT),
        ("question_type", _TEXT),
        ("subject", _TEXT),
        ("row", pa.int64()),
        ("relevance", pa.list_(pa.list_(pa.float64()))),
    ]
)
"""One row per exchange; see `bitllm.data.tasks.Exchange`. Stores of earlier versions lack the last three columns."""

SessionReader = Callable[[int], np.ndarray]
"""Reads a session's betas [trials, voxels], given its number; picklable, for worker processes."""


class StoreSettings(StrictConfig):
    """Origin of a store's data, and how they are processed."""

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
    """Seed of the choice of validation images."""
    license: str = ""
    """License of the data, if the format has one."""
    citation: str = ""
    """Publication to cite."""


@dataclass(frozen=True)
class View:
    """Voxels in the field of view of a session, according to a file."""

    origin: str
    """File to name in notes."""
    voxels: Bool[np.ndarray, " voxels"]


@dataclass(frozen=True)
class SubjectContents:
    """One subject of a store to be written.

    Parameters
    ----------
    name
        For example ``subj01``.
    trials
        One row per trial, in the order of the betas, with ascending sessions. Columns: ``session``, ``nsd_id``;
        optionally ``run``, ``trial``, ``repetition``.
    voxels
        One row per voxel, in the order of the betas. Columns: ``x_mm``, ``y_mm``, ``z_mm``, one for each atlas (0 =
        unlabeled); optionally ``i``, ``j``, ``k``, ``ncsnr``.
    read_session
        Returns the betas of a session [trials, voxels], in any unit or as z-scores.
    origin
        File or folder to name in errors.
    is_z_scored
        Whether the betas are z-scores; they are then stored unchanged.
    fingerprint
        Identifies the content of the files that ``read_session`` reads. An unfinished store with another fingerprint
        is not resumed.
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
    """All contents of a store to be written.

    Parameters
    ----------
    subjects
        At least one.
    stimuli
        One row per image. Columns: ``nsd_id``, ``shared`` (whether it is a test image); optionally ``coco_id``,
        ``part`` (train, validation, test; if the format determines it), ``stimulus_name``.
    captions
        Columns ``nsd_id`` and ``caption``; one or more rows for each image.
    objects
        The objects in the images, with ``OBJECT_COLUMNS``; an image without rows shows none of the annotated
        categories. ``None`` if there are no annotations.
    make_tasks
        Returns questions about the images with the columns of ``TASK_SCHEMA``, given the images with their parts;
        ``None`` if there are none.
    pictures
        Returns an iterator over blocks of images, sorted by ``nsd_id``; ``None`` if there are no images.
    atlases
        Names of the labels of each atlas; each atlas is a column of every subject's voxels.
    origin
        File or folder to name in errors about images and captions.
    """

    subjects: list[SubjectContents]
    stimuli: pd.DataFrame
    captions: pd.DataFrame
    origin: str
    objects: pd.DataFrame | None = None
    make_tasks: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    pictures: Callable[[], Iterator[UInt8[np.ndarray, "n h w 3"]]] | None = None
    atlases: dict[str, dict[int, str]] = field(default_factory=dict)
