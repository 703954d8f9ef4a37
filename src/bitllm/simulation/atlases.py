"""Positions of visual areas on the simulated cortical sheet, under NSD's atlas and label names.

A position is a unit vector (lateral, anterior, dorsal) on a sphere that represents the sheet of one hemisphere, as
fsaverage's sphere does. ``ring`` is its angle from the occipital pole and ``turn`` its angle around the
posterior-anterior axis: 0° ventral, 90° lateral, 180° dorsal, 270° medial. All angles below are degrees.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Places = Float[np.ndarray, "voxels 3"]

ATLASES: dict[str, tuple[str, ...]] = {
    "nsdgeneral": ("nsdgeneral",),
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
}
"""Labels 1, 2, … of every atlas; 0 is cortex without a label and −1 is not cortex."""

COMMON_ATLASES = frozenset({"nsdgeneral", "streams"})
"""Atlases with a color table under fsaverage in NSD; the others have theirs in the subjects' folders only."""


class Patch(NamedTuple):
    """A round area."""

    ring: float
    turn: float
    radius: float


PATCHES: dict[str, Patch] = {
    "OFA": Patch(42.0, 60.0, 9.0), "FFA-1": Patch(62.0, 25.0, 9.0), "FFA-2": Patch(77.0, 28.0, 8.0),
    "mTL-faces": Patch(100.0, 40.0, 8.0), "aTL-faces": Patch(118.0, 35.0, 8.0),
    "OPA": Patch(58.0, 140.0, 11.0), "PPA": Patch(70.0, 342.0, 12.0), "RSC": Patch(62.0, 245.0, 11.0),
    "EBA": Patch(58.0, 95.0, 13.0), "FBA-1": Patch(66.0, 47.0, 8.0), "FBA-2": Patch(80.0, 50.0, 8.0),
    "mTL-bodies": Patch(98.0, 62.0, 8.0),
    "OWFA": Patch(46.0, 36.0, 8.0), "VWFA-1": Patch(70.0, 8.0, 8.0), "VWFA-2": Patch(84.0, 12.0, 8.0),
    "mfs-words": Patch(88.0, 78.0, 8.0), "mTL-words": Patch(100.0, 20.0, 8.0),
    "food-1": Patch(58.0, 8.0, 9.0), "food-2": Patch(84.0, 352.0, 9.0),
}  # fmt: skip
"""Category-selective areas. NSD has no atlas of the food areas, so they have no label here either."""

EARLY_RING = 51.0
"""Outer limit of the retinotopic areas."""

_BAND = 22.0
"""Width of V1, V2 and V3 on either side of the calcarine sulcus."""


def angles(places: Places) -> tuple[Float[np.ndarray, " voxels"], Float[np.ndarray, " voxels"]]:
    """Ring and turn of each position, in degrees (turn in 0 to 360)."""
    ring = np.degrees(np.arccos(np.clip(-places[:, 1], -1, 1)))
    turn = np.degrees(np.arctan2(places[:, 0], -places[:, 2])) % 360
    return ring, turn


def direction(ring: float, turn: float) -> Float[np.ndarray, " 3"]:
    """The position with a given ring and turn."""
    a, b = np.radians([ring, turn])
    return np.array([np.sin(a) * np.sin(b), -np.cos(a), -np.sin(a) * np.cos(b)])


def within(places: Places, patch: Patch) -> Float[np.ndarray, " voxels"]:
    """Distance of each position from the center of a patch, in radii of the patch: inside if below 1."""
    cosine = np.clip(places @ direction(patch.ring, patch.turn), -1, 1)
    return np.degrees(np.arccos(cosine)) / patch.radius


def from_calcarine(places: Places) -> Float[np.ndarray, " voxels"]:
    """Turn from the calcarine sulcus in degrees: positive is ventral (upper visual field), negative dorsal."""
    _, turn = angles(places)
    return (turn - 270 + 180) % 360 - 180


def eccentricity(places: Places) -> Float[np.ndarray, " voxels"]:
    """Eccentricity of the visual field at each position, in degrees of visual angle; the fovea is at the pole."""
    ring, _ = angles(places)
    return 0.35 * (np.exp(3.4 * np.radians(ring)) - 1)


def atlas_labels(atlas: str, places: Places) -> Int[np.ndarray, " voxels"]:
    """Labels of cortical positions in one atlas: 0 without a label, then 1, 2, … in the order of ``ATLASES``."""
    ring, turn = angles(places)
    if atlas == "nsdgeneral":
        return _in_nsdgeneral(ring, turn).astype(np.int64)
    if atlas == "prf-visualrois":
        return _visual_areas(places, ring)
    if atlas == "prf-eccrois":
        bins = np.digitize(eccentricity(places), [0.5, 1, 2, 4]) + 1
        return np.where(_visual_areas(places, ring) > 0, bins, 0)
    if atlas == "streams":
        return _streams(places, ring, turn)
    distances = np.stack([within(places, PATCHES[name]) for name in ATLASES[atlas]])
    return np.where(distances.min(0) < 1, distances.argmin(0) + 1, 0)


def _in_nsdgeneral(ring: Float[np.ndarray, " voxels"], turn: Float[np.ndarray, " voxels"]) -> np.ndarray:
    """Posterior cortex, extending further anterior on the ventral and lateral sides than on the dorsal and medial
    sides.
    """
    return ring < 84 + 10 * np.cos(np.radians(turn - 40))


def _visual_areas(places: Places, ring: Float[np.ndarray, " voxels"]) -> Int[np.ndarray, " voxels"]:
    side = from_calcarine(places)
    band = np.minimum(np.abs(side) // _BAND, 3).astype(np.int64)
    ventral_or_dorsal = np.where(side >= 0, 1, 2) + 2 * band
    area = np.where(band < 3, ventral_or_dorsal, np.where((side >= 0) & (side < 100), 7, 0))
    return np.where(ring < EARLY_RING, area, 0)


def _streams(
    places: Places, ring: Float[np.ndarray, " voxels"], turn: Float[np.ndarray, " voxels"]
) -> Int[np.ndarray, " voxels"]:
    areas = _visual_areas(places, ring)
    ventral = (turn < 50) | (turn > 300)
    lateral = (turn >= 50) & (turn < 130)
    sector = np.where(ventral, 0, np.where(lateral, 1, 2))
    stream = np.where(ring < 60, 2 + sector, 5 + sector)
    stream = np.where((areas > 0) & (areas < 7), 1, stream)
    return np.where(_in_nsdgeneral(ring, turn), stream, 0)
