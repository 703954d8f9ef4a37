import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bitllm.data.store import open_store
from bitllm.data.targets import Targets, load_clip, load_targets, make_targets, save_targets
from bitllm.errors import ConfigError, DataError
from bitllm.files import read_json, sha256_of_file, write_json


@pytest.fixture(scope="module")
def targets(easy, small_clip):
    """Of the easy brain, by its small CLIP."""
    return make_targets(easy.store, small_clip)


def test_every_image_of_the_store_has_unit_embeddings(easy, targets):
    assert targets.nsd_id.tolist() == sorted(easy.store.stimuli.index)
    for rows in (targets.image, targets.text):
        assert rows.shape == (len(targets.nsd_id), 16)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_text_embedding_is_the_mean_over_the_images_own_captions(easy, targets, small_clip):
    for row in (0, 5, len(targets.nsd_id) - 1):
        captions = easy.store.captions[int(targets.nsd_id[row])]
        one_by_one = np.stack([small_clip.captions([caption])[0] for caption in captions]).mean(axis=0)
        assert np.allclose(targets.text[row], one_by_one / np.linalg.norm(one_by_one), atol=1e-5)


def test_a_picture_embedding_does_not_depend_on_its_batch(easy, targets, small_clip):
    for row in (0, 7):
        alone = small_clip.pictures(easy.store.pictures([int(targets.nsd_id[row])]))[0]
        assert np.allclose(targets.image[row], alone, atol=1e-5)


def test_targets_in_two_parts_equal_those_in_one(easy, targets, small_clip):
    """As two processes make them: 5 images in one, the others in the other."""
    halves = make_targets(
        easy.store,
        small_clip,
        rows_of=lambda n, compute: torch.cat([compute(range(5)), compute(range(5, n))]),
    )
    for name in ("nsd_id", "image", "text"):
        assert np.allclose(getattr(halves, name), getattr(targets, name), atol=1e-5)


def test_captions_longer_than_the_context_are_cut_and_not_refused(small_clip):
    rows = small_clip.captions(["bench " * 500, ""])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_targets_come_back_as_they_were_saved(targets, tmp_path):
    save_targets(targets, tmp_path / "targets.safetensors")
    back = load_targets(tmp_path / "targets.safetensors")
    for name in ("nsd_id", "image", "text"):
        assert np.array_equal(getattr(back, name), getattr(targets, name))
    assert set(load_file(tmp_path / "targets.safetensors")) == {"nsd_id", "image", "text"}
    assert [path.name for path in tmp_path.iterdir()] == ["targets.safetensors"]


def test_rows_are_found_by_image_in_any_order():
    embeddings = np.eye(4, dtype=np.float32)
    targets = Targets(np.array([2, 5, 9, 40]), embeddings, embeddings)
    assert targets.rows(np.array([40, 2, 9, 2])).tolist() == [3, 0, 2, 0]


@pytest.fixture
def another_store(easy, tmp_path):
    """Write a file of a copy of the easy brain's store anew, and open the copy."""

    def change(file, write):
        folder = shutil.copytree(easy.store.path, tmp_path / "another")
        write(folder / file)
        manifest = read_json(folder / "manifest.json")
        owner, _, name = file.removeprefix("subjects/").rpartition("/")
        listed = manifest["subjects"][owner]["sha256"] if owner else manifest["sha256"]
        assert listed[name] != sha256_of_file(folder / file)
        listed[name] = sha256_of_file(folder / file)
        write_json(folder / "manifest.json", manifest)
        return open_store(folder)

    return change


def rewrite_table(path, **columns):
    table = pd.read_parquet(path)
    for name, change in columns.items():
        table[name] = change(table[name])
    table.to_parquet(path, index=False)


def change_array(path):
    values = np.load(path)
    values[3] = values[4]
    np.save(path, values)


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("captions.parquet", lambda path: rewrite_table(path, caption=lambda words: words + " again")),
        ("pictures.npy", change_array),
        ("stimuli.parquet", lambda path: rewrite_table(path, nsd_id=lambda number: number + 1)),
    ],
)
def test_targets_of_other_pictures_or_captions_are_refused(targets, another_store, tmp_path, file, write):
    path = tmp_path / "targets.safetensors"
    save_targets(targets, path)
    if file == "stimuli.parquet":  # captions go with the images' numbers
        other = another_store(file, lambda at: (write(at), write(at.with_name("captions.parquet"))))
    else:
        other = another_store(file, write)
    with pytest.raises(
        DataError, match=r"^.*targets\.safetensors: expected the embeddings of .*another \(.*$"
    ):
        load_targets(path, store=other)
    assert load_targets(path).sha256 == targets.sha256


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("subjects/subj01/betas.npy", change_array),
        (
            "stimuli.parquet",
            lambda path: rewrite_table(path, part=lambda part: part.replace("train", "validation")),
        ),
        ("captions.parquet", lambda path: pd.read_parquet(path).to_parquet(path, compression="gzip")),
    ],
)
def test_targets_are_those_of_every_store_of_the_same_pictures_and_captions(
    easy, targets, another_store, tmp_path, file, write
):
    path = tmp_path / "targets.safetensors"
    save_targets(targets, path)
    assert load_targets(path, store=easy.store).made_from == targets.made_from
    assert load_targets(path, store=another_store(file, write)).sha256 == targets.sha256


def test_targets_from_before_they_told_their_store_are_taken_and_have_the_same_checksum(
    easy, targets, tmp_path
):
    path = tmp_path / "targets.safetensors"
    save_file({name: getattr(targets, name) for name in ("nsd_id", "image", "text")}, path)
    old = load_targets(path, store=easy.store)
    assert (old.made_from, old.sha256) == (None, targets.sha256)


@pytest.mark.parametrize("missing", [1, 7, 41])
def test_an_image_without_an_embedding_is_named(missing):
    embeddings = np.eye(4, dtype=np.float32)
    targets = Targets(np.array([2, 5, 9, 40]), embeddings, embeddings)
    with pytest.raises(DataError, match=rf"embedding of image {missing}, found none \(1 missing\)"):
        targets.rows(np.array([5, missing]))


def test_targets_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.safetensors: expected the embeddings of pictures"):
        load_targets(tmp_path / "none.safetensors")


def test_a_folder_without_a_clip_is_named(tmp_path):
    with pytest.raises(ConfigError, match="CLIPModel"):
        load_clip(tmp_path)


def test_a_damaged_file_of_targets_is_one_named_error(targets, tmp_path):
    path = tmp_path / "targets.safetensors"
    save_targets(targets, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"targets\.safetensors"):
        load_targets(path)


def test_a_file_of_other_arrays_is_one_named_error(tmp_path):
    save_file({"weights": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="tensors weights"):
        load_targets(tmp_path / "model.safetensors")


def test_weights_of_a_clip_that_are_a_pointer_are_named(small_clip_folder, tmp_path):
    shutil.copytree(small_clip_folder, tmp_path / "clip")
    (tmp_path / "clip/model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"model\.safetensors: .*git lfs pull"):
        load_clip(tmp_path / "clip")
