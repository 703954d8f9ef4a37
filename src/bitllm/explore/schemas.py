"""Requests and responses of the page: every field is bounded, unknown fields are refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bitllm.explore.conversation import LONGEST_QUESTION, MOST_TURNS

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
RoiName = Annotated[str, Field(min_length=1, max_length=120)]
NsdId = Annotated[int, Field(ge=0, le=10_000_000)]
JobId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Question = Annotated[str, Field(min_length=1, max_length=LONGEST_QUESTION, pattern=r"\S")]
Kind = Literal["none", "silence", "alone", "scale", "shuffle", "zero"]
Use = Literal["test", "validation", "train", "unused"]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ask(_Strict):
    """One decode: a system, a trial, and a change of its betas."""

    system: Name
    subject: Name
    nsd_id: NsdId
    repetition: Annotated[int, Field(ge=1, le=1000)] | None = None
    """A repetition, counted from 1; none for the mean over all."""
    perturbation: Kind = "none"
    roi: RoiName | None = None
    factor: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    questions: Annotated[tuple[Question, ...], Field(max_length=MOST_TURNS)] = ()
    """Questions about the trial, in turn; answered after the captions."""


class SystemInfo(_Strict):
    """A system of the run."""

    name: str
    interface: str
    stage: str
    tasks: list[str]
    """Tasks of questions that it was trained on."""


class RoiInfo(_Strict):
    """A region and its number of voxels in the subject."""

    name: str
    n_voxels: int


class SubjectInfo(_Strict):
    """A subject of the store."""

    name: str
    n_voxels: int
    is_trained_on: bool
    n_images: dict[str, int]
    """Number of images of each use that the subject saw."""
    rois: list[RoiInfo]


class RunInfo(_Strict):
    """Systems, subjects and regions that can be chosen."""

    run: str
    data: str
    llm: str
    split: str
    has_pictures: bool
    systems: list[SystemInfo]
    subjects: list[SubjectInfo]


class ImageInfo(_Strict):
    """An image that a subject saw."""

    nsd_id: int
    n_repetitions: int
    references: list[str]


class ImageList(_Strict):
    """A page of the images of one part."""

    total: int
    images: list[ImageInfo]


class KnownExchange(_Strict):
    """Questions about an image, in turn, with their accepted answers."""

    task: str
    questions: list[str]
    answers: list[list[str]]


class KnownExchanges(_Strict):
    """The first questions of an image in the store."""

    total: int
    exchanges: list[KnownExchange]


class Brain(_Strict):
    """Coordinates of a subject's voxels in mm (right, anterior, superior), and which of them are shown."""

    n_voxels: int
    shown: list[int]
    x_mm: list[float]
    y_mm: list[float]
    z_mm: list[float]
    rois: dict[str, list[int]]
    """Positions within ``shown`` of each region's voxels."""


class JobInfo(_Strict):
    """State of a decode."""

    id: str
    state: JobState
    n_ahead: int
    """Number of decodes ahead in the queue."""


class Problem(_Strict):
    """Why a request was refused, on one line."""

    detail: str
