"""Where in the brain: the encoder's fixed pooling map of every subject, and what silencing each region costs.

Values at voxels are drawn on the flattened cortex of fsaverage5, which nilearn carries within its package, so that
nothing is downloaded; without nilearn, at the voxels' coordinates. A vertex shows the mean of the voxels near its
place on the pial surface; both are taken to be in MNI space in mm, which for a simulated brain (a folded ellipsoid) is
a sketch. Twenty thousand triangles make a heavy SVG: brains are pictures, all else is SVG.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from scipy.spatial import KDTree

from bitllm.data.batch import Anatomies
from bitllm.data.store import Store, open_store
from bitllm.files import read_record
from bitllm.metrics.intervals import Estimate
from bitllm.model.aligner import load_aligner
from bitllm.report.figures import Row, interval_chart, style
from bitllm.report.values import estimate

RADIUS_MM = 8.0
"""A vertex without a voxel so near stays grey."""
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
    """What the page shows of the brain; any part may be empty."""

    pooling: list[BrainFigure]
    regions: list[BrainFigure]
    region_chart: str
    where: str
    """On what the values are drawn."""
    n_regions_shown: int = 0


def read_brain_maps(folder: Path, subject: str, regions: dict[str, Any], *, store: Path) -> BrainMaps | None:
    """The maps of a run with an encoder in its folder and a store; None where one is missing.

    Parameters
    ----------
    folder
        The run.
    subject
        The test subject, shown first.
    regions
        The part ``rois`` of ``grounding.json``; may be empty.
    store
        Folder of the store that the run was trained on.
    """
    if not (store / "manifest.json").is_file() or not (folder / "align" / "aligner.json").is_file():
        return None
    data, mesh = open_store(store), load_mesh()
    names = [subject, *(name for name in data.subjects if name != subject)]
    weights = {name: _pooling(folder, data, name) for name in names if name in data.subjects}
    top = float(np.quantile(np.concatenate(list(weights.values())), 0.99))
    pooling = [_pooling_figure(mesh, data, name, values, top) for name, values in weights.items()]
    rows = region_rows(regions)
    of_regions = [_region_figure(mesh, data, subject, rows)] if rows and subject in data.subjects else []
    where = (
        "drawn on the flattened cortex of fsaverage5" if mesh else "drawn at the voxels' places in MNI space"
    )
    if data.manifest.source == "simulated":
        where += "; the simulated cortex is a folded ellipsoid, so places are a sketch"
    return BrainMaps(pooling, of_regions, region_chart(rows), where, min(len(rows), _MOST_REGIONS))


class RegionRow(NamedTuple):
    """What silencing a region costs, and as many random voxels outside of it."""

    name: str
    lost: Estimate
    same_size: Estimate | None


def region_rows(regions: dict[str, Any]) -> list[RegionRow]:
    """The rows of ``grounding.json`` with a loss in bits per word."""
    rows = []
    for row in regions.get("rows", []):
        lost = estimate(row, "silenced", "bits", name="mean")
        if lost is not None:
            rows.append(RegionRow(str(row.get("roi")), lost, estimate(row, "same_size", "bits", name="mean")))
    return rows


def region_chart(rows: Sequence[RegionRow]) -> str:
    """The largest losses with their intervals; beneath each that of as many random voxels."""
    if not rows:
        return ""
    title, rows_drawn = "Bits per word lost when a region is silent", []
    for row in sorted(rows, key=lambda row: -row.lost.value)[:_MOST_REGIONS]:
        rows_drawn.append(Row(row.name, row.lost, "real"))
        if row.same_size is not None:
            rows_drawn.append(Row("as many others", row.same_size, "rival"))
    return interval_chart(title, rows_drawn, digits=2, is_difference=True)


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
    """Mean of the nearest voxels within `RADIUS_MM` of each vertex, nearer ones weighing more; NaN without one."""
    k = min(_NEIGHBORS, len(coords_mm))
    distance, voxel = KDTree(coords_mm).query(
        mesh.pial_mm, k=list(range(1, k + 1)), distance_upper_bound=RADIUS_MM
    )
    is_near = np.isfinite(distance)
    weight = np.where(is_near, np.exp(-0.5 * (2 * np.where(is_near, distance, 0.0) / RADIUS_MM) ** 2), 0.0)
    padded = np.append(values, 0.0)  # a missing neighbor is numbered behind the last voxel
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
    """A PNG as a data URI, with its color bar.

    Parameters
    ----------
    mesh
        None draws the voxels themselves, from above and from the right.
    limits
        Values at the ends of the color bar.
    colors
        A color map of matplotlib.
    unit
        Under the color bar.
    """
    buffer = io.BytesIO()
    with style():
        figure = Figure(figsize=(6.4, 3.3), dpi=110)
        FigureCanvasAgg(figure)
        drawn = (
            _draw_places(figure, coords_mm, values, limits=limits, colors=colors)
            if mesh is None
            else _draw_flat(figure, mesh, at_vertices(mesh, coords_mm, values), limits=limits, colors=colors)
        )
        bar = figure.colorbar(drawn, cax=figure.add_axes((0.35, 0.14, 0.3, 0.035)), orientation="horizontal")
        bar.set_label(unit, fontsize=9)
        bar.ax.tick_params(labelsize=8)
        figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@torch.no_grad()
def _pooling(folder: Path, store: Store, subject: str) -> Float[np.ndarray, " voxels"]:
    """Mean pooling weight of every voxel over the queries, 1 where all voxels count alike."""
    encoder = load_aligner(folder / "align").eval().encoder
    atlases = read_record(folder / "align" / "aligner.json", "atlases")["atlases"]
    places = Anatomies.of(store, [subject], atlases)
    weights = encoder.pooling_map(places.coords_mm[0], places.atlas_labels[0]).numpy()
    return (weights.mean(axis=0) * weights.shape[1]).astype(np.float64)


def _coords(store: Store, subject: str) -> Float[np.ndarray, "voxels 3"]:
    return store.subject(subject).voxels[_COORDS].to_numpy(np.float64)


def _pooling_figure(
    mesh: Mesh | None, store: Store, subject: str, values: Float[np.ndarray, " voxels"], top: float
) -> BrainFigure:
    uri = brain_uri(
        mesh,
        _coords(store, subject),
        values,
        limits=(0.0, top),
        colors="viridis",
        unit="pooling weight (1: all voxels alike)",
    )
    strong = _strongest_labels(store, subject, values)
    return BrainFigure(subject, f"Pooling map of {subject}: most weight per voxel in {strong}", uri)


def _region_figure(mesh: Mesh | None, store: Store, subject: str, rows: Sequence[RegionRow]) -> BrainFigure:
    values = np.zeros(store.manifest.subjects[subject].n_voxels)
    table = store.subject(subject).voxels
    for row in rows:
        atlas, _, label = row.name.partition(":")
        numbers = [number for number, name in store.atlases.get(atlas, {}).items() if name == label]
        if numbers:
            inside = (table[atlas] == numbers[0]).to_numpy()
            values = np.where(inside & (abs(row.lost.value) > np.abs(values)), row.lost.value, values)
    top = max(float(np.abs(values).max()), 1e-6)
    uri = brain_uri(
        mesh,
        _coords(store, subject),
        values,
        limits=(-top, top),
        colors="RdBu",
        unit="bits per word lost when the region is silent",
    )
    most = max(rows, key=lambda row: row.lost.value)
    alt = f"Losses by region of {subject}: largest in {most.name}, {most.lost.value:.2f} bits per word"
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
    return ", ".join(f"{name} ({means[name]:.1f})" for name in best) or "no labelled region"


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


def _draw_places(
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
