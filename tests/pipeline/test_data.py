"""What a recipe changes in the data: the split, and the coordinates of a simulated store."""

import shutil

import numpy as np
import pytest

from bitllm.data.splits import check_split, make_split
from bitllm.data.store import open_store
from bitllm.errors import ConfigError, SplitError
from bitllm.pipeline.data import add_simulated_bold5000, replace_coordinates_by_indices, split_of
from bitllm.pipeline.recipe import DataConfig


def test_a_changed_split_keeps_training_and_test_apart(easy):
    store, plain = easy.store, make_split(easy.store, "poster")

    def changed(**changes):
        split = split_of(store, DataConfig(**changes), seed=0)
        check_split(store, split)
        assert not split.train_images & (split.test_images | split.validation_images)
        return split

    assert changed() == plain
    assert changed(n_train_subjects=1).train_subjects == store.subjects[:1]
    named = changed(train_subjects=store.subjects[1:2])
    assert named.train_subjects == store.subjects[1:2] and named.train_images < plain.train_images
    half = changed(training_share=0.5)
    assert len(half.train_images) == pytest.approx(len(plain.train_images) / 2, abs=1)
    assert half.train_images < plain.train_images
    other = changed(held_out=store.subjects[0])
    assert (other.test_subjects, other.train_subjects) == (store.subjects[:1], store.subjects[1:])


def test_a_few_trials_of_the_test_subject_are_added_or_are_the_only_ones(easy):
    store, plain = easy.store, make_split(easy.store, "poster")
    shots = split_of(store, DataConfig(n_shots=9), seed=0)
    (held_out,) = shots.test_subjects
    assert shots.train_subjects == store.subjects
    more = shots.train_images - plain.train_images
    seen = store.subject(held_out).trials["nsd_id"]
    assert 9 <= seen.isin(more).sum() <= 11, "an image comes with all its trials, up to three"
    alone = split_of(store, DataConfig(split="develop", n_shots_alone=9), seed=0)
    assert alone.train_subjects == alone.test_subjects == (store.subjects[-2],)
    assert 9 <= store.subject(store.subjects[-2]).trials["nsd_id"].isin(alone.train_images).sum() <= 11
    for split in (shots, alone):
        check_split(store, split)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"n_shots": 10**6}, SplitError, "1000000"),
        ({"held_out": "subj99"}, SplitError, "subj99"),
        ({"n_train_subjects": 99}, ConfigError, "n_train_subjects"),
        ({"train_subjects": ("subj1",)}, ConfigError, "subj1`"),
    ],
)
def test_a_split_that_the_store_does_not_allow_is_refused(easy, changes, error, said):
    with pytest.raises(error, match=said):
        split_of(easy.store, DataConfig(**changes), seed=0)


def test_indices_replace_only_the_coordinates(easy, tmp_path):
    shutil.copytree(easy.store.path, tmp_path / "store")
    replace_coordinates_by_indices(tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.sha256 != easy.store.sha256
    for subject in store.subjects:
        now, before = store.subject(subject), easy.store.subject(subject)
        np.testing.assert_array_equal(now.betas, before.betas)
        mm = now.voxels[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float64)
        indices = before.voxels[["i", "j", "k"]].to_numpy(np.float64)
        for axis in range(3):
            assert np.corrcoef(mm[:, axis], indices[:, axis])[0, 1] > 0.9999
        assert abs(mm.mean()) < 1e-3


@pytest.mark.parametrize("other", [{"store": "store"}, {"bold5000": 1}])
def test_index_coordinates_are_those_of_one_simulation_only(other):
    with pytest.raises(ConfigError, match="coordinates"):
        DataConfig.parse({**other, "coordinates": "indices"})


def test_a_second_simulated_data_set_is_joined_and_can_be_held_out(easy, easy_release, tmp_path):
    shutil.copytree(easy.store.path, tmp_path / "store")
    add_simulated_bold5000(tmp_path / "store", easy_release / "nsd", seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    store, nsd = open_store(tmp_path / "store"), easy.store.subjects
    people = ("CSI1", "CSI2", "CSI3", "CSI4")
    assert store.subjects == (*people, *nsd)
    assert store.manifest.simulation["joined_with"][0]["seed"] == 3
    others = split_of(store, DataConfig(held_out="CSI4", train_subjects=nsd), seed=0)
    check_split(store, others)
    assert others.test_images and not others.test_images & others.train_images
    both = split_of(store, DataConfig(held_out="CSI4"), seed=0)
    assert both.train_subjects == (*people[:3], *nsd)
    assert both.test_images == others.test_images
    assert both.train_images > others.train_images
