import numpy as np
import pytest
from bitllm.evaluation.grounding.controls import BETAS_CONTROLS, betas_of, control_betas
from hypothesis import given
from hypothesis import strategies as st

from bitllm.data.dataset import select_trials
from bitllm.errors import ConfigError

seeds = st.integers(0, 10_000)


@st.composite
def trials(draw):
    """Betas and images of 2 to 8 images, each once, twice or three times."""
    n_images = draw(st.integers(2, 8))
    n_each = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(seeds))
    nsd_id = rng.permutation(np.repeat(rng.choice(1000, n_images, replace=False), n_each))
    return rng.normal(size=(len(nsd_id), 9)), nsd_id


@given(trials(), seeds)
def test_zero_is_all_zero(data, seed):
    betas, nsd_id = data
    changed = control_betas("zero", betas, nsd_id, seed=seed)
    assert changed.shape == betas.shape
    assert not changed.any()


@given(trials(), seeds)
def test_shuffle_keeps_the_values_of_each_row_and_moves_them(data, seed):
    betas, nsd_id = data
    changed = control_betas("shuffle", betas, nsd_id, seed=seed)
    assert np.array_equal(np.sort(changed, axis=1), np.sort(betas, axis=1))
    assert not np.array_equal(changed, betas)


@given(trials(), seeds)
def test_permuted_rows_are_the_rows_of_other_images_each_used_once(data, seed):
    betas, nsd_id = data
    changed = control_betas("permuted", betas, nsd_id, seed=seed)
    place = {row.tobytes(): number for number, row in enumerate(betas)}
    order = [place[row.tobytes()] for row in changed]
    assert sorted(order) == list(range(len(betas)))
    assert all(nsd_id[row] != nsd_id[other] for row, other in enumerate(order))


@given(trials(), seeds, st.sampled_from(BETAS_CONTROLS))
def test_a_control_is_a_pure_function_of_its_seed_and_leaves_the_betas_alone(data, seed, control):
    betas, nsd_id = data
    before = betas.copy()
    first = control_betas(control, betas, nsd_id, seed=seed)
    np.random.default_rng().random()
    assert np.array_equal(first, control_betas(control, betas, nsd_id, seed=seed))
    assert np.array_equal(betas, before)


def test_the_shuffle_of_a_row_does_not_depend_on_the_rows_after_it():
    betas, nsd_id = np.random.default_rng(0).normal(size=(6, 20)), np.arange(6)
    all_rows = control_betas("shuffle", betas, nsd_id, seed=4)
    assert np.array_equal(all_rows[:2], control_betas("shuffle", betas[:2], nsd_id[:2], seed=4))
    orders = np.argsort(all_rows, axis=1).argsort(axis=1)
    assert len({tuple(row) for row in orders}) == 6


def test_another_seed_gives_another_shuffle_and_permutation():
    betas, nsd_id = np.random.default_rng(0).normal(size=(30, 20)), np.arange(30)
    for control in ("shuffle", "permuted"):
        one, other = (control_betas(control, betas, nsd_id, seed=seed) for seed in (0, 1))
        assert not np.array_equal(one, other)


def test_an_unknown_control_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="found `shufle`; did you mean `shuffle`"):
        control_betas("shufle", np.zeros((2, 3)), np.arange(2), seed=0)


def test_betas_of_a_subject_are_those_of_its_trials(easy):
    chosen = select_trials(easy.store, easy.split, "test", averaged=True)
    betas = betas_of(chosen)
    assert betas.shape == (len(chosen), easy.store.subject("subj08").betas.shape[1])
    assert np.array_equal(betas[3], chosen.betas(3))
