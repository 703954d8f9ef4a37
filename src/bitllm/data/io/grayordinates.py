"""Coordinates and labels of CIFTI's grayordinates: vertices of fsLR and voxels below the cortex."""

import re
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float64, Int

from bitllm.data.io.arrays import brain_models
from bitllm.data.io.values import whole_labels
from bitllm.data.io.volumes import IMAGE_DAMAGE, open_volume, volume_values
from bitllm.errors import DataError
from bitllm.files import require_file

GLASSER = "HCP_MMP1"
"""NSD's name of the parcellation by Glasser et al. 2016; as there, both hemispheres have the same numbers."""

_HEMISPHERES = {"CIFTI_STRUCTURE_CORTEX_LEFT": "L", "CIFTI_STRUCTURE_CORTEX_RIGHT": "R"}
_N_AREAS = 180
_AREA = re.compile(r"(?:[LR]_)?(.+?)(?:_ROI)?")


class Grayordinates(NamedTuple):
    """The grayordinates of a CIFTI file, in its order."""

    mm: Float64[np.ndarray, "n 3"]
    """On the surfaces that were named, and in the space of the file's volume."""
    is_cortex: Bool[np.ndarray, " n"]
    vertex: Int[np.ndarray, " n"]
    """Vertex in its hemisphere, -1 for voxels."""
    structure: np.ndarray
    """CIFTI's name of each structure."""


def read_grayordinates(path: Path, surfaces: Path) -> Grayordinates:
    """Coordinates of all grayordinates of a CIFTI file.

    Parameters
    ----------
    path
        Any CIFTI file with these grayordinates, such as a dscalar.
    surfaces
        Folder with one midthickness surface for each hemisphere in GIFTI, such as templateflow's
        ``tpl-fsLR_den-32k_hemi-L_midthickness.surf.gii``, which lies in MNI.
    """
    models = brain_models(path)
    mm = np.full((len(models), 3), np.nan)
    structure = np.asarray(models.name, str)
    vertex = np.asarray(models.vertex).astype(np.int64)
    for name, where, _ in models.iter_structures():
        if name not in _HEMISPHERES:
            mm[where] = nib.affines.apply_affine(models.affine, np.asarray(models.voxel)[where])
            continue
        surface = _surface(surfaces, _HEMISPHERES[name])
        places = _read_gifti(surface, _HEMISPHERES[name])
        if len(places) != models.nvertices[name]:
            raise DataError(
                f"{surface}: expected {models.nvertices[name]} vertices, as {path} has, found {len(places)}; name the "
                "surfaces of the same density (fsLR 32k)"
            )
        mm[where] = places[vertex[where]]
    return Grayordinates(mm, np.isin(structure, list(_HEMISPHERES)), vertex, structure)


def read_glasser(path: Path, places: Grayordinates) -> tuple[Int[np.ndarray, " n"], dict[int, str]]:
    """Area of each grayordinate (0: none) and the names of the areas, from a ``.dlabel.nii``.

    Labels are joined by structure and vertex, so the file may hold other grayordinates. ``L_V1_ROI`` and ``R_V1_ROI``
    are both the area V1; numbers above 180 (the other hemisphere) become 1 to 180.
    """
    what = "Glasser's areas"
    image = open_volume(path, what)
    axis = image.header.get_axis(0) if isinstance(image, nib.Cifti2Image) else None
    if not isinstance(axis, nib.cifti2.LabelAxis):
        raise DataError(
            f"{path}: expected {what} as CIFTI with labels (.dlabel.nii), found another; name that file"
        )
    number = whole_labels(volume_values(image, path, what)[0], path, what)
    names: dict[int, str] = {}
    for key, (text, _) in axis.label[0].items():
        if key == 0 or key not in number:
            continue
        area, label = _AREA.fullmatch(text), (int(key) - 1) % _N_AREAS + 1
        name = area[1] if area else text
        if not 0 < key <= 2 * _N_AREAS or names.setdefault(label, name) != name:
            raise DataError(
                f"{path}: expected 180 areas with one number in both hemispheres (1 to 360), found `{text}` with the "
                f"number {key}; name the parcellation of Glasser et al. 2016"
            )
    models = brain_models(path)
    known = zip(
        np.asarray(models.name, str), np.asarray(models.vertex).tolist(), number.tolist(), strict=True
    )
    of_place = {(name, vertex): (n - 1) % _N_AREAS + 1 for name, vertex, n in known if n > 0 and vertex >= 0}
    pairs = zip(places.structure.tolist(), places.vertex.tolist(), strict=True)
    found = np.array([of_place.get(pair, 0) for pair in pairs], np.int64)
    if not found.any():
        raise DataError(f"{path}: expected labels of the cortex, found none at these vertices; name fsLR 32k")
    return found, names


def _surface(folder: Path, side: str) -> Path:
    found = [
        path
        for path in sorted(folder.glob("*midthickness*.gii"))
        if re.search(rf"(hemi-{side}_|[._]{side}[._])", path.name)
    ]
    if len(found) != 1:
        raise DataError(
            f"{folder}: expected one midthickness surface of the hemisphere {side} "
            f"(tpl-fsLR_den-32k_hemi-{side}_midthickness.surf.gii), found {len(found)}; download it from templateflow"
        )
    return found[0]


def _read_gifti(path: Path, side: str) -> np.ndarray:
    what = "a surface"
    require_file(path, what)
    try:
        image = nib.gifti.GiftiImage.from_filename(path)
        mm = np.asarray(image.agg_data("pointset"), np.float64).reshape(-1, 3)
    except (*IMAGE_DAMAGE, AttributeError, SyntaxError) as error:
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{path}: expected {what} in GIFTI, found a damaged file ({reason}); copy it again"
        ) from None
    mean_x = float(mm[:, 0].mean()) if len(mm) else 0.0
    if (mean_x > 0) == (side == "L"):
        raise DataError(
            f"{path}: expected {what} of the hemisphere {side}, found {len(mm)} vertices with a mean x of "
            f"{mean_x:.1f} mm; left and right are swapped, or it is no surface"
        )
    return mm
