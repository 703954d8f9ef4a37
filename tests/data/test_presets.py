"""Splits by name: who is held out, which images, and what a store lacks for them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.cli import main
from bitllm.data.splits import (
    check_split,
    leave_one_subject_out,
    load_split,
    make_split,
    named_test_images,
    with_few_trials,
    with_test_images,
    within_subject,
    without_neighbours,
)
from bitllm.data.store import open_store
from bitllm.data.targets import Targets, save_targets
from bitllm.errors import SplitError

PARTS = ("train_images", "validation_images", "test_images")


def test_any_subject_can_be_held_out(store):
    split = leave_one_subject_out(store, "subj02")
    check_split(store, split)
    assert split.train_subjects == ("subj01", "subj03")
    assert split.test_subjects == ("subj02",)
    with pytest.raises(SplitError, match="expected a subject of the store to be held out, found `subj9`"):
        leave_one_subject_out(store, "subj9")


def test_few_trials_come_with_whole_images_drawn_by_the_seed(store):
    subject = store.subjects[-1]
    split = within_subject(store, (subject,))
    few = with_few_trials(store, split, 7)
    check_split(store, few)
    seen = store.subject(subject).trials["nsd_id"]
    assert few.train_images < split.train_images
    assert 7 <= seen.isin(few.train_images).sum() <= 9, "images come whole, with up to three trials"
    assert few.train_images != with_few_trials(store, split, 7, seed=1).train_images
    assert few.test_images == split.test_images
    for n_trials in (0, 10**6):
        with pytest.raises(SplitError, match=f"those of {subject}, found {n_trials}"):
            with_few_trials(store, split, n_trials)
    with pytest.raises(SplitError, match="expected a subject of the store, found `subj99`"):
        within_subject(store, ("subj99",))


def test_within_subjects_the_images_are_disjoint(store):
    split = within_subject(store)
    check_split(store, split)
    assert split.train_subjects == split.test_subjects == store.subjects
    assert not split.test_images & (split.train_images | split.validation_images)


def test_a_named_test_set_that_the_store_has_not_is_refused(store):
    with pytest.raises(SplitError, match="expected 1000 images of the test set 1000, found 4"):
        named_test_images(store, "1000")
    with pytest.raises(SplitError, match="expected 8 subjects for the test set 515"):
        named_test_images(store, "515")
    with pytest.raises(SplitError, match="expected a test set, found `983`; did you mean `982`"):
        named_test_images(store, "983")


def test_a_split_is_narrowed_to_some_test_images(store):
    split = make_split(store, "poster")
    one = frozenset([min(split.test_images)])
    narrowed = with_test_images(split, one, name="1")
    assert (narrowed.test_images, narrowed.name) == (one, "poster-1")
    check_split(store, narrowed)
    with pytest.raises(SplitError, match="expected test images of the set 1, found none"):
        with_test_images(split, frozenset(), name="1")


def test_images_like_a_test_image_are_held_out(store, rng):
    split = make_split(store, "poster")
    ids = store.stimuli.index.to_numpy()
    embeddings = rng.normal(size=(len(ids), 6))
    like, test = min(split.train_images), min(split.test_images)
    embeddings[ids == like] = embeddings[ids == test] * 3
    held = without_neighbours(split, ids, embeddings, cosine=0.999)
    assert split.train_images - held.train_images == {like}
    check_split(store, held)
    also, choice = max(split.train_images), min(split.validation_images)
    embeddings[ids == also] = embeddings[ids == choice] * 2
    held = without_neighbours(split, ids, embeddings, cosine=0.999)
    assert split.train_images - held.train_images == {like, also}
    assert held.validation_images == split.validation_images
    with pytest.raises(SplitError, match="expected an embedding of every image, found none"):
        without_neighbours(split, ids[:3], embeddings[:3], cosine=0.9)
    with pytest.raises(SplitError, match="expected images left to train and to choose on"):
        without_neighbours(split, ids, np.ones((len(ids), 2)), cosine=0.9)


@pytest.mark.parametrize("cosine", [-2.0, 2.0, float("nan")])
def test_a_cosine_is_from_minus_1_to_1(store, cosine):
    ids = store.stimuli.index.to_numpy()
    with pytest.raises(SplitError, match=f"found {cosine}"):
        without_neighbours(make_split(store, "poster"), ids, np.ones((len(ids), 2)), cosine=cosine)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 0.95))
def test_no_two_parts_have_images_that_are_alike_and_no_more_are_taken_out(store, seed, cosine):
    split = make_split(store, "poster")
    ids = store.stimuli.index.to_numpy()
    embeddings = np.random.default_rng(seed).normal(size=(len(ids), 3))
    try:
        held = without_neighbours(split, ids, embeddings, cosine=cosine)
    except SplitError:
        return  # a low cosine may leave nothing
    vector = dict(zip(ids.tolist(), embeddings, strict=True))

    def alike(one: int, others: frozenset[int]) -> bool:
        a = vector[one]
        return any(
            float(a @ vector[o]) / (np.linalg.norm(a) * np.linalg.norm(vector[o])) > cosine + 1e-12
            for o in others
        )

    assert held.test_images == split.test_images
    kept = {i for i in split.validation_images if not alike(i, split.test_images)}
    assert held.validation_images == kept
    far = {i for i in split.train_images if not alike(i, split.test_images | held.validation_images)}
    assert held.train_images == far


def test_the_command_holds_out_pictures_like_a_test_picture(store, tmp_path, rng):
    split = make_split(store, "poster")
    ids = np.sort(store.stimuli.index.to_numpy())
    image = rng.normal(size=(len(ids), 8)).astype(np.float32)
    like, test = max(split.train_images), max(split.test_images)
    image[ids == like] = image[ids == test] + 1e-3
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    save_targets(Targets(ids, image, image), tmp_path / "targets.safetensors")
    command = ["split", str(store.path), str(tmp_path / "s.json")]
    main([*command, "--max-cosine", "0.99", "--embeddings", str(tmp_path / "targets.safetensors")])
    held = load_split(tmp_path / "s.json")
    assert split.train_images - held.train_images == {like}
    assert (held.validation_images, held.test_images) == (split.validation_images, split.test_images)
    assert held.name == "poster-cosine0.99" and held.sha256 != split.sha256


def test_a_clip_may_be_named_in_the_place_of_embeddings(
    easy_release, small_clip_folder, small_clip, tmp_path
):
    store = open_store(easy_release / "store")
    split = make_split(store, "poster")
    train, validation, test = (
        small_clip.pictures(store.pictures(sorted(getattr(split, part)))) for part in PARTS
    )
    in_order = np.sort((train @ test.T).max(axis=1))  # a CLIP of few steps finds all pictures alike
    widest = 1 + np.argmax(np.diff(in_order[1:-1]))
    cosine = float(in_order[widest : widest + 2].astype(np.float64).mean())
    kept = validation[(validation @ test.T).max(axis=1) <= cosine]
    far = (train @ np.concatenate([test, kept]).T).max(axis=1) <= cosine
    command = ["split", str(store.path), str(tmp_path / "s.json"), "--max-cosine", str(cosine)]
    main([*command, "--embeddings", str(small_clip_folder)])
    held = load_split(tmp_path / "s.json")
    assert 0 < len(held.train_images) == far.sum() < len(split.train_images)
    assert len(held.validation_images) == len(kept)


@pytest.mark.parametrize("option", [("--max-cosine", "0.9"), ("--embeddings", "clip")])
def test_half_of_the_hold_out_is_refused(store, tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(["split", str(store.path), str(tmp_path / "s.json"), *option])
    assert "expected --max-cosine and --embeddings together, found only one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_split(store, tmp_path):
    main(
        [
            "split",
            str(store.path),
            str(tmp_path / "s.json"),
            "--preset",
            "leave-one-subject-out",
            "--held-out",
            "subj01",
        ]
    )
    assert load_split(tmp_path / "s.json") == leave_one_subject_out(store, "subj01")


@pytest.fixture(name="refused")
def _refused(store, capsys):
    """Run a split that must fail: exit status 2 and one line, which is returned."""

    def refused(out, *words: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            main(["split", str(store.path), str(out), *words])
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1
        return err

    return refused


@pytest.mark.parametrize("preset", [(), ("--preset", "poster"), ("--preset", "develop")])
def test_a_held_out_subject_is_refused_where_the_preset_chooses(tmp_path, refused, preset):
    err = refused(tmp_path / "s.json", *preset, "--held-out", "subj03")
    assert "expected --held-out with the preset leave-one-subject-out or within-subject, found it with" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["poster", "develop", "leave-one-subject-out", "within-subject"])
def test_few_trials_are_taken_with_every_preset(store, tmp_path, preset):
    for name, words in (("all", ()), ("few", ("--trials", "6"))):
        main(["split", str(store.path), str(tmp_path / name), "--preset", preset, *words])
    every, few = (load_split(tmp_path / name) for name in ("all", "few"))
    assert few.name == f"{every.name} 6 trials"
    assert few.train_images < every.train_images


def test_another_split_is_never_written_over(store, tmp_path, refused):
    out = tmp_path / "s.json"
    command = ["split", str(store.path), str(out)]
    main(command)
    before = out.read_bytes()
    main(command)
    assert out.read_bytes() == before
    err = refused(out, "--preset", "develop")
    assert f"{out}: expected a new file for the split develop" in err
    assert "found the split poster (" in err
    assert out.read_bytes() == before
    out.write_text("my notes")
    assert "found a file that is no whole split; name another file" in refused(out)
    assert out.read_text() == "my notes"


def test_a_split_needs_the_name_of_a_file(tmp_path, refused):
    assert f"{tmp_path}: expected a place for a file, found a folder" in refused(tmp_path)
    (tmp_path / "file").write_text("")
    assert f"found the file {tmp_path / 'file'} in its way; name another file" in refused(
        tmp_path / "file" / "s.json"
    )
