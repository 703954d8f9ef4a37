"""Z-scores: against scipy, without the held-out trials, and with voxels that do not vary."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bitllm.data.writing.normalise import z_scores


def test_training_trials_have_the_z_scores_of_scipy(rng):
    betas = rng.normal(3, 2, (40, 7)).astype(np.float32)
    is_training = np.arange(40) % 5 > 0
    expected = scipy.stats.zscore(betas[is_training].astype(np.float64), axis=0, ddof=0)
    np.testing.assert_allclose(z_scores(betas, is_training)[is_training], expected, rtol=2**-10, atol=1e-4)


@given(st.floats(-100, 100, width=32), st.integers(2, 50))
def test_constant_voxels_become_zero_whatever_their_value(value, n_trials):
    betas = np.full((n_trials, 2), value, np.float32)
    assert (z_scores(betas, np.ones(n_trials, bool)) == 0).all()


def test_a_voxel_that_varies_in_held_out_trials_only_becomes_zero():
    betas = np.array([[0.1], [0.1], [0.1], [5.0]], np.float32)
    assert (z_scores(betas, np.array([True, True, True, False])) == 0).all()


def test_extreme_held_out_trials_stay_within_float16():
    betas = np.array([[0.0], [1e-6], [100.0], [-100.0]], np.float32)
    scaled = z_scores(betas, np.array([True, True, False, False]))
    assert np.isfinite(scaled).all()
    assert scaled[2:, 0].tolist() == [65504.0, -65504.0]


def test_held_out_trials_do_not_move_the_statistics(rng):
    betas = rng.normal(size=(12, 3)).astype(np.float32)
    is_training = np.arange(12) < 8
    before = z_scores(betas, is_training)[is_training]
    betas[~is_training] *= 50
    np.testing.assert_array_equal(z_scores(betas, is_training)[is_training], before)


def test_a_session_without_training_trials_is_refused():
    with pytest.raises(ValueError, match="at least one training trial"):
        z_scores(np.ones((3, 2), np.float32), np.zeros(3, bool))
