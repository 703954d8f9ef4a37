"""The image of each trial: the design file, compared row by row with the responses."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
from jaxtyping import Int
from scipy.io.matlab import MatReadError

from bitllm.data.io.tables import read_table
from bitllm.data.io.values import whole_numbers
from bitllm.data.nsd.layout import NsdRelease
from bitllm.errors import DataError
from bitllm.files import require_file

_DESIGN_KEYS = ("masterordering", "subjectim", "sharedix", "stimpattern")
_RESPONSE_COLUMNS = {"SESSION": "session", "RUN": "run", "TRIAL": "trial", "73KID": "nsd_id"}


@dataclass(frozen=True)
class Design:
    """NSD's experimental design, with 0-based numbers.

    Parameters
    ----------
    path
        The design file.
    ordering
        Column of ``subject_images`` for each planned trial; the same for all subjects.
    subject_images
        ``nsd_id`` of each subject's images; the shared images are in the first ``n_shared`` columns.
    shared_ids
        ``nsd_id`` of the shared images.
    trials_per_session
        Number of trials in each planned session.
    """

    path: Path
    ordering: Int[np.ndarray, " trials"]
    subject_images: Int[np.ndarray, "subjects images"]
    shared_ids: Int[np.ndarray, " shared"]
    trials_per_session: Int[np.ndarray, " sessions"]

    @property
    def n_shared(self) -> int:
        """Number of shared images."""
        return len(self.shared_ids)


def read_design(path: Path) -> Design:
    """Read ``nsd_expdesign.mat``; all its numbers are 1-based.

    References
    ----------
    NSD Data Manual, "Experiment design and stimuli".
    """
    one_based = read_matlab(path, _DESIGN_KEYS, "NSD's experimental design")
    design = Design(
        path=path,
        ordering=one_based["masterordering"].ravel() - 1,
        subject_images=one_based["subjectim"] - 1,
        shared_ids=one_based["sharedix"].ravel() - 1,
        trials_per_session=one_based["stimpattern"].reshape(len(one_based["stimpattern"]), -1).sum(axis=1),
    )
    _check_design(design)
    return design


def read_matlab(path: Path, keys: tuple[str, ...], what: str) -> dict[str, np.ndarray]:
    """Whole numbers, of at least two axes, from a MATLAB 5 file."""
    require_file(path, what)
    try:
        content = scipy.io.loadmat(path, variable_names=keys)
    except (MatReadError, ValueError, NotImplementedError, OSError, TypeError, zlib.error) as error:
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{path}: expected a MATLAB 5 file, found another ({reason}); download it again"
        ) from None
    for key in keys:
        if key not in content:
            raise DataError(
                f"{path}: expected the variable `{key}`, found none; download the design file again"
            )
    return {key: whole_numbers(np.atleast_2d(content[key]), path, f"`{key}`") for key in keys}


def read_trials(
    release: NsdRelease, design: Design, subject: str, n_sessions: int, notes: list[str] | None = None
) -> pd.DataFrame:
    """The trials of a subject in the order of the betas.

    Parameters
    ----------
    release
        Release with the responses.
    design
        The experimental design.
    subject
        For example ``subj01``, the first row of ``subjectim``.
    n_sessions
        Number of sessions with betas; later rows of the responses are ignored.
    notes
        Receives a line about each peculiarity of the file that is not an error.

    Returns
    -------
    pandas.DataFrame
        ``session``, ``run``, ``trial`` (1-based, as in the responses), ``nsd_id`` (0-based), ``repetition``
        (0-based, of this image for this subject) and ``shared``.
    """
    ordering, sessions = _planned_trials(design, n_sessions)
    nsd_id = _images_of(design, subject)[ordering]
    path = release.responses(subject)
    responses = _read_responses(path, notes)
    _check_responses(path, responses, sessions, nsd_id)
    trials = responses.iloc[: len(nsd_id)].copy()
    trials["nsd_id"] = nsd_id
    trials["repetition"] = trials.groupby("nsd_id").cumcount()
    trials["shared"] = ordering < design.n_shared
    return trials.astype({"session": "int16", "run": "int16", "trial": "int16", "repetition": "int16"})


def _check_design(design: Design) -> None:
    n_images = design.subject_images.shape[1]
    first, last = int(design.ordering.min()) + 1, int(design.ordering.max()) + 1
    if first < 1 or last > n_images:
        raise DataError(
            f"{design.path}: expected `masterordering` between 1 and {n_images} (the columns of "
            f"`subjectim`), found {first} to {last}; download the design file again"
        )
    if design.ordering.size < design.trials_per_session.sum():
        raise DataError(
            f"{design.path}: expected {design.trials_per_session.sum()} trials (the sum of `stimpattern`), "
            f"found {design.ordering.size} in `masterordering`; download the design file again"
        )
    shared = np.sort(design.shared_ids)
    for row, images in enumerate(design.subject_images[:, : design.n_shared], start=1):
        if not np.array_equal(np.sort(images), shared):
            raise DataError(
                f"{design.path}: expected the first {design.n_shared} images of `subjectim` row {row} to be "
                "the shared images of `sharedix`, found others; download the design file again"
            )


def _planned_trials(design: Design, n_sessions: int) -> tuple[np.ndarray, np.ndarray]:
    if n_sessions > len(design.trials_per_session):
        raise DataError(
            f"{design.path}: expected at least {n_sessions} sessions, the number of beta files, found "
            f"{len(design.trials_per_session)} in `stimpattern`; check that both are of one release"
        )
    per_session = design.trials_per_session[:n_sessions]
    return design.ordering[: per_session.sum()], np.repeat(np.arange(1, n_sessions + 1), per_session)


def _images_of(design: Design, subject: str) -> np.ndarray:
    number = int(subject.removeprefix("subj")) if subject.removeprefix("subj").isdecimal() else 0
    if not 1 <= number <= len(design.subject_images):
        raise DataError(
            f"{design.path}: expected a row of `subjectim` for {subject}, found subjects 1 to "
            f"{len(design.subject_images)}; check that the betas are of the same release"
        )
    return design.subject_images[number - 1]


def _read_responses(path: Path, notes: list[str] | None) -> pd.DataFrame:
    responses = read_table(
        path,
        needed=tuple(_RESPONSE_COLUMNS),
        numbers=dict.fromkeys(_RESPONSE_COLUMNS, "int64"),
        notes=notes,
        what="the subject's responses",
        advice="download it again",
    )
    return responses.rename(columns=_RESPONSE_COLUMNS)[list(_RESPONSE_COLUMNS.values())]


def _check_responses(path: Path, responses: pd.DataFrame, sessions: np.ndarray, nsd_id: np.ndarray) -> None:
    if len(responses) < len(nsd_id):
        raise DataError(
            f"{path}: expected {len(nsd_id)} trials, as the design has in {sessions[-1]} sessions, found "
            f"{len(responses)}; download it again"
        )
    for what, found, expected in (
        ("SESSION", responses["session"].to_numpy()[: len(nsd_id)], sessions),
        ("73KID", responses["nsd_id"].to_numpy()[: len(nsd_id)], nsd_id + 1),
    ):
        wrong = np.flatnonzero(found != expected)
        if wrong.size:
            row = int(wrong[0])
            raise DataError(
                f"{path}: expected {what} {expected[row]} in trial {row + 1}, as in the design, found "
                f"{found[row]} ({wrong.size} trials differ); check that responses and design are of one "
                "release"
            )
