"""Betas in several files, axes by default, and arrays that cannot be read."""

import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bitllm.data.formats import series as series_module
from bitllm.data.formats.custom import read_custom
from bitllm.errors import DataError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def sessions(header) -> np.ndarray:
    subject = read_custom(header).contents.subjects[0]
    return np.concatenate([subject.read_session(n) for n in (1, 2)])


def test_files_of_one_session_each_follow_one_another_and_one_is_in_memory(
    table, stored, change_header, monkeypatch
):
    np.save(table.root / "a.npy", stored[2][:12])
    np.save(table.root / "b.npy", stored[2][12:])
    read = []
    flattened = series_module._flattened
    monkeypatch.setattr(
        series_module, "_flattened", lambda file, *rest: read.append(file.path.name) or flattened(file, *rest)
    )
    header = change_header(betas=["a.npy", "b.npy"], axis_order="trials-voxels")
    np.testing.assert_allclose(sessions(header), stored[2] / 300, rtol=1e-6)
    assert read == ["a.npy", "b.npy"]
    header = change_header(betas=["b.npy", "a.npy"])
    np.testing.assert_allclose(sessions(header), np.roll(stored[2], 12, axis=0) / 300, rtol=1e-6)
    with pytest.raises(DataError, match=r"b.npy: expected 24 trials, as in the trials table, found 36"):
        read_custom(change_header(betas=["a.npy", "a.npy", "b.npy"]))


def test_a_session_may_lie_across_two_files(table, stored, change_header):
    volume = stored[0]
    for name, part in (("a.nii.gz", volume[..., :5]), ("b.nii", volume[..., 5:])):
        nib.save(nib.Nifti1Image(part, AFFINE), table.root / name)
    np.testing.assert_allclose(
        sessions(change_header(betas=["a.nii.gz", "b.nii"])), stored[2] / 300, rtol=1e-6
    )


def test_surfaces_in_mgh_have_trials_last_by_default(table, stored, change_header):
    flat = stored[2].T[:, None, None].astype(np.float32) / 300
    nib.save(nib.MGHImage(flat, np.eye(4)), table.root / "lh.betas.mgh")
    header = change_header(axis_order=None, betas="lh.betas.mgh", scale=1.0)
    np.testing.assert_allclose(sessions(header), stored[2] / 300, rtol=1e-6)


def test_an_array_whose_shape_fits_one_order_alone_needs_no_axis_order(table, stored, change_header, make):
    volume, _, flat = stored
    for values in (flat, flat.T, volume, volume.transpose()):
        make.write_h5(table.root / "b.h5", betas=values)
        found = sessions(change_header(axis_order=None, betas="b.h5"))
        np.testing.assert_allclose(found, flat / 300, rtol=1e-6)


def test_an_array_that_fits_two_orders_needs_axis_order(table, change_header):
    places = pd.DataFrame(np.arange(72.0).reshape(24, 3), columns=["x_mm", "y_mm", "z_mm"])
    places.to_csv(table.root / "places.tsv", sep="\t", index=False)
    np.save(table.root / "b.npy", np.ones((24, 24), np.int16))
    with pytest.raises(DataError, match=r"b.npy: expected `axis_order`.*trials-voxels and voxels-trials"):
        read_custom(change_header(axis_order=None, betas="b.npy", mask=None, voxels="places.tsv"))


@pytest.mark.parametrize("ending", ["npy", "h5", "nii"])
def test_complex_betas_are_refused(table, stored, change_header, make, ending):
    path, values = table.root / f"b.{ending}", stored[0].astype(np.complex64)
    if ending == "npy":
        np.save(path, values)
    elif ending == "h5":
        make.write_h5(path, betas=values)
    else:
        nib.save(nib.Nifti1Image(values, AFFINE), path)
    with pytest.raises(DataError, match=rf"b.{ending}: .*complex64"):
        read_custom(change_header(betas=path.name, scale=1.0))


@pytest.mark.parametrize("ending", ["npy", "h5", "nii", "nii.gz", "mgz", "dscalar.nii"])
def test_a_git_lfs_pointer_in_place_of_betas_is_called_one(table, change_header, ending):
    (table.root / f"b.{ending}").write_bytes(POINTER)
    with pytest.raises(DataError, match=rf"b.{ending}: .*git-lfs pointer"):
        read_custom(change_header(betas=f"b.{ending}"))


def test_a_damaged_chunk_is_named_with_file_dataset_and_trials(table, stored, change_header):
    path = table.root / "b.h5"
    with h5py.File(path, "w") as file:
        chunks = (6, stored[2].shape[1])
        made = file.create_dataset("group/values", data=stored[2], chunks=chunks, fletcher32=True)
        place = made.id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 3] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"b.h5: .*`group/values`, trials 12 to 17 ") as error:
        read_custom(change_header(betas="b.h5", key="group/values", axis_order="trials-voxels"))
    assert "\n" not in str(error.value)


def test_a_filter_that_is_not_installed_is_named(table, change_header):
    with h5py.File(table.root / "b.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((6, 4))
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,))
        h5py.h5d.create(file.id, b"betas", h5py.h5t.NATIVE_INT16, h5py.h5s.create_simple((24, 4)), properties)
    with pytest.raises(DataError, match=r"b.h5: .*32001"):
        read_custom(change_header(betas="b.h5"))


def test_a_locked_hdf5_file_is_called_locked(table, stored, change_header, make):
    path = table.root / "b.h5"
    make.write_h5(path, betas=stored[2])
    hold = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=r"b.h5: .*locked"):
            read_custom(change_header(betas="b.h5"))
    finally:
        other.communicate("")


def test_two_subjects_in_spaces_of_their_own_are_noted(table, change_header):
    header = change_header(space="T1w")
    assert not any("T1w" in note for note in read_custom(header).notes)
    trials = pd.read_csv(table.root / "trials.tsv", sep="\t")
    both = pd.concat([trials, trials.assign(subject="s2")])
    both.to_csv(table.root / "trials.tsv", sep="\t", index=False)
    files = {"betas": "betas.nii.gz", "mask": "mask.nii.gz"}
    for space, is_noted in (
        ("T1w", True),
        ("space-T1w", True),
        ("unknown", True),
        ("MNI152NLin6Asym", False),
    ):
        notes = read_custom(change_header(subjects={"s1": files, "s2": files}, space=space)).notes
        assert any("several subjects" in note or "2 subjects" in note for note in notes) == is_noted
