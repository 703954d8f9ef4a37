"""Values at voxels come to the vertices near them, and the figures of a run say where its weight lies."""

import base64
import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bitllm.data.store import open_store
from bitllm.errors import DataError
from bitllm.report.brain import RADIUS_MM, Mesh, at_vertices, brain_maps, brain_uri, load_mesh, region_chart

FLAT = Mesh(
    np.array([[0.0, 0], [1, 0], [0, 1]]),
    np.array([[0, 1, 2]]),
    np.array([[0.0, 0, 0], [30, 0, 0], [90, 0, 0]]),
    np.zeros(3),
)


@pytest.fixture
def store(demo_folder):
    return open_store(demo_folder / "store")


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


def test_there_is_a_map_for_every_subject_the_test_subject_first(results, store):
    pooling = {name: np.ones(len(store.subject(name).voxels)) for name in store.subjects}
    maps = brain_maps(results, pooling, store)
    assert [figure.title for figure in maps.pooling] == ["subj08", *(f"subj{n:02d}" for n in range(1, 8))]
    assert all(figure.uri.startswith("data:image/png;base64,") for figure in maps.pooling)
    assert "folded ellipsoid" in maps.where
    assert "largest in streams:early, 0.20" in maps.regions[0].alt
    assert sum(len(figure.uri) for figure in maps.pooling) < 3e6


def test_a_map_of_another_store_is_refused(results, store):
    with pytest.raises(DataError, match=r"voxels .* found 3"):
        brain_maps(results, {store.subjects[0]: np.ones(3)}, store)


def test_without_a_store_only_the_chart_of_losses_is_drawn(results):
    maps = brain_maps(results, {"subj08": np.ones(3)}, None)
    assert (maps.pooling, maps.regions, maps.n_regions_shown) == ([], [], 2)
    assert brain_maps(replace(results, regions=()), {"subj08": np.ones(3)}, None) is None


def test_losses_stand_above_those_of_random_voxels(results):
    chart = region_chart(results.regions)
    assert chart.index("streams:early") < chart.index("same size") < chart.index("streams:ventral")
    assert "streams:early: +0.20 [0.10, 0.30]" in chart
    assert region_chart([]) == ""
