"""Which rows become which items, single and averaged, and the seal on the test part."""

import contextvars
from dataclasses import replace

import numpy as np
import pytest

from bitllm.data.dataset import anatomy, n_labels, sealed_test, select_trials
from bitllm.data.splits import make_split
from bitllm.errors import DataError, SealedTestError, SplitError


@pytest.fixture(scope="module")
def poster(store):
    return make_split(store, "poster")


def test_single_trials_are_the_rows_of_the_training_images(store, poster):
    trials = select_trials(store, poster, "train", averaged=False)
    expected = [
        (index, row, n)
        for index, subject in enumerate(["subj01", "subj02"])
        for row, n in enumerate(store.subject(subject).trials["nsd_id"].tolist())
        if n in poster.train_images
    ]
    columns = zip(trials.subject_index.tolist(), trials.rows, trials.nsd_id.tolist(), strict=True)
    assert [(index, *rows, n) for index, rows, n in columns] == expected
    assert len(trials) == len(expected)
    last = len(trials) - 1
    assert trials.subject_of(last) == "subj02"
    assert trials.n_repetitions(last) == 1
    row = store.subject("subj02").betas[trials.rows[last][0]].astype(np.float32)
    np.testing.assert_array_equal(trials.betas(last), row)


def test_averaged_trials_are_the_mean_of_all_repetitions_in_order_of_the_first(store, poster):
    trials = select_trials(store, poster, "test", averaged=True)
    table = store.subject("subj03").trials
    of_image = {n: np.flatnonzero(table["nsd_id"] == n) for n in poster.test_images}
    order = sorted(of_image, key=lambda n: of_image[n][0])
    assert trials.subjects == ("subj03",)
    assert trials.nsd_id.tolist() == order
    assert [trials.n_repetitions(index) for index in range(len(trials))] == [len(of_image[n]) for n in order]
    for index, n in enumerate(order):
        rows = [store.subject("subj03").betas[row].astype(np.float64) for row in of_image[n]]
        np.testing.assert_allclose(trials.betas(index), sum(rows) / len(rows), rtol=1e-5, atol=1e-6)
        assert trials.betas(index).dtype == np.float32


def test_averaging_never_mixes_subjects(store, poster, changed):
    pair = changed(poster, train_subjects=("subj01",), test_subjects=("subj02", "subj03"))
    trials = select_trials(store, pair, "test", averaged=True)
    subjects = [trials.subject_of(index) for index in range(len(trials))]
    assert subjects == ["subj02"] * 4 + ["subj03"] * (len(trials) - 4)
    assert set(trials.nsd_id[:4].tolist()) == set(trials.nsd_id.tolist())


def test_validation_trials_belong_to_training_subjects(store, poster):
    trials = select_trials(store, poster, "validation", averaged=True)
    assert set(trials.nsd_id.tolist()) == poster.validation_images
    assert trials.subjects == ("subj01", "subj02")


def test_some_of_the_subjects_can_be_chosen(store, poster):
    both = select_trials(store, poster, "train", averaged=False)
    one = select_trials(store, poster, "train", averaged=False, subjects=["subj02"])
    assert one.subjects == ("subj02",)
    assert one.rows == [rows for rows, index in zip(both.rows, both.subject_index, strict=True) if index == 1]


def test_the_test_part_is_sealed_while_something_is_fitted(store, poster):
    with sealed_test():
        with sealed_test():
            pass
        select_trials(store, poster, "train", averaged=False)
        with pytest.raises(SealedTestError, match="no use of the test part"):
            select_trials(store, poster, "test", averaged=True)
        outside = contextvars.Context().run(select_trials, store, poster, "test", averaged=True)
        assert len(outside)
    assert len(select_trials(store, poster, "test", averaged=True)) == len(outside)


def test_the_seal_is_lifted_after_an_error(store, poster):
    with pytest.raises(KeyError), sealed_test():
        raise KeyError
    assert len(select_trials(store, poster, "test", averaged=False))


def test_an_unknown_part_names_the_nearest(store, poster):
    with pytest.raises(SplitError, match="expected a part, found `valid`; did you mean `validation`"):
        select_trials(store, poster, "valid", averaged=False)


@pytest.mark.parametrize("part,subject", [("train", "subj03"), ("test", "subj01"), ("train", "subj9")])
def test_a_subject_of_another_part_is_refused(store, poster, part, subject):
    with pytest.raises(SplitError, match=f"expected {part} subjects .* found `{subject}`; choose among them"):
        select_trials(store, poster, part, averaged=False, subjects=[subject])


def test_a_leaking_split_gives_no_trials(store, poster):
    with pytest.raises(SplitError, match="expected train_images and test_images to be disjoint"):
        select_trials(store, replace(poster, train_images=poster.test_images), "train", averaged=False)


def test_a_part_without_trials_is_refused(store, poster, changed):
    empty = changed(poster, validation_images=frozenset())
    with pytest.raises(SplitError, match=r"expected validation trials of subj01, subj02 in .*, found none"):
        select_trials(store, empty, "validation", averaged=False)


def test_anatomy_follows_the_atlases_asked_for(store):
    data = store.subject("subj01")
    coords_mm, labels = anatomy(data, ["streams", "prf-visualrois"])
    assert (coords_mm.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(coords_mm[:, 1], data.voxels["y_mm"])
    np.testing.assert_array_equal(labels[:, 1], data.voxels["prf-visualrois"])
    assert n_labels(store, ["streams", "prf-visualrois"]) == (2, 3)
    assert anatomy(data, [])[1].shape == (len(data.voxels), 0)


def test_an_unknown_atlas_names_the_nearest(store):
    message = "subj01: expected an atlas of the store, found `stream`; did you mean `str"
    with pytest.raises(DataError, match=message):
        anatomy(store.subject("subj01"), ["stream"])
    with pytest.raises(DataError, match="expected an atlas of the store, found `x_mm`; valid"):
        n_labels(store, ["x_mm"])
