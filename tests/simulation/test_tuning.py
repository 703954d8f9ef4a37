"""Tuning: early areas see places in the picture, selective areas their own things, subjects share a part."""

import numpy as np
import pytest

from bitllm.simulation import atlases, preset
from bitllm.simulation.cortex import LEFT, make_cortex
from bitllm.simulation.responses import CELLS, make_tuning, standardised
from bitllm.simulation.scenes import FEATURES, make_scenes, scene_features

DEMO = preset("demo")
COLUMN = {feature: index for index, feature in enumerate(FEATURES)}


def test_the_left_hemisphere_sees_the_right_of_the_picture_and_ventral_areas_its_top() -> None:
    cortex = make_cortex(DEMO, 0, seed=1)
    fields = make_tuning(DEMO, cortex, 0, seed=1).receptive_fields.reshape(-1, CELLS, CELLS)
    areas = atlases.atlas_labels("prf-visualrois", cortex.places)
    np.testing.assert_allclose(fields.sum((1, 2)), 1)
    x, y = fields.sum(1) @ np.arange(CELLS), fields.sum(2) @ np.arange(CELLS)
    left, early = cortex.hemisphere == LEFT, (areas > 0) & (areas < 7)
    assert x[left & early].mean() > 6.5 and x[~left & early].mean() < 4.5
    ventral, dorsal = np.isin(areas, [1, 3, 5]), np.isin(areas, [2, 4, 6])
    assert y[ventral].mean() < 5 and y[dorsal].mean() > 6  # rows count from the top


def test_faces_drive_face_areas_and_little_else() -> None:
    cortex = make_cortex(DEMO, 0, seed=1)
    semantic = make_tuning(DEMO, cortex, 0, seed=1).semantic
    for group, atlas, label in (
        ("face", "floc-faces", 2),
        ("words", "floc-words", 2),
        ("body", "floc-bodies", 1),
    ):
        weight = semantic[:, COLUMN[group, group]]
        inside = atlases.atlas_labels(atlas, cortex.places) == label
        outside = atlases.atlas_labels(atlas, cortex.places) == 0
        assert weight[inside].mean() > 2
        assert np.median(np.abs(weight[outside])) < 0.5


def test_early_areas_do_not_read_the_scene_and_higher_ones_do_not_see_pixels() -> None:
    cortex = make_cortex(DEMO, 1, seed=1)
    tuning = make_tuning(DEMO, cortex, 1, seed=1)
    areas = atlases.atlas_labels("prf-visualrois", cortex.places)
    assert not tuning.semantic[(areas > 0) & (areas < 7)].any()
    assert not tuning.channels[areas == 0].any()


@pytest.mark.parametrize(("shared", "low", "high"), [(1.0, 0.999, 1.001), (0.0, -0.2, 0.2)])
def test_subjects_share_as_much_as_the_parameter_says(shared: float, low: float, high: float) -> None:
    config = DEMO.model_copy(update={"shared_tuning": shared, "voxel_tuning": 0.0, "misalignment_mm": 0.0})
    cortex = make_cortex(config, 0, seed=1)
    one, other = (make_tuning(config, cortex, subject, seed=1).semantic for subject in (0, 1))
    objects = [index for index, (group, _) in enumerate(FEATURES) if group == "object"]
    r = np.corrcoef(one[:, objects].ravel(), other[:, objects].ravel())[0, 1]
    assert low < r < high


def test_responses_equal_a_loop_over_cells_and_features(rng: np.random.Generator) -> None:
    config = preset("tiny")
    cortex = make_cortex(config, 0, seed=1)
    tuning = make_tuning(config, cortex, 0, seed=1)
    features = standardised(scene_features(make_scenes(5, seed=1)))
    seen = rng.normal(size=(5, CELLS**2, 4))
    voxel = int(np.flatnonzero(atlases.atlas_labels("prf-visualrois", cortex.places) == 7)[0])
    expected = [
        sum(features[image, k] * tuning.semantic[voxel, k] for k in range(len(FEATURES)))
        + sum(seen[image, cell, c] * tuning.receptive_fields[voxel, cell] * tuning.channels[voxel, c]
              for cell in range(CELLS**2) for c in range(4))
        for image in range(5)
    ]  # fmt: skip
    np.testing.assert_allclose(tuning.responses(seen, features)[:, voxel], expected)
