"""Brain figures of the page: the encoder's pooling map of every subject, and the loss when a region is silenced.

Values are drawn on the flattened cortex of fsaverage5, which is part of nilearn's package (no download), or at the
voxels' coordinates if nilearn is not installed. A vertex shows the mean of the voxels near its position on the pial
surface; both are assumed to be in MNI space in mm. For a simulated brain (a folded ellipsoid) this is a sketch.
These figures are PNG, because twenty thousand triangles would make a heavy SVG.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from scipy.spatial import KDTree

from bitllm.data.store import Store
from bitllm.data.store.spaces import is_subjects_own
from bitllm.errors import DataError
from bitllm.evaluation.results import RegionResult, Results
from bitllm.report.figures import Row, interval_chart, style

RADIUS_MM = 8.0
"""A vertex without a voxel within this distance is gray."""
_NEIGHBORS = 6
_MOST_REGIONS = 12
_COORDS = ["x_mm", "y_mm", "z_mm"]


class Mesh(NamedTuple):
    """Both hemispheres of a flattened cortex, the right one to the right of the left."""

    flat_mm: Float[np.ndarray, "vertices 2"]
    faces: Int[np.ndarray, "faces 3"]
    pial_mm: Float[np.ndarray, "vertices 3"]
    sulcal_depth: Float[np.ndarray, " vertices"]


class BrainFigure(NamedTuple):
    """One picture of a brain."""

    title: str
    alt: str
    uri: str


class BrainMaps(NamedTuple):
    """The brain section of the page; any part may be empty."""

    pooling: list[BrainFigure]
    regions: list[BrainFigure]
    region_chart: str
    where: str
    """Surface or coordinates on which the values are drawn."""
    n_regions_shown: int = 0


def brain_maps(
    results: Results, pooling: Mapping[str, Float[np.ndarray, " _"]], store: Store | None
) -> BrainMaps | None:
    """Draw the pooling maps, the test subject first, and the losses by region; None if there is neither.

    Parameters
    ----------
    results
        Results with the losses by region.
    pooling
        Weight of every voxel, by subject (`bitllm.evaluation.pooling`).
    store
        Store with the coordinates of the voxels; without it only the chart of losses is drawn.
    """
    subject, regions = results.about.subject, results.regions
    has_maps = store is not None and (pooling or regions)
    if not has_maps and not regions:
        return None
    chart, n_shown = region_chart(regions), min(len(regions), _MOST_REGIONS)
    if store is None:
        return BrainMaps([], [], chart, "", n_shown)
    is_own = is_subjects_own(store.manifest.space)  # fsaverage is in MNI space
    mesh = None if is_own else load_mesh()
    names = sorted(
        (name for name in pooling if name in store.subjects), key=lambda name: (name != subject, name)
    )
    top = float(np.quantile(np.concatenate([pooling[name] for name in names]), 0.99)) if names else 0.0
    figures = [_pooling_figure(mesh, store, name, pooling[name], top) for name in names]
    losses = [_region_figure(mesh, store, subject, regions)] if regions and subject in store.subjects else []
    at_voxels = f"drawn at the voxels' {'own' if is_own else 'MNI'} coordinates"
    where = "drawn on the flattened cortex of fsaverage5" if mesh else at_voxels
    if results.about.is_simulated:
        where += "; the simulated cortex is a folded ellipsoid, so positions are a sketch"
    return BrainMaps(figures, losses, chart, where, n_shown)


def region_chart(regions: Sequence[RegionResult]) -> str:
    """The largest losses with their intervals, each followed by the loss of as many random voxels."""
    rows = []
    for one in sorted(regions, key=lambda one: -one.bits_lost.value)[:_MOST_REGIONS]:
        rows += [
            Row(one.name, one.bits_lost, "real"),
            Row("same size", one.bits_lost_same_size, "comparison"),
        ]
    title = "Bits per word lost when a region is silenced"
    return interval_chart(title, rows, digits=2, is_difference=True) if rows else ""


def load_mesh() -> Mesh | None:
    """The mesh of fsaverage5; None if nilearn is not installed."""
    try:
        from nilearn.datasets import load_fsaverage, load_fsaverage_data
    except ImportError:
        return None
    mesh = load_fsaverage("fsaverage5")
    depth = load_fsaverage_data("fsaverage5", data_type="sulcal").data.parts
    parts: list[Any] = []
    for number, side in enumerate(("left", "right")):
        flat, pial = mesh["flat"].parts[side], mesh["pial"].parts[side]
        moved = flat.coordinates[:, :2] + [number * 340.0, 0.0]
        parts.append((moved, flat.faces + number * len(moved), pial.coordinates, depth[side]))
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
    """Distance-weighted mean of the voxels within `RADIUS_MM` of each vertex; NaN if there are none."""
    k = min(_NEIGHBORS, len(coords_mm))
    distance, voxel = KDTree(coords_mm).query(
        mesh.pial_mm, k=list(range(1, k + 1)), distance_upper_bound=RADIUS_MM
    )
    is_near = np.isfinite(distance)
    weight = np.where(is_near, np.exp(-0.5 * (2 * np.where(is_near, distance, 0.0) / RADIUS_MM) ** 2), 0.0)
    padded = np.append(values, 0.0)  # the index of a missing neighbor is one past the last voxel
    total = weight.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (weight * padded[voxel]).sum(axis=1) / total, np.nan)


def brain_uri(
    mesh: Mesh | None,
    coords_mm: Float[np.ndarray, "voxels 3"],
    values: Float[np.ndarray, " voxels"],
    *,
    limits: tuple[float, float],
    colors: str,
    unit: str,
) -> str:
    """A PNG with color bar as a data URI; without a mesh the voxels, from above and from the right."""
    buffer = io.BytesIO()
    with style():
        figure = Figure(figsize=(6.4, 3.3), dpi=110)
        FigureCanvasAgg(figure)
        drawn = (
            _draw_voxels(figure, coords_mm, values, limits=limits, colors=colors)
            if mesh is None
            else _draw_flat(figure, mesh, at_vertices(mesh, coords_mm, values), limits=limits, colors=colors)
        )
        bar = figure.colorbar(drawn, cax=figure.add_axes((0.35, 0.14, 0.3, 0.035)), orientation="horizontal")
        bar.set_label(unit, fontsize=9)
        bar.ax.tick_params(labelsize=8)
        figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _coords(store: Store, subject: str) -> Float[np.ndarray, "voxels 3"]:
    return store.subject(subject).voxels[_COORDS].to_numpy(np.float64)


def _pooling_figure(
    mesh: Mesh | None, store: Store, subject: str, values: Float[np.ndarray, " voxels"], top: float
) -> BrainFigure:
    coords = _coords(store, subject)
    if len(coords) != len(values):
        raise DataError(
            f"pooling map of {subject}: expected {len(coords)} voxels as in the store, found {len(values)}; name the "
            "store that was evaluated with --store"
        )
    unit = "pooling weight (1: the mean over voxels)"
    uri = brain_uri(mesh, coords, values, limits=(0.0, top), colors="viridis", unit=unit)
    strong = _strongest_labels(store, subject, values)
    return BrainFigure(subject, f"Pooling map of {subject}: highest mean weight in {strong}", uri)


def _region_figure(
    mesh: Mesh | None, store: Store, subject: str, regions: Sequence[RegionResult]
) -> BrainFigure:
    table = store.subject(subject).voxels
    values = np.zeros(len(table))
    for one in regions:
        atlas, _, name = one.name.partition(":")
        numbers = [number for number, found in store.atlases.get(atlas, {}).items() if found == name]
        if numbers:
            inside = (table[atlas] == numbers[0]).to_numpy()
            values = np.where(
                inside & (abs(one.bits_lost.value) > np.abs(values)), one.bits_lost.value, values
            )
    top = max(float(np.abs(values).max()), 1e-6)
    unit = "bits per word lost when the region is silenced"
    uri = brain_uri(mesh, _coords(store, subject), values, limits=(-top, top), colors="RdBu", unit=unit)
    most = max(regions, key=lambda one: one.bits_lost.value)
    alt = f"Loss by region of {subject}: largest in {most.name}, {most.bits_lost.shown(2)} bits per word"
    return BrainFigure(subject, alt, uri)


def _strongest_labels(store: Store, subject: str, values: Float[np.ndarray, " voxels"]) -> str:
    table = store.subject(subject).voxels
    means = {
        f"{atlas}:{name}": float(values[(table[atlas] == number).to_numpy()].mean())
        for atlas, names in store.atlases.items()
        for number, name in names.items()
        if number > 0 and (table[atlas] == number).any()
    }
    best = sorted(means, key=lambda name: -means[name])[:3]
    return ", ".join(f"{name} ({means[name]:.1f})" for name in best) or "no labeled region"


def _draw_flat(
    figure: Figure,
    mesh: Mesh,
    values: Float[np.ndarray, " vertices"],
    *,
    limits: tuple[float, float],
    colors: str,
) -> Any:
    axes = figure.add_axes((0.01, 0.2, 0.98, 0.72))
    x, y = mesh.flat_mm.T
    folds = (mesh.sulcal_depth > 0).astype(float)
    # a triangle is colored where all of its corners have a value
    with_value = mesh.faces[np.isfinite(values)[mesh.faces].all(axis=1)]
    layers = ((mesh.faces, folds, "Greys", (-1.2, 4.0)), (with_value, np.nan_to_num(values), colors, limits))
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


def _draw_voxels(
    figure: Figure,
    coords_mm: Float[np.ndarray, "voxels 3"],
    values: Float[np.ndarray, " voxels"],
    *,
    limits: tuple[float, float],
    colors: str,
) -> Any:
    drawn = None
    order = np.argsort(np.abs(values))
    for number, (across, up, label) in enumerate(((0, 1, "from above"), (1, 2, "from the right"))):
        axes = figure.add_axes((0.02 + 0.5 * number, 0.22, 0.46, 0.7))
        x, y = coords_mm[order, across], coords_mm[order, up]
        drawn = axes.scatter(x, y, c=values[order], s=4, cmap=colors, vmin=limits[0], vmax=limits[1])
        axes.set_title(label, fontsize=9)
        axes.set_aspect("equal")
        axes.axis("off")
    return drawn
