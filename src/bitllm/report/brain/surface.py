"""Values at voxels, drawn on the flattened cortex of fsaverage5, or at their places where nilearn is not installed.

nilearn carries the mesh of fsaverage5 within its package, so nothing is downloaded. A vertex shows the mean of the
voxels near its place on the pial surface; both are taken to be in MNI space in mm. For a simulated brain, whose cortex
is a folded ellipsoid, that is a sketch.
"""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from scipy.spatial import KDTree

RADIUS_MM = 8.0
"""A vertex without a voxel so near stays grey."""
_NEIGHBOURS = 6


class Mesh(NamedTuple):
    """Both hemispheres of a flattened cortex, the right one put beside the left."""

    flat_mm: Float[np.ndarray, "vertices 2"]
    faces: Int[np.ndarray, "faces 3"]
    pial_mm: Float[np.ndarray, "vertices 3"]
    sulcal_depth: Float[np.ndarray, " vertices"]


def load_mesh() -> Mesh | None:
    """The mesh of fsaverage5, or None where nilearn is not installed."""
    try:
        from nilearn.datasets import load_fsaverage, load_fsaverage_data
    except ImportError:
        return None
    mesh = load_fsaverage("fsaverage5")
    depth = load_fsaverage_data("fsaverage5", data_type="sulcal").data.parts
    parts: list[Any] = []
    for number, side in enumerate(("left", "right")):
        flat, pial = mesh["flat"].parts[side], mesh["pial"].parts[side]
        beside = flat.coordinates[:, :2] + [number * 340.0, 0.0]
        parts.append((beside, flat.faces + number * len(beside), pial.coordinates, depth[side]))
    flat_mm, faces, pial_mm, sulcal_depth = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Mesh(
        flat_mm.astype(np.float64),
        faces.astype(np.int64),
        pial_mm.astype(np.float64),
        sulcal_depth.ravel().astype(np.float64),
    )


def at_vertices(
    mesh: Mesh, coords_mm: Float[np.ndarray, "voxels 3"], values: Float[np.ndarray, " voxels"]
) -> Float[np.ndarray, " vertices"]:
    """Mean of the nearest voxels within `RADIUS_MM` of each vertex, nearer ones weighing more; NaN without one."""
    k = min(_NEIGHBOURS, len(coords_mm))
    distance, voxel = KDTree(coords_mm).query(
        mesh.pial_mm, k=list(range(1, k + 1)), distance_upper_bound=RADIUS_MM
    )
    is_near = np.isfinite(distance)
    weight = np.where(is_near, np.exp(-0.5 * (2 * np.where(is_near, distance, 0.0) / RADIUS_MM) ** 2), 0.0)
    padded = np.append(values, 0.0)  # a missing neighbour is numbered behind the last voxel
    total = weight.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (weight * padded[voxel]).sum(axis=1) / total, np.nan)


def brain_uri(
    mesh: Mesh | None,
    coords_mm: Float[np.ndarray, "voxels 3"],
    values: Float[np.ndarray, " voxels"],
    *,
    limits: tuple[float, float],
    colours: str,
    unit: str,
) -> str:
    """A PNG as a data URI, with its colour bar.

    Parameters
    ----------
    mesh
        None draws the voxels themselves, from above and from the right.
    limits
        Values at the ends of the colour bar.
    colours
        A colour map of matplotlib.
    unit
        Under the colour bar.
    """
    figure = Figure(figsize=(6.4, 3.3), dpi=110)
    FigureCanvasAgg(figure)
    drawn = (
        _draw_places(figure, coords_mm, values, limits=limits, colours=colours)
        if mesh is None
        else _draw_flat(figure, mesh, at_vertices(mesh, coords_mm, values), limits=limits, colours=colours)
    )
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.35, 0.14, 0.3, 0.035)), orientation="horizontal")
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _draw_flat(
    figure: Figure,
    mesh: Mesh,
    values: Float[np.ndarray, " vertices"],
    *,
    limits: tuple[float, float],
    colours: str,
) -> Any:
    axes = figure.add_axes((0.01, 0.2, 0.98, 0.72))
    x, y = mesh.flat_mm.T
    folds = (mesh.sulcal_depth > 0).astype(float)
    # a triangle is coloured where all of its corners have a value
    with_value = mesh.faces[np.isfinite(values)[mesh.faces].all(axis=1)]
    layers = ((mesh.faces, folds, "Greys", (-1.2, 4.0)), (with_value, np.nan_to_num(values), colours, limits))
    drawn = None
    for faces, shown, name, (low, high) in layers:
        if len(faces):
            places = Triangulation(x, y, faces)
            drawn = axes.tripcolor(places, shown, cmap=name, vmin=low, vmax=high, shading="gouraud")
    for side, left in (("left", 0.02), ("right", 0.92)):
        axes.text(left, 0.02, side, transform=axes.transAxes, fontsize=9)
    axes.set_aspect("equal")
    axes.axis("off")
    return drawn


def _draw_places(
    figure: Figure,
    coords_mm: Float[np.ndarray, "voxels 3"],
    values: Float[np.ndarray, " voxels"],
    *,
    limits: tuple[float, float],
    colours: str,
) -> Any:
    drawn = None
    order = np.argsort(np.abs(values))
    for number, (across, up, label) in enumerate(((0, 1, "from above"), (1, 2, "from the right"))):
        axes = figure.add_axes((0.02 + 0.5 * number, 0.22, 0.46, 0.7))
        x, y = coords_mm[order, across], coords_mm[order, up]
        drawn = axes.scatter(x, y, c=values[order], s=4, cmap=colours, vmin=limits[0], vmax=limits[1])
        axes.set_title(label, fontsize=9)
        axes.set_aspect("equal")
        axes.axis("off")
    return drawn
