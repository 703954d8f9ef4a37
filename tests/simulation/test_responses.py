"""Betas: what is stored is the true value, and noise and signal are as strong as the parameters say."""

import numpy as np
import pytest

from bitllm.simulation import SimulationConfig, preset
from bitllm.simulation.cortex import make_cortex
from bitllm.simulation.responses import (
    NoiseCeiling,
    Subject,
    as_stored,
    make_subject,
    make_tuning,
    session_percent,
    standardised,
)
from bitllm.simulation.scenes import make_scenes, scene_features


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
