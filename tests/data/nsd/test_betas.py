"""Betas from both formats, in one voxel order, and files that are not what their name says."""

import h5py
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.data.nsd import betas as betas_module
from bitllm.data.nsd.betas import percent_signal_change, read_session_betas
from bitllm.errors import DataError

SUBJECT = "subj01"
N_TRIALS = 12


def read(mini, suffix: str = "hdf5") -> np.ndarray:
    return read_session_betas(mini.session(SUBJECT, 1, suffix), mini.mask[SUBJECT], N_TRIALS)


def test_percent_signal_change_is_a_300th():
    stored = np.array([[300, -150, 32767]], np.int16)
    np.testing.assert_allclose(percent_signal_change(stored), [[1.0, -0.5, 109.2233]], rtol=1e-6)


@pytest.mark.parametrize("slab_bytes", [1, 3 * 35 * 24, 2**27])
def test_voxels_come_in_c_order_of_the_mask_however_they_are_read(written_release, monkeypatch, slab_bytes):
    monkeypatch.setattr(betas_module, "_SLAB_BYTES", slab_bytes)
    volume = written_release.volumes[SUBJECT, 1]
    np.testing.assert_array_equal(read(written_release), volume[written_release.mask[SUBJECT]].T)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 5), st.integers(0, 10_000))
def test_hdf5_and_nifti_hold_the_same_for_any_shape(tmp_path_factory, shape, n_trials, seed):
    rng = np.random.default_rng(seed)
    volume = rng.integers(-(2**15), 2**15, (*shape, n_trials)).astype(np.int16)
    mask = rng.random(shape) < 0.5
    mask[tuple(rng.integers(0, shape))] = True
    folder = tmp_path_factory.mktemp("pair")
    with h5py.File(folder / "betas.hdf5", "w") as file:
        file["betas"] = volume.transpose(3, 2, 1, 0)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "betas.nii.gz")
    from_hdf5, from_nifti = (
        read_session_betas(folder / name, mask, n_trials) for name in ("betas.hdf5", "betas.nii.gz")
    )
    np.testing.assert_array_equal(from_hdf5, volume[mask].T)
    np.testing.assert_array_equal(from_nifti, from_hdf5)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_truncated_nifti_file_is_named(release, write_volume, kept):
    path = release.session(SUBJECT, 1, "nii.gz")
    write_volume(path, release.volumes[SUBJECT, 1])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = r"betas_session01.nii.gz: expected a session of betas as NIfTI, found"
    with pytest.raises(DataError, match=message):
        read(release, "nii.gz")


def test_a_trial_too_few_is_refused(release, write_volume):
    write_volume(release.session(SUBJECT, 1, "nii.gz"), release.volumes[SUBJECT, 1][..., :-1])
    with pytest.raises(DataError, match=r"expected the shape \(5, 7, 4, 12\) .* found \(5, 7, 4, 11\)"):
        read(release, "nii.gz")


@pytest.mark.parametrize("suffix", ["hdf5", "nii.gz"])
def test_floats_are_refused(release, write_volume, write_hdf5_betas, suffix):
    write = write_hdf5_betas if suffix == "hdf5" else write_volume
    write(release.session(SUBJECT, 1, suffix), release.volumes[SUBJECT, 1].astype(np.float32) / 300)
    message = r"expected int16 \(300 times the percent signal change\), found float32"
    with pytest.raises(DataError, match=message):
        read(release, suffix)


def test_a_nifti_scale_factor_is_refused(release):
    image = nib.Nifti1Image(release.volumes[SUBJECT, 1], np.eye(4))
    image.header.set_slope_inter(0.5, 0)
    nib.save(image, release.session(SUBJECT, 1, "nii.gz"))
    with pytest.raises(DataError, match="expected integers without a scale factor, found a header"):
        read(release, "nii.gz")
