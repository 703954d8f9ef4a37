"""Spaces of coordinates: which are a subject's own, so that equal places mean nothing across subjects."""

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
