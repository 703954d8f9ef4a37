"""Vertices of fsaverage: masks, coordinates, labels, and single-trial betas.

The left hemisphere comes first, each hemisphere in the order of its vertices.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int16

from bitllm.data.io.values import whole_labels
from bitllm.data.io.volumes import open_volume, read_surface, stored_volumes, volume_values
from bitllm.data.nsd.anatomy import LARGEST_LABEL, Labels, read_labels
from bitllm.data.nsd.layout import HEMISPHERES, NsdRelease
from bitllm.errors import DataError

VertexMasks = tuple[Bool[np.ndarray, " left"], Bool[np.ndarray, " right"]]
"""The vertices to read, of the left and of the right hemisphere."""


def read_vertex_masks(release: NsdRelease, subject: str, roi: str) -> VertexMasks:
    """Vertices of a region, or of several joined by ``+``: labels above 0."""
    left, right = (np.zeros(len(_read_places(release, side)), bool) for side in HEMISPHERES)
    for name in roi.split("+"):
        found = [
            _read_numbers(release, subject, side, name, len(union)) > 0
            for side, union in zip(HEMISPHERES, (left, right), strict=True)
        ]
        if not any(mask.any() for mask in found):
            raise DataError(
                f"{_label_file(release, subject, 'lh', name)}: expected vertices with a label above 0 in one "
                f"hemisphere at least, found none; check that it is the region `{name}`"
            )
        left |= found[0]
        right |= found[1]
    return left, right


def read_vertices(
    release: NsdRelease, subject: str, masks: VertexMasks, atlases: tuple[str, ...]
) -> tuple[pd.DataFrame, Labels]:
    """The table of the selected vertices, and the names of the labels.

    Returns
    -------
    pandas.DataFrame
        ``i`` (0-based vertex), ``j`` (0 left, 1 right), ``k`` (0), ``x_mm``, ``y_mm``, ``z_mm`` (on the white
        surface of fsaverage, in MNI305), ``ncsnr`` (0 if NSD has none) and one column for each atlas (0 = unlabeled).
    dict
        Names of the labels of each atlas.
    """
    halves, labels = [], dict[str, dict[int, str]]()
    for number, (side, mask) in enumerate(zip(HEMISPHERES, masks, strict=True)):
        half = pd.DataFrame({"i": np.flatnonzero(mask).astype(np.int32)}).assign(j=number, k=0)
        half[["x_mm", "y_mm", "z_mm"]] = _read_places(release, side)[mask].astype(np.float32)
        path = release.ncsnr(subject, side)
        ncsnr = _read_map(path, f"the noise ceilings of {subject}", len(mask))
        half["ncsnr"] = np.nan_to_num(ncsnr[mask], nan=0.0).astype(np.float32)
        for atlas in atlases:
            of_atlas = _read_numbers(release, subject, side, atlas, len(mask))
            tables = release.label_tables(subject, atlas)
            names = read_labels(_label_file(release, subject, side, atlas), tables, of_atlas)
            labels.setdefault(atlas, {}).update(names)
            half[atlas] = of_atlas[mask]
        halves.append(half)
    return pd.concat(halves, ignore_index=True), labels


def read_surface_betas(
    paths: tuple[Path, ...], masks: VertexMasks, n_trials: int
) -> Float32[np.ndarray, "trials vertices"]:
    """Betas of one session at the vertices of the masks, in percent signal change.

    Parameters
    ----------
    paths
        ``lh.betas_sessionNN.mgh`` and ``rh.betas_sessionNN.mgh``.
    masks
        The vertices to read.
    n_trials
        Number of trials in this session according to the design.

    Returns
    -------
    numpy.ndarray
        NaN at vertices without data, as in NSD's files.

    References
    ----------
    NSD Data Manual, "Betas": on fsaverage they are floats in percent signal change, not multiplied by 300.
    """
    betas = np.empty((n_trials, sum(int(mask.sum()) for mask in masks)), np.float32)
    first = 0
    for path, mask in zip(paths, masks, strict=True):
        last = first + int(mask.sum())
        _read_hemisphere(path, mask, betas[:, first:last])
        first = last
    return betas


def _read_hemisphere(path: Path, mask: np.ndarray, betas: np.ndarray) -> None:
    what = "a session of betas"
    image = open_volume(path, what)
    expected = (len(mask), 1, 1, len(betas))
    if image.shape != expected:
        raise DataError(
            f"{path}: expected the shape {expected} (from fsaverage's surface and the design), found "
            f"{image.shape}; check that it is this subject's session on fsaverage, or download it again"
        )
    if image.get_data_dtype().kind != "f":
        raise DataError(
            f"{path}: expected floats in percent signal change, found {image.get_data_dtype()}; use the betas of "
            "fsaverage as NSD distributes them"
        )
    inside = np.flatnonzero(mask)
    for trial, vertices in enumerate(stored_volumes(image, path, what)):
        betas[trial] = vertices[inside]


def _read_places(release: NsdRelease, side: str) -> np.ndarray:
    return read_surface(release.white_surface(side), "fsaverage's white surface", hemisphere=side)


def _label_file(release: NsdRelease, subject: str, hemisphere: str, atlas: str) -> Path:
    """The file on fsaverage if there is one, else that on the subject's own surface."""
    common = release.label("fsaverage", hemisphere, atlas)
    own = release.label(subject, hemisphere, atlas)
    return own if own.is_file() and not common.is_file() else common


def _read_numbers(
    release: NsdRelease, subject: str, hemisphere: str, atlas: str, n_vertices: int
) -> Int16[np.ndarray, " vertices"]:
    path = _label_file(release, subject, hemisphere, atlas)
    what = f"the labels `{atlas}`"
    if path == release.label("fsaverage", hemisphere, atlas):
        number = _read_labels(path, what, n_vertices)
    else:
        own = _read_labels(path, what, None)
        transform = release.to_fsaverage(subject, hemisphere)
        way = "the map to fsaverage"
        vertex = whole_labels(_read_map(transform, way, n_vertices), transform, way) - 1  # from 1 in NSD
        if vertex.min() < 0 or vertex.max() >= len(own):
            raise DataError(
                f"{transform}: expected vertices between 1 and {len(own)}, as {path} has, found "
                f"{vertex.min() + 1} to {vertex.max() + 1}; check that both are of one subject and hemisphere"
            )
        number = own[vertex]
    return np.maximum(number, 0).astype(np.int16)


def _read_labels(path: Path, what: str, n_vertices: int | None) -> np.ndarray:
    return whole_labels(_read_map(path, what, n_vertices), path, what, largest=LARGEST_LABEL)


def _read_map(path: Path, what: str, n_vertices: int | None) -> np.ndarray:
    values = volume_values(open_volume(path, what), path, what).reshape(-1)
    if n_vertices is not None and len(values) != n_vertices:
        raise DataError(
            f"{path}: expected {n_vertices} vertices, as fsaverage's white surface has, found {len(values)}; check "
            "that it is the file of fsaverage and of this hemisphere"
        )
    return values
