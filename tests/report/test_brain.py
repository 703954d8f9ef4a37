"""Values at voxels come to the vertices near them, and the figures of a run say where its weight lies."""

import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from bitllm.report.brain import (
    RADIUS_MM,
    Mesh,
    at_vertices,
    brain_uri,
    load_mesh,
    read_brain_maps,
    region_chart,
    region_rows,
)

FLAT = Mesh(
    np.array([[0.0, 0], [1, 0], [0, 1]]),
    np.array([[0, 1, 2]]),
    np.array([[0.0, 0, 0], [30, 0, 0], [90, 0, 0]]),
    np.zeros(3),
)
LOSS = {"mean": 0.2, "low": 0.1, "high": 0.3}
REGIONS = {
    "rows": [
        {"roi": "streams:early", "silenced": {"bits": LOSS}, "same_size": {"bits": {"mean": 0.01}}},
        {"roi": "streams:ventral", "silenced": {"bits": {"mean": -0.4, "low": -0.5, "high": -0.3}}},
        {"roi": "streams:lateral", "silenced": {}},
    ]
}


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_a_vertex_has_the_mean_of_the_voxels_near_it(rng):
    voxels = np.array([[0.0, 1, 0], [0, -1, 0], [30, 0, RADIUS_MM + 1], [31, 0, 0]])
    found = at_vertices(FLAT, voxels, np.array([2.0, 4.0, 100.0, 7.0]))
    np.testing.assert_allclose(found, [3.0, 7.0, np.nan])


def test_a_nearer_voxel_weighs_more():
    found = at_vertices(FLAT, np.array([[0.0, 1, 0], [0, 4, 0]]), np.array([1.0, 0.0]))
    assert 0.5 < found[0] < 1


def test_with_and_without_a_mesh_a_value_changes_the_picture(rng):
    voxels = rng.normal(size=(40, 3)) * 20
    for mesh in (FLAT._replace(pial_mm=voxels[:3]), None):
        one, other = (
            pixels(brain_uri(mesh, voxels, values, limits=(0.0, 1.0), colors="viridis", unit="x"))
            for values in (np.zeros(40), np.ones(40))
        )
        assert (one != other).any(axis=-1).sum() > 50


def test_the_mesh_of_fsaverage_is_read_without_a_network(monkeypatch):
    mesh = load_mesh()
    assert len(mesh.flat_mm) == len(mesh.pial_mm) == 2 * 10242
    assert mesh.faces.max() < 2 * 10242
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    assert load_mesh() is None


def test_a_demo_has_a_map_for_every_subject_the_test_subject_first(demo_folder):
    maps = read_brain_maps(demo_folder, "subj08", REGIONS, store=demo_folder / "store")
    assert [figure.title for figure in maps.pooling] == ["subj08", *(f"subj{n:02d}" for n in range(1, 8))]
    assert all(figure.uri.startswith("data:image/png;base64,") for figure in maps.pooling)
    assert "folded ellipsoid" in maps.where
    assert "largest in streams:early, 0.20" in maps.regions[0].alt
    assert sum(len(figure.uri) for figure in maps.pooling) < 3e6


def test_a_folder_without_a_store_has_no_maps(tmp_path):
    assert read_brain_maps(tmp_path, "subj08", {}, store=tmp_path / "store") is None


def test_losses_stand_above_those_of_random_voxels():
    rows = region_rows(REGIONS)
    assert [row.name for row in rows] == ["streams:early", "streams:ventral"]
    chart = region_chart(rows)
    assert chart.index("streams:early") < chart.index("as many others") < chart.index("streams:ventral")
    assert region_chart([]) == ""


@pytest.mark.parametrize("regions", [{}, {"rows": []}])
def test_without_regions_only_pooling_is_drawn(demo_folder, regions):
    maps = read_brain_maps(demo_folder, "subj08", regions, store=demo_folder / "store")
    assert (maps.regions, maps.region_chart) == ([], "")
