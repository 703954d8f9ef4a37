from typing import get_args

import numpy as np
import pytest

from bitllm.explore.schemas import Kind
from bitllm.explore.work import perturbed

BETAS = np.array([1.0, -2.0, 3.0, 0.5, -0.25], dtype=np.float32)
ROI = np.array([True, False, True, False, False])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", BETAS),
        ("zero", np.zeros(5)),
        ("silence", [0, -2.0, 0, 0.5, -0.25]),
        ("alone", [1.0, 0, 3.0, 0, 0]),
        ("scale", [-0.5, 1.0, -1.5, -0.25, 0.125]),
    ],
)
def test_each_perturbation_is_what_it_says(kind, expected):
    found = perturbed(BETAS, kind, roi=ROI, factor=-0.5)
    assert found.dtype == BETAS.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_shuffle_keeps_the_values_and_depends_on_the_seed_alone():
    one, again, other = (perturbed(BETAS, "shuffle", seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(np.sort(one), np.sort(BETAS))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_given_betas_stay_as_they_are(kind):
    given = BETAS.copy()
    perturbed(given, kind, roi=ROI, factor=2.0)[:] = 9
    np.testing.assert_array_equal(given, BETAS)
