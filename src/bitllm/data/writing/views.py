"""Which voxels were in the field of view of a session, by the betas and by a file that says so."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Num

from bitllm.data.writing.contents import SubjectContents, View
from bitllm.files import file_written_whole

_IN_VIEW, _CONTRADICTED = 1, 2
"""Bits of a voxel in the mark of a finished session."""

Betas = Num[np.ndarray, "trials voxels"]


def in_view(betas: Betas) -> Bool[np.ndarray, " voxels"]:
    """Which voxels were in the field of view: NSD writes 0 for all trials of a session (NaN on surfaces)."""
    return (np.isfinite(betas) & (betas != 0)).any(axis=0)


def seen_in_both(betas: Betas, view: View | None) -> Bool[np.ndarray, " voxels"]:
    """Which voxels were in view by the betas and, where there is one, by the file too."""
    return in_view(betas) if view is None else in_view(betas) & view.voxels


def contradicted(betas: Betas, view: View | None) -> Bool[np.ndarray, " voxels"]:
    """Which voxels vary though the file says they were out of view, or do not though it says they were in view."""
    if view is None:
        return np.zeros(betas.shape[1], bool)
    return view.voxels != (in_view(betas) & (betas.max(axis=0) > betas.min(axis=0)))


def write_mark(
    path: Path, seen: Bool[np.ndarray, " voxels"], contradicted: Bool[np.ndarray, " voxels"]
) -> None:
    """Write the file that says that a session is finished, and what was found out about its voxels."""
    with file_written_whole(path) as unfinished:
        unfinished.write_bytes((seen * _IN_VIEW + contradicted * _CONTRADICTED).astype(np.uint8).tobytes())


def share_in_view(folder: Path) -> Float32[np.ndarray, " voxels"]:
    """In which share of a subject's written sessions each voxel was in view, as NSD's ``valid.nii.gz``."""
    seen = np.stack([mark & _IN_VIEW for mark in _read_marks(folder).values()])
    return np.asarray(seen.mean(axis=0), np.float32)


def contradictions(subject: SubjectContents, folder: Path) -> str | None:
    """One line about all voxels of a subject of which file and betas say the contrary, or ``None``."""
    counts = {session: int((mark & _CONTRADICTED > 0).sum()) for session, mark in _read_marks(folder).items()}
    sessions = [session for session, count in counts.items() if count]
    if not sessions:
        return None
    return (
        f"{subject.views[sessions[0]].origin}: expected it to fit the betas, found {counts[sessions[0]]} voxels "
        f"that vary though said to be out of view, or the reverse ({len(sessions)} sessions of {subject.name} "
        "have such voxels); a voxel is taken as in view where both say so"
    )


def _read_marks(folder: Path) -> dict[int, np.ndarray]:
    marks = sorted(folder.glob("session*.done"))
    return {int(mark.stem[len("session") :]): np.frombuffer(mark.read_bytes(), np.uint8) for mark in marks}
