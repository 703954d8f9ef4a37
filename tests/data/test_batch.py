import numpy as np
import torch

from bitllm.data.batch import Anatomies, brain_input
from bitllm.data.dataset import anatomy, select_trials
from bitllm.data.splits import make_split

ATLASES = ("streams", "prf-visualrois")


def test_anatomies_hold_each_subjects_places_and_labels_and_mask_the_rest(store):
    anatomies = Anatomies.of(store, store.subjects, ATLASES)
    n_voxels = [store.subject(name).betas.shape[1] for name in store.subjects]
    assert len(set(n_voxels)) > 1  # or padding is not tested
    assert anatomies.coords_mm.shape == (3, max(n_voxels), 3)
    for row, name in enumerate(store.subjects):
        coords_mm, labels = anatomy(store.subject(name), ATLASES)
        n = n_voxels[row]
        assert anatomies.voxel_mask[row].tolist() == [True] * n + [False] * (max(n_voxels) - n)
        assert np.array_equal(anatomies.coords_mm[row, :n].numpy(), coords_mm)
        assert np.array_equal(anatomies.atlas_labels[row, :n].numpy(), labels)
        assert not anatomies.atlas_labels[row, n:].any()


def test_the_order_of_the_atlases_is_the_order_asked_for(store):
    one = Anatomies.of(store, ["subj01"], ATLASES).atlas_labels
    other = Anatomies.of(store, ["subj01"], ATLASES[::-1]).atlas_labels
    assert torch.equal(one, other.flip(-1))


def test_a_batch_that_mixes_subjects_holds_each_trials_betas_and_its_subject(store):
    trials = select_trials(store, make_split(store, "poster"), "train", averaged=False)
    anatomies = Anatomies.of(store, trials.subjects, ATLASES)
    indices = [0, len(trials) - 1, 1, len(trials) - 2]
    batch = brain_input(trials, anatomies, indices)
    assert len({trials.subject_of(index) for index in indices}) == 2
    for row, index in enumerate(indices):
        betas = trials.betas(index)
        assert trials.subject_of(index) == anatomies.subjects[int(batch.subject_index[row])]
        assert np.array_equal(batch.betas[row, : len(betas)].numpy(), betas)
        assert not batch.betas[row, len(betas) :].any()


def test_subjects_are_found_by_name_in_anatomies_of_another_order(store):
    trials = select_trials(store, make_split(store, "poster"), "train", averaged=True)
    anatomies = Anatomies.of(store, store.subjects[::-1], ATLASES)
    batch = brain_input(trials, anatomies, range(len(trials)))
    names = [anatomies.subjects[int(row)] for row in batch.subject_index]
    assert names == [trials.subject_of(index) for index in range(len(trials))]
