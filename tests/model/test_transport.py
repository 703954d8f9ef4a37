"""Transport of pooled betas: the closed form against scipy's matrix roots, and what it must and must not change."""

import numpy as np
import pytest
import scipy.linalg
import torch

from bitllm.model.transport import Moments, optimal_transport

WIDTH = 5


@pytest.fixture
def two_subjects():
    """Trials of two subjects with other means and covariances."""
    rng = np.random.default_rng(4)
    mixing = rng.normal(size=(2, WIDTH, WIDTH))
    return [
        torch.tensor(rng.normal(size=(400, WIDTH)) @ mixing[n] + rng.normal(size=WIDTH)) for n in range(2)
    ]


def test_moments_are_mean_and_covariance(two_subjects):
    one, other = map(Moments.of, two_subjects)
    values = two_subjects[0].numpy()
    np.testing.assert_allclose(one.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(one.covariance, np.cov(values.T, bias=True), atol=1e-12)
    both = Moments.mean_of([one, other])
    np.testing.assert_allclose(both.covariance, (one.covariance + other.covariance) / 2, atol=1e-12)


def test_moved_values_have_the_moments_of_the_others(two_subjects):
    source, target = map(Moments.of, two_subjects)
    moved = optimal_transport(source, target, shrinkage=0.0)(two_subjects[0])
    found = Moments.of(moved)
    np.testing.assert_allclose(found.mean, target.mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance, target.covariance, atol=1e-8)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_the_map_is_the_closed_form_of_the_optimal_transport(two_subjects, shrinkage):
    source, target = map(Moments.of, two_subjects)

    def shrunken(covariance):
        own = covariance.numpy()
        return (1 - shrinkage) * own + shrinkage * np.trace(own) / WIDTH * np.eye(WIDTH)

    one, other = shrunken(source.covariance), shrunken(target.covariance)
    inverse = np.linalg.inv(one)
    expected = scipy.linalg.sqrtm(other @ one) @ inverse  # Σ_b Σ_a has the root A Σ_a, with A = transport
    found = optimal_transport(source, target, shrinkage=shrinkage).matrix.numpy()
    np.testing.assert_allclose(found, np.real(expected), atol=1e-8)
    np.testing.assert_allclose(found, found.T, atol=1e-10)
    assert np.linalg.eigvalsh(found).min() > 0, "symmetric and positive: the gradient of a convex function"


def test_a_subject_like_the_others_is_not_moved(two_subjects):
    moments = Moments.of(two_subjects[0])
    moved = optimal_transport(moments, moments)(two_subjects[0])
    np.testing.assert_allclose(moved, two_subjects[0], atol=1e-9)


def test_type_and_place_of_the_values_stay(two_subjects):
    transport = optimal_transport(*map(Moments.of, two_subjects))
    assert transport(two_subjects[0].float()).dtype == torch.float32


def test_directions_without_variance_stay_finite():
    flat = torch.zeros(50, WIDTH, dtype=torch.float64)
    flat[:, 0] = torch.arange(50)
    other = Moments.of(torch.randn(50, WIDTH, dtype=torch.float64))
    assert optimal_transport(Moments.of(flat), other).matrix.isfinite().all()
