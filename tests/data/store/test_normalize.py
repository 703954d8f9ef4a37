"""Z-scores: against scipy, without the held-out trials, and with voxels that do not vary."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.data.store.normalize import moments, pooled, scaled_by, z_scores


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


@pytest.mark.parametrize("n_training", [0, 1])
def test_a_session_with_fewer_than_two_training_trials_is_refused(n_training):
    with pytest.raises(ValueError, match=f"found {n_training}"):
        z_scores(np.ones((3, 2), np.float32), np.arange(3) < n_training)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 10_000))
def test_pooled_statistics_are_those_of_all_sessions_laid_together(lengths, seed):
    rng = np.random.default_rng(seed)
    sessions = [rng.normal(50, 3, (n, 4)).astype(np.float32) for n in lengths]
    training = [rng.random(n) < 0.7 for n in lengths]
    in_view = [rng.random(4) < 0.8 for _ in lengths]
    found = pooled([moments(*of_session) for of_session in zip(sessions, training, in_view, strict=True)])
    for voxel in range(4):
        kept = [s[t, voxel] for s, t, v in zip(sessions, training, in_view, strict=True) if v[voxel]]
        values = np.concatenate([*kept, np.empty(0)]).astype(np.float64)
        if values.size and np.ptp(values) > 0:
            np.testing.assert_allclose(found[:, voxel], [values.mean(), values.std()], rtol=1e-9)
        else:
            assert found[:, voxel].tolist() == [0, np.inf]


def test_scaling_by_statistics_gives_zero_for_a_voxel_that_never_varies():
    statistics = np.array([[1.0, 0.0], [2.0, np.inf]])
    betas = np.array([[3.0, 7.0], [np.nan, 7.0]], np.float32)
    assert scaled_by(betas, statistics).tolist() == [[1.0, 0.0], [0.0, 0.0]]
