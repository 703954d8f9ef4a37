"""Betas: what is stored is the true value, and noise and signal are as strong as the parameters say."""

import numpy as np
import pytest

from bitllm.simulation import SimulationConfig, atlases, preset
from bitllm.simulation.cortex import LEFT, make_cortex
from bitllm.simulation.responses import (
    CELLS,
    NoiseCeiling,
    Subject,
    as_stored,
    make_subject,
    make_tuning,
    session_percent,
    standardised,
)
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


def make(config: SimulationConfig) -> Subject:
    cortex = make_cortex(config, 0, seed=1)
    features = standardised(scene_features(make_scenes(config.images_per_subject, seed=1)))
    seen = np.random.default_rng(0).normal(size=(len(features), 144, 4))
    return make_subject(config, 0, cortex, make_tuning(config, cortex, 0, seed=1), (seen, features), seed=1)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make(preset("tiny"))


def test_stored_betas_are_the_true_ones_times_300_rounded_and_saturated() -> None:
    percent = np.array([[0.0, 1.0, -2.5, 0.00167, 500.0, -500.0]])
    assert as_stored(percent).tolist() == [[0, 300, -750, 1, 32767, -32768]]


def test_rounding_loses_less_than_half_a_unit(subject: Subject) -> None:
    percent = session_percent(preset("tiny"), subject, np.arange(60), 0, seed=1)
    assert np.abs(as_stored(percent) / 300 - percent).max() <= 0.5 / 300 + 1e-12
    assert np.abs(percent).max() < 109  # far from saturation


def test_without_noise_a_session_is_the_scaled_response(subject: Subject) -> None:
    config = preset("tiny").model_copy(update={"noise": 0.0})
    percent = session_percent(config, subject, np.arange(60), 0, seed=1)
    cortical = subject.cortex.cortical[subject.cortex.brain] & subject.in_view[0]
    changes = percent[:, cortical] - subject.mean_percent[cortical]
    columns = subject.in_view[0][subject.cortex.cortical[subject.cortex.brain]]
    expected = (subject.responses[:60] * subject.strength)[:, columns] * subject.noise_percent[cortical]
    gain = (changes * expected).sum() / (expected**2).sum()
    assert 0.6 < gain < 1.6  # the session's gain
    np.testing.assert_allclose(changes, gain * expected, atol=1e-9)


def test_without_signal_the_images_do_not_matter(subject: Subject) -> None:
    config = preset("tiny").model_copy(update={"signal": 0.0})
    one = session_percent(config, subject, np.arange(60), 1, seed=1)
    np.testing.assert_array_equal(
        one, session_percent(config, subject, np.arange(60)[::-1].copy(), 1, seed=1)
    )


def test_ncsnr_recovers_the_strength_that_was_put_in(rng: np.random.Generator) -> None:
    n_images, strength = 400, np.array([0.0, 0.3, 1.0])
    response = rng.normal(size=(n_images, 3))
    ceiling = NoiseCeiling(n_images + 1, 3)
    for _ in range(3):
        images = rng.permutation(n_images)
        percent = strength * response[images] + rng.normal(size=(n_images, 3))
        ceiling.add(as_stored(percent), images)
    np.testing.assert_allclose(ceiling.ncsnr()[1:], strength[1:], atol=0.12)
    assert ceiling.ncsnr()[0] < 0.3


def test_voxels_that_are_never_in_view_have_no_ncsnr(rng: np.random.Generator) -> None:
    ceiling = NoiseCeiling(10, 2)
    for _ in range(3):
        betas = rng.integers(-300, 300, (10, 2)).astype(np.int16)
        betas[:, 1] = 0
        ceiling.add(betas, np.arange(10))
    assert np.isfinite(ceiling.ncsnr()[0]) and np.isnan(ceiling.ncsnr()[1])


def test_noise_is_partly_smooth_in_space(subject: Subject) -> None:
    config = preset("tiny").model_copy(update={"signal": 0.0})
    percent = session_percent(config, subject, np.arange(60), 0, seed=1)[:, subject.in_view[0]]
    place = np.argwhere(subject.cortex.brain)[subject.in_view[0]]
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    r = np.corrcoef(percent.T)
    near, far = r[(distance > 0) & (distance < 1.1)].mean(), np.abs(r[distance > 5].mean())
    assert near > 0.1 > far
