"""Coordinates, labels and noise ceilings of the voxels of a mask."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int16
from scipy.spatial import KDTree

from bitllm.data.io.values import whole_labels
from bitllm.data.io.volumes import Grid, read_volume, require_same_grid
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.store.contents import View
from bitllm.errors import DataError
from bitllm.files import read_text

INVALID_MNI = 9999
"""NSD's code for a voxel outside the MNI template."""

MNI_ORIGIN = np.array([91, 127, 73])
"""1-based voxel of the 1 mm MNI template (182 x 218 x 182) that is at 0, 0, 0 mm."""

LARGEST_LABEL = 2**15 - 1
"""The store has int16 labels."""

_MOST_INVALID = (
    0.05  # share of voxels outside the template; more means that transform and mask do not belong together
)

_LABEL_ROW = re.compile(r"\s*(?P<number>[0-9]+)\s+(?P<name>\S.*?)(?:(?:\s+[0-9]+){4})?\s*")
"""Number, name (which may contain spaces), and optionally the color: red, green, blue, alpha."""

Labels = dict[str, dict[int, str]]
"""Names of the labels of each atlas."""


def read_grid(release: NsdRelease, subject: str) -> Grid:
    """The grid of a subject's brain mask, which all volumes of the subject must have.

    The affine is NSD's placeholder with its origin in the center, not the scanner's: coordinates come from the
    transform to MNI. NSD writes the same placeholder into masks, regions, transforms, noise ceilings and betas, so a
    volume with another affine was flipped or resampled later.
    """
    return read_volume(release.brainmask(subject), f"the brain mask of {subject}")[1]


def read_voxel_mask(release: NsdRelease, subject: str, roi: str) -> Bool[np.ndarray, "x y z"]:
    """Voxels of a region, or of several joined by ``+``: labels above 0 (0 is unlabeled, -1 not cortex)."""
    grid = read_grid(release, subject)
    union = np.zeros(grid.shape, bool)
    for name in roi.split("+"):
        path = release.roi(subject, name)
        mask = _read_labels(path, f"the region `{name}` of {subject}", grid) > 0
        if not mask.any():
            raise DataError(
                f"{path}: expected voxels with a label above 0, found none; check that it is the region "
                f"`{name}`"
            )
        union |= mask
    return union


def read_voxels(
    release: NsdRelease, subject: str, voxel_mask: Bool[np.ndarray, "x y z"], atlases: tuple[str, ...]
) -> tuple[pd.DataFrame, Labels]:
    """The table of a subject's voxels in the order of ``volume[voxel_mask]``, and the names of the labels.

    Returns
    -------
    pandas.DataFrame
        ``i``, ``j``, ``k`` (0-based indices in the volume), ``x_mm``, ``y_mm``, ``z_mm`` (MNI), ``ncsnr``
        (noise-ceiling signal-to-noise ratio, 0 if NSD has none) and one column for each atlas (0 = unlabeled).
    dict
        Names of the labels of each atlas.
    """
    voxels = pd.DataFrame(np.argwhere(voxel_mask), columns=["i", "j", "k"], dtype=np.int32)
    grid = read_grid(release, subject)
    voxels[["x_mm", "y_mm", "z_mm"]] = _read_mni(release.mni(subject), voxel_mask, grid).astype(np.float32)
    ncsnr = _read_volume(release.ncsnr(subject), f"the noise ceilings of {subject}", grid)
    voxels["ncsnr"] = np.nan_to_num(ncsnr[voxel_mask], nan=0.0).astype(np.float32)
    labels: Labels = {}
    for atlas in atlases:
        path = release.roi(subject, atlas)
        volume = _read_labels(path, f"the atlas `{atlas}` of {subject}", grid)
        number = np.maximum(volume, 0).astype(np.int16)
        labels[atlas] = read_labels(path, release.label_tables(subject, atlas), number)
        voxels[atlas] = number[voxel_mask]
    return voxels, labels


def read_views(
    release: NsdRelease, subject: str, voxel_mask: Bool[np.ndarray, "x y z"], sessions: Iterable[int]
) -> dict[int, View]:
    """Voxels of the mask in the field of view according to NSD, for the sessions with such a volume."""
    views = {}
    grid = read_grid(release, subject)
    for session in sessions:
        path = release.valid(subject, session)
        if not path.is_file():
            continue
        marked = _read_labels(path, f"the valid voxels of {subject}", grid)[voxel_mask]
        wrong = marked[(marked != 0) & (marked != 1)]
        if wrong.size:
            raise DataError(
                f"{path}: expected 1 (in the field of view) and 0, found {wrong[0]:g}; download it again, or "
                "remove it: the betas show it too"
            )
        views[session] = View(str(path), marked == 1)
    return views


def mni_mm(mni_voxels: Float[np.ndarray, "voxels 3"]) -> Float[np.ndarray, "voxels 3"]:
    """MNI coordinates in mm (x to the right, y to the front, z up) from NSD's 1-based template voxels.

    NSD's transforms count the voxels of the 1 mm template in the order of its file, starting at the right,
    posterior, inferior corner: voxel (91, 127, 73) is at 0 mm, and x decreases with the first index. nsdcode agrees:
    it flips the first axis when it writes an MNI volume and moves the origin to 183 - 91 = 92, so voxel c of the
    transform is at (183 - c) - 92 = 91 - c mm.

    References
    ----------
    cvnlab/nsdcode, ``nsd_mapdata`` (comments on MNI) and ``transform_data``.
    """
    return (mni_voxels - MNI_ORIGIN) * np.array([-1, 1, 1])


def read_labels(path: Path, tables: tuple[Path, ...], number: Int16[np.ndarray, "*places"]) -> dict[int, str]:
    """Names of the labels of an atlas, from the first of ``tables`` that exists.

    ``path`` is the file of the labels; its name without the ending is the atlas. Every label in ``number`` except 0
    (unlabeled) must have a name.
    """
    table = next((path for path in tables if path.is_file()), None)
    present = [int(n) for n in np.unique(number) if n > 0]
    if table is None:  # NSD has no table for a few atlases (MTL, thalamus): name their labels by number
        atlas = path.name.removesuffix(".nii.gz")
        return {n: f"{atlas}-{n}" for n in present}
    names: dict[int, str] = {}
    for line in read_text(table, "names of labels").splitlines():
        if (found := _LABEL_ROW.fullmatch(line)) is None or int(found["number"]) == 0:
            continue
        label, name = int(found["number"]), found["name"]
        if names.setdefault(label, name) != name:
            raise DataError(
                f"{table}: expected one name for the label {label}, found `{names[label]}` and `{name}`; remove one"
            )
    for n in present:
        if n not in names:
            raise DataError(
                f"{table}: expected a name for the label {n}, which {path} contains, "
                f"found {len(names)} names; check that table and volume are of one atlas"
            )
    return names


def _read_mni(path: Path, voxel_mask: np.ndarray, grid: Grid) -> np.ndarray:
    volume = _read_volume(path, "the MNI coordinates", grid, channels=(3,))
    mni_voxels = volume[voxel_mask].astype(np.float64)
    is_valid = np.isfinite(mni_voxels).all(axis=1) & (mni_voxels != INVALID_MNI).all(axis=1)
    if np.mean(~is_valid) > _MOST_INVALID:
        raise DataError(
            f"{path}: expected MNI coordinates for at least {1 - _MOST_INVALID:.0%} of the region's voxels, "
            f"found {np.mean(is_valid):.0%}; check that transform and region are of one subject"
        )
    # A few voxels at the edge may be outside the template: they get the coordinates of their nearest neighbor in the
    # mask.
    ijk = np.argwhere(voxel_mask)
    nearest = KDTree(ijk[is_valid]).query(ijk)[1]
    return mni_mm(mni_voxels[is_valid][nearest])


def _read_volume(path: Path, what: str, grid: Grid, *, channels: tuple[int, ...] = ()) -> np.ndarray:
    shape = (*grid.shape, *channels)
    volume, own = read_volume(path, what, n_axes=len(shape))
    if volume.shape != shape:
        raise DataError(
            f"{path}: expected the shape {shape}, the grid of the brain mask, found {volume.shape}; "
            "check that it is this subject's file in func1pt8mm"
        )
    require_same_grid(own, grid, what)
    return volume


def _read_labels(path: Path, what: str, grid: Grid) -> np.ndarray:
    return whole_labels(_read_volume(path, what, grid), path, what, largest=LARGEST_LABEL)
