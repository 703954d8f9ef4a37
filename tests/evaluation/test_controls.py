from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitllm.data.store import Store
from bitllm.errors import ConfigError, DataError
from bitllm.evaluation.controls import (
    BETAS_CONTROLS,
    betas_of_another_subject,
    control_betas,
    covariance_matched,
    nearest_voxels,
    shuffled,
    training_betas,
)
from bitllm.evaluation.held_out import read_held_out

seeds = st.integers(0, 10_000)


def test_zero_is_all_zero(held_out):
    assert not control_betas("zero", held_out, seed=0).betas.any()


@given(st.integers(2, 8), seeds)
def test_shuffle_keeps_the_values_of_each_row_and_moves_them(n, seed):
    betas = np.random.default_rng(seed).normal(size=(n, 9))
    changed = shuffled(betas, seed=seed)
    assert np.array_equal(np.sort(changed, axis=1), np.sort(betas, axis=1))
    assert not np.array_equal(changed, betas)


def test_the_shuffle_of_a_row_does_not_depend_on_the_rows_after_it():
    betas = np.random.default_rng(0).normal(size=(6, 20))
    all_rows = shuffled(betas, seed=4)
    assert np.array_equal(all_rows[:2], shuffled(betas[:2], seed=4))
    assert len({tuple(row) for row in np.argsort(all_rows, axis=1).argsort(axis=1)}) == 6


@pytest.mark.parametrize("control", BETAS_CONTROLS)
def test_a_control_is_a_pure_function_of_its_seed_and_leaves_the_betas_alone(held_out, control):
    before = held_out.betas.copy()
    first = control_betas(control, held_out, seed=3)
    assert first.betas.shape == before.shape
    assert np.array_equal(first.betas, control_betas(control, held_out, seed=3).betas)
    assert np.array_equal(held_out.betas, before)


def test_noise_has_the_mean_and_covariance_of_the_training_rows():
    rng = np.random.default_rng(0)
    training = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + np.arange(6)
    noise = covariance_matched(training, 40_000, seed=1)
    assert np.allclose(noise.mean(axis=0), training.mean(axis=0), atol=0.1)
    assert np.allclose(np.cov(noise.T), np.cov(training.T), atol=0.05 * np.abs(np.cov(training.T)).max())


def test_noise_needs_two_training_trials():
    with pytest.raises(DataError, match="expected at least 2 training trials for a covariance, found 1"):
        covariance_matched(np.zeros((1, 3)), 2, seed=0)


def test_noise_is_fitted_on_the_subjects_own_training_images_alone(held_out):
    training = training_betas(held_out)
    data = held_out.store.subject(held_out.subject)
    part = held_out.store.stimuli["part"].reindex(data.trials["nsd_id"]).to_numpy()
    assert len(training) == data.trials["nsd_id"][part == "train"].nunique()


def test_a_subject_without_training_images_has_no_noise(easy, held_out):
    bare = Store(easy.store.path, easy.store.manifest)
    bare.__dict__["stimuli"] = easy.store.stimuli.assign(part="test")
    with pytest.raises(DataError, match=r"noise: expected trials of subj08 on training images .*found none"):
        training_betas(replace(held_out, store=bare))


def test_another_subjects_betas_are_of_the_same_image_at_the_nearest_voxel(held_out):
    made = betas_of_another_subject(held_out)
    donor = held_out.store.subject(made.about["subject"])
    own, theirs = (
        held_out.store.subject(name).voxels[["x_mm", "y_mm", "z_mm"]].to_numpy()
        for name in ("subj08", made.about["subject"])
    )
    nearest = ((theirs - own[5]) ** 2).sum(axis=1).argmin()
    rows = np.flatnonzero(donor.trials["nsd_id"].to_numpy() == held_out.nsd_id[2])
    rows = rows[: held_out.n_repetitions[2]]
    expected = donor.betas[rows][:, nearest].astype(np.float32).mean()
    assert made.betas[2, 5] == pytest.approx(expected, abs=1e-5)
    voxel, distance = nearest_voxels(held_out.store, "subj08", "subj08")
    assert np.array_equal(voxel, np.arange(len(own)))
    assert not distance.any()


def test_images_that_nobody_else_saw_have_no_other_subject(easy):
    own = read_held_out(easy.store, easy.split, averaged=True, part="validation", subject="subj02")
    with pytest.raises(DataError, match=r"expected another subject who saw all .* images, found subj"):
        betas_of_another_subject(own)


def test_an_unknown_control_is_refused_with_the_nearest_name(held_out):
    with pytest.raises(ConfigError, match="found `shufle`; did you mean `shuffle`"):
        control_betas("shufle", held_out, seed=0)
