"""Transforms of points between spaces, as ANTs and fMRIPrep write them (ITK's ``.txt`` and composite ``.h5``).

ITK's coordinates grow to the left and to the back (LPS); ours grow to the right and to the front, as in NIfTI.
"""

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float
from scipy.ndimage import map_coordinates

from bitllm.data.io.hdf5 import open_hdf5
from bitllm.errors import DataError
from bitllm.files import read_text

Points = Float[np.ndarray, "n 3"]
_Step = Callable[[Points], Points]

_WHAT = "a transform of ITK"
_AFFINE = re.compile(r"(Affine|MatrixOffsetTransformBase)(Transform)?_(double|float)_3_3")
_FIELD = re.compile(r"DisplacementFieldTransform_(double|float)_3_3")
_LPS = np.array([-1.0, -1.0, 1.0])


def transform_points(path: Path, mm: Points) -> Points:
    """Points mapped by the transforms of a file.

    An image transform of fMRIPrep maps points in the opposite direction: points in T1w are mapped to MNI by
    ``from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5``.

    Parameters
    ----------
    path
        One affine in ``.txt``, or affines and displacement fields in ``.h5``. As in ITK, the last one is applied
        first, and points outside a displacement field are not displaced.
    mm
        Coordinates in mm.
    """
    steps = _from_hdf5(path) if path.suffix == ".h5" else [_from_text(path)]
    points = mm * _LPS
    for step in reversed(steps):
        points = step(points)
    return points * _LPS


def _from_text(path: Path) -> _Step:
    fields = dict(
        re.findall(r"^(Transform|Parameters|FixedParameters):(.*)$", read_text(path, _WHAT), re.MULTILINE)
    )
    try:
        parameters, center = (
            np.array(fields[key].split(), float) for key in ("Parameters", "FixedParameters")
        )
    except (KeyError, ValueError):
        raise DataError(
            f"{path}: expected {_WHAT} with Parameters and FixedParameters, found another file; name the transform"
        ) from None
    return _affine(path, fields.get("Transform", "").strip(), parameters, center)


def _from_hdf5(path: Path) -> list[_Step]:
    steps: list[_Step] = []
    with open_hdf5(path, _WHAT) as file:
        group = file.get("TransformGroup")
        if not isinstance(group, h5py.Group):
            raise DataError(
                f"{path}: expected {_WHAT} (a group TransformGroup), found none; name the transform"
            )
        for number in sorted(group, key=int):
            part = group[number]
            kind = np.asarray(part["TransformType"]).reshape(-1)[0].decode()
            if kind.startswith("CompositeTransform"):
                continue
            values = [
                np.asarray(part[name], np.float64).ravel()
                for stem in ("Parameters", "FixedParameters")
                for name in (f"Transform{stem}", f"Tranform{stem}")  # ITK before 5.0 misspelled it
                if name in part
            ]
            if len(values) != 2:
                raise DataError(
                    f"{path}: expected the parameters of transform {number}, found none; copy it again"
                )
            steps.append((_field if _FIELD.fullmatch(kind) else _affine)(path, kind, *values))
    return steps


def _affine(path: Path, kind: str, parameters: np.ndarray, center: np.ndarray) -> _Step:
    if not _AFFINE.fullmatch(kind) or parameters.size != 12 or center.size != 3:
        raise DataError(
            f"{path}: expected affine transforms and displacement fields in three dimensions, found "
            f"{kind or 'no type'} with {parameters.size} parameters; name fMRIPrep's transform between T1w and MNI"
        )
    matrix, translation = parameters[:9].reshape(3, 3), parameters[9:]
    return lambda points: (points - center) @ matrix.T + translation + center


def _field(path: Path, kind: str, parameters: np.ndarray, fixed: np.ndarray) -> _Step:
    size, origin, spacing = fixed[:3].astype(int), fixed[3:6], fixed[6:9]
    if fixed.size != 18 or parameters.size != 3 * size.prod():
        raise DataError(
            f"{path}: expected a displacement of three numbers for each of {size.tolist()} voxels, found "
            f"{parameters.size}; copy it again"
        )
    field = parameters.reshape(3, *size, order="F")  # x, y, z of each vector are next to each other
    to_index = np.linalg.inv(fixed[9:].reshape(3, 3) * spacing)

    def step(points: Points) -> Points:
        index = (points - origin) @ to_index.T
        is_inside = ((index >= 0) & (index <= size - 1)).all(axis=1)
        moved = [map_coordinates(axis, index.T, order=1, mode="nearest") for axis in field]
        return points + np.stack(moved, axis=1) * is_inside[:, None]

    return step
