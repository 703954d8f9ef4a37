"""Names of the spaces of coordinates, and what can be compared between subjects and data sets."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from bitllm.config import nearest
from bitllm.errors import DataError

Frame = Literal["MNI", "MNI305", "own", "unknown"]
"""MNI152; MNI305, that of fsaverage; the subject's own space; one that is not stated."""

MNI305_TO_MNI152 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""FreeSurfer's affine from fsaverage to MNI152 (FreeSurfer wiki, "CoordinateSystems", case 8)."""

_SUBJECTS_OWN = frozenset(
    {"t1w", "t2w", "native", "func", "bold", "boldref", "anat", "orig", "individual", "scanner"}
)
"""Lower-case names of subject-specific spaces, in BIDS and in common use. NSD's func1pt8mm is not among them, because
its stores contain MNI coordinates."""

_CODES_AGAINST_MNI = frozenset({"scanner", "talairach"})
_CODES_AGAINST_OWN = frozenset({"talairach", "mni", "template"})
"""NIfTI codes of common spaces. ``aligned`` is not among them: it may mean aligned to a template."""


def frame_of(space: str) -> Frame | None:
    """What the coordinates of a space refer to; None for a name that is not known.

    Known are BIDS's MNI templates, ``fsLR`` (surfaces in MNI), ``func1pt8mm`` (NSD's stores hold MNI coordinates),
    ``fsaverage`` and ``MNI305``, subject-specific names such as ``T1w``, and ``unknown``.
    """
    name = space.lower().removeprefix("space-")
    if name in _SUBJECTS_OWN:
        return "own"
    if name.startswith("fsaverage") or name == "mni305":
        return "MNI305"
    if name.startswith("mni") or name in ("fslr", "func1pt8mm"):
        return "MNI"
    return "unknown" if name == "unknown" else None


def require_space(space: str, where: object) -> None:
    """Refuse a name of a space that is not known: a misspelled one would never be compared."""
    if frame_of(space) is None:
        known = ["MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNI305", "fsLR", "fsaverage", "func1pt8mm", "T1w"]
        raise DataError(
            f"{where}: expected a known space of the coordinates ({', '.join(known)}, another MNI template, another of "
            f"the subject's own, or unknown), found `{space}`; {nearest(space, [*known, 'unknown', 'native'])}"
        )


def is_subjects_own(space: str) -> bool:
    """Whether coordinates in this space cannot be compared between subjects."""
    return frame_of(space) == "own"


def contradicts(space: str, code: str) -> bool:
    """Whether the code of a NIfTI affine contradicts the stated space of the coordinates."""
    if is_subjects_own(space):
        return code in _CODES_AGAINST_OWN
    return space.lower().removeprefix("space-").startswith("mni") and code in _CODES_AGAINST_MNI


def converted(mm: Float[np.ndarray, "n 3"], *, source: Frame, target: Frame) -> Float[np.ndarray, "n 3"]:
    """Coordinates in another common frame: MNI305 and MNI152 are related by FreeSurfer's affine."""
    if source == target:
        return mm
    assert {source, target} == {"MNI", "MNI305"}, "only these two are related"
    affine = MNI305_TO_MNI152 if target == "MNI" else np.linalg.inv(MNI305_TO_MNI152)
    return mm @ affine[:3, :3].T + affine[:3, 3]
