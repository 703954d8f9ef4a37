"""Where in the brain: the encoder's fixed pooling map of every subject, and what silencing each region costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from bitllm.data.batch import Anatomies
from bitllm.data.store import Store, open_store
from bitllm.files import read_json
from bitllm.model.aligner import load_aligner
from bitllm.report.brain.surface import Mesh, brain_uri, load_mesh
from bitllm.report.charts import Bar, difference_chart
from bitllm.report.values import Estimate, estimate

_MOST_REGIONS = 12
_COORDS = ["x_mm", "y_mm", "z_mm"]


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
    bars = []
    for row in sorted(rows, key=lambda row: -row.lost.value)[:_MOST_REGIONS]:
        bars.append(Bar(row.name, row.lost, "real"))
        if row.same_size is not None:
            bars.append(Bar("as many others", row.same_size, "rival"))
    return difference_chart("Bits per word lost when a region is silent", bars, digits=2)


@torch.no_grad()
def _pooling(folder: Path, store: Store, subject: str) -> Float[np.ndarray, " voxels"]:
    """Mean pooling weight of every voxel over the queries, 1 where all voxels count alike."""
    encoder = load_aligner(folder / "align").eval().encoder
    atlases = read_json(folder / "align" / "aligner.json")["atlases"]
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
        colours="viridis",
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
        colours="RdBu",
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
