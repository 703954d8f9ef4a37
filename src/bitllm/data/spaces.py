"""Spaces of coordinates: which are a subject's own, so that equal places mean nothing across subjects."""

_SUBJECTS_OWN = frozenset(
    {"t1w", "t2w", "native", "func", "bold", "boldref", "anat", "orig", "individual", "scanner"}
)
"""In lower case; BIDS's names of a subject's own spaces, and what labs call them. NSD's func1pt8mm is not among
them, since its stores hold MNI coordinates; a space of another name may be common to all."""


def is_subjects_own(space: str) -> bool:
    """Whether coordinates in this space cannot be compared between subjects."""
    return space.lower().removeprefix("space-") in _SUBJECTS_OWN
