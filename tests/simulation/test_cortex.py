"""Anatomy: two hemispheres, subjects that differ, areas where they belong."""

import numpy as np
import pytest

from bitllm.simulation import atlases, preset
from bitllm.simulation.cortex import LEFT, Cortex, make_cortex


@pytest.fixture(scope="module")
def brains() -> list[Cortex]:
    return [make_cortex(preset("demo"), subject, seed=1) for subject in range(3)]


def test_subjects_have_different_volumes_and_voxel_counts(brains: list[Cortex]) -> None:
    counts = {int(brain.nsdgeneral.sum()) for brain in brains}
    assert len(counts) == 3 and 1200 < min(counts) < max(counts) < 2100
    assert len({brain.shape for brain in brains}) == 3


def test_hemispheres_are_on_their_sides_and_about_equal(brains: list[Cortex]) -> None:
    for brain in brains:
        x = brain.mni_mm[brain.cortical][:, 0]
        left = brain.hemisphere == LEFT
        assert x[left].mean() < -20 and x[~left].mean() > 20
        assert 0.4 < left.mean() < 0.6


def test_places_are_unit_vectors_and_function_is_near_anatomy_by_the_misalignment(
    brains: list[Cortex],
) -> None:
    brain = brains[0]
    np.testing.assert_allclose(np.linalg.norm(brain.places, axis=1), 1)
    aligned = make_cortex(preset("demo").model_copy(update={"misalignment_mm": 0.0}), 0, seed=1)
    np.testing.assert_array_equal(aligned.cortical, brain.cortical)
    moved_mm = 60 * np.linalg.norm(aligned.places - brain.places, axis=1)
    assert 3 < np.sqrt(np.mean(moved_mm**2)) < 9


def test_areas_see_the_visual_field_as_they_should(brains: list[Cortex]) -> None:
    brain = brains[0]
    areas = atlases.atlas_labels("prf-visualrois", brain.places)
    assert set(np.unique(areas)) == set(range(8))
    z = brain.mni_mm[brain.cortical][:, 2]
    assert (
        z[np.isin(areas, [1, 3, 5])].mean() < z[np.isin(areas, [2, 4, 6])].mean() - 10
    )  # ventral below dorsal
    labelled = atlases.atlas_labels("prf-eccrois", brain.places) > 0
    np.testing.assert_array_equal(labelled, areas > 0)


def test_every_label_of_every_atlas_exists(brains: list[Cortex]) -> None:
    for atlas, names in atlases.ATLASES.items():
        found = set(np.unique(atlases.atlas_labels(atlas, brains[0].places)))
        assert found == set(range(len(names) + 1)), atlas


def test_a_patch_s_middle_is_inside_and_its_antipode_is_not() -> None:
    patch = atlases.PATCHES["FFA-1"]
    middle = atlases.direction(patch.ring, patch.turn)
    np.testing.assert_allclose(
        atlases.within(np.stack([middle, -middle]), patch), [0, 180 / patch.radius], atol=1e-4
    )
    ring, turn = atlases.angles(middle[None])
    assert (ring[0], turn[0]) == (pytest.approx(patch.ring), pytest.approx(patch.turn))
