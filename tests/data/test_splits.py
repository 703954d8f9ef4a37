"""Splits by subject and image: disjoint, the same every time, and no leak passes."""

import json
from dataclasses import replace

import pytest

from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import check_split, load_split, make_split, save_split
from bitllm.data.store import open_store
from bitllm.errors import DataError, SplitError


def images_seen(store, subjects, part) -> set[int]:
    seen = {int(n) for subject in subjects for n in store.subject(subject).trials["nsd_id"]}
    return {n for n in seen if store.stimuli["part"].loc[n] == part}


def test_poster_holds_out_the_last_subject_and_the_shared_images(store, written_release):
    split = make_split(store, "poster")
    assert split.train_subjects == ("subj01", "subj02")
    assert split.test_subjects == ("subj03",)
    assert split.test_images == images_seen(store, ["subj03"], "test")
    assert split.test_images <= set(written_release.shared.tolist())
    assert split.train_images == images_seen(store, split.train_subjects, "train")
    assert split.validation_images == images_seen(store, split.train_subjects, "validation")


def test_develop_never_touches_the_last_subject_or_the_shared_images(store, written_release):
    split = make_split(store, "develop")
    assert split.train_subjects == ("subj01",)
    assert split.test_subjects == ("subj02",)
    assert split.test_images == images_seen(store, ["subj02"], "validation")
    used = split.train_images | split.validation_images | split.test_images
    assert not used & set(written_release.shared.tolist())
    assert not used & images_seen(store, ["subj03"], "train")


@pytest.mark.parametrize("preset", ["poster", "develop"])
def test_presets_pass_the_check_and_have_disjoint_images(store, preset):
    split = make_split(store, preset)
    check_split(store, split)
    assert split.train_images and split.validation_images and split.test_images
    assert not split.train_images & split.validation_images
    assert not split.train_images & split.test_images
    assert make_split(store, preset) == split


def test_a_saved_split_comes_back_equal(store, tmp_path):
    split = make_split(store, "poster")
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split


def test_an_edited_split_is_refused(store, tmp_path):
    path = tmp_path / "split.json"
    save_split(make_split(store, "poster"), path)
    content = json.loads(path.read_text())
    content["train_images"].append(content["test_images"][0])
    path.write_text(json.dumps(content))
    message = r"split.json: expected content with the checksum .* changed by hand"
    with pytest.raises(SplitError, match=message):
        load_split(path)


def test_a_file_that_is_no_split_is_refused(tmp_path):
    (tmp_path / "split.json").write_text('{"name": "poster"}')
    with pytest.raises(SplitError, match="expected a split with the keys name, train_subjects"):
        load_split(tmp_path / "split.json")
    with pytest.raises(DataError, match="found no file"):
        load_split(tmp_path / "none.json")


def test_an_unknown_preset_names_the_nearest(store):
    with pytest.raises(SplitError, match="expected a preset, found `postr`; did you mean `poster`"):
        make_split(store, "postr")


def test_too_few_subjects_are_refused(written_release, tmp_path):
    prepare_nsd(written_release.root, tmp_path / "store", subjects=["subj01", "subj02"])
    with pytest.raises(SplitError, match="expected at least 3 subjects for the split `develop`, found 2"):
        make_split(open_store(tmp_path / "store"), "develop")


@pytest.fixture
def leaky(store, changed):
    """Make a split with a valid checksum and a planted leak."""
    return lambda **fields: changed(make_split(store, "poster"), **fields)


def test_a_test_image_in_training_is_named(store, leaky):
    split = make_split(store, "poster")
    leaked = min(split.test_images)
    message = f"expected train_images and test_images to be disjoint, found nsd_id {leaked} in both"
    with pytest.raises(SplitError, match=message):
        check_split(store, leaky(train_images=split.train_images | {leaked}))


def test_a_test_image_in_training_is_found_even_if_the_split_does_not_test_on_it(store, leaky):
    split = make_split(store, "poster")
    leaked = min(split.test_images)
    moved = leaky(train_images=split.train_images | {leaked}, test_images=split.test_images - {leaked})
    message = f"expected train_images of the part train, found nsd_id {leaked} of the par"
    with pytest.raises(SplitError, match=message):
        check_split(store, moved)


def test_an_image_that_the_z_scores_saw_cannot_be_tested_on(store, leaky):
    seen_by_test_subject = images_seen(store, ["subj03"], "train")
    with pytest.raises(SplitError, match="expected test_images of the part test or validation, found nsd_id"):
        check_split(store, leaky(test_images=frozenset(seen_by_test_subject)))


def test_training_and_validation_images_must_differ(store, leaky):
    split = make_split(store, "poster")
    with pytest.raises(SplitError, match="expected train_images and validation_images to be disjoint"):
        check_split(store, leaky(validation_images=split.train_images))


def test_a_test_subject_in_training_is_named(store, leaky):
    message = "expected train and test subjects to be disjoint, found subj03 in both"
    with pytest.raises(SplitError, match=message):
        check_split(store, leaky(train_subjects=("subj01", "subj03")))


@pytest.mark.parametrize(
    ("space", "is_refused"),
    [
        ("T1w", True),
        ("space-native", True),
        ("func1pt8mm", False),
        ("MNI152NLin6Asym", False),
        ("unknown", False),
    ],
)
def test_subjects_in_spaces_of_their_own_cannot_share_an_encoder(copied_store, space, is_refused):
    path = copied_store / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"space": space}))
    store = open_store(copied_store)
    if is_refused:
        with pytest.raises(SplitError, match=rf"subj01, .*`{space}`"):
            check_split(store, make_split(store, "poster"))
    else:
        check_split(store, make_split(store, "poster"))


def test_a_split_of_another_store_is_refused(store, leaky):
    message = "expected subjects of .*, found subj08; make the split again for this store"
    with pytest.raises(SplitError, match=message):
        check_split(store, leaky(test_subjects=("subj08",)))
    with pytest.raises(SplitError, match="found nsd_id 99999 in train_images; make the split again for"):
        check_split(store, leaky(train_images=frozenset({99999})))


def test_a_checksum_that_does_not_fit_is_refused(store):
    with pytest.raises(SplitError, match=r"expected the checksum .* of its content, found 000000000000"):
        check_split(store, replace(make_split(store, "poster"), sha256="0" * 64))
