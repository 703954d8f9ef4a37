"""Volumes in NSD's conventions: orientation, units, label numbers, headers."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from bitllm.simulation import SimulationConfig, simulate_release
from bitllm.simulation.atlases import ATLASES
from bitllm.simulation.volumes import write_betas_hdf5, write_betas_nifti, write_nifti


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_hdf5_reversed_equals_nifti(tmp_path: Path, rng: np.random.Generator) -> None:
    brain = rng.random((4, 6, 5)) < 0.5
    betas = rng.integers(-32768, 32768, (7, brain.sum())).astype(np.int16)
    write_betas_hdf5(tmp_path / "b.hdf5", betas, brain)
    write_betas_nifti(tmp_path / "b.nii.gz", betas, brain, 6.0)
    with h5py.File(tmp_path / "b.hdf5") as file:
        stored = file["betas"]
        assert stored.shape == (7, 5, 6, 4) and stored.dtype == np.int16 and stored.chunks == (7, 1, 1, 1)
        volume = read(tmp_path / "b.nii.gz")
        np.testing.assert_array_equal(stored[()].transpose(3, 2, 1, 0), volume)
    np.testing.assert_array_equal(volume[brain].T, betas)
    assert not volume[~brain].any()


def test_both_formats_of_one_seed_hold_the_same_betas(
    release: Path, config: SimulationConfig, tmp_path: Path
) -> None:
    small = config.model_copy(update={"sessions": (4,)})
    for betas_format in ("hdf5", "nifti"):
        simulate_release(tmp_path / betas_format, small, seed=1, betas_format=betas_format)
    name = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session02"
    with h5py.File(tmp_path / f"hdf5/{name}.hdf5") as file:
        np.testing.assert_array_equal(
            file["betas"][()].transpose(3, 2, 1, 0), read(tmp_path / f"nifti/{name}.nii.gz")
        )


def test_headers_are_nsd_s_placeholders(tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii.gz", np.zeros((5, 6, 4, 3), dtype=np.int16), 1.8)
    image = nib.load(tmp_path / "v.nii.gz")
    assert image.get_data_dtype() == np.int16 and nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.dataobj.slope == 1 and np.isnan(image.header["scl_slope"])
    np.testing.assert_allclose(image.header["pixdim"][1:5], [1.8, 1.8, 1.8, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(image.affine[:3, 3], [-3.6, -4.5, -2.7], rtol=1e-6)


@pytest.mark.parametrize("atlas", ATLASES)
def test_rois_say_minus_one_off_cortex_and_agree_between_hemispheres(release: Path, atlas: str) -> None:
    folder = release / "nsddata/ppdata/subj01/func1pt8mm"
    both, left, right = (read(folder / f"roi/{prefix}{atlas}.nii.gz") for prefix in ("", "lh.", "rh."))
    assert both.dtype == np.float64
    assert set(np.unique(both)) <= set(range(-1, len(ATLASES[atlas]) + 1)) and (both > 0).any()
    assert ((left >= 0) ^ (right >= 0) == (both >= 0)).all()
    np.testing.assert_array_equal(np.maximum(left, right), both)
    assert (read(folder / "brainmask.nii.gz")[both >= 0] == 1).all()


def test_label_tables_name_every_label_and_may_end_in_tabs(release: Path) -> None:
    lines = (release / "nsddata/freesurfer/subj02/label/floc-words.mgz.ctab").read_text().splitlines()
    assert lines[0] == "0 Unknown"
    assert [line.split(" ", 1)[1].strip() for line in lines[1:]] == list(ATLASES["floc-words"])
    assert lines[1].endswith("\t")


def test_the_transform_gives_mni_voxels_and_9999_outside_the_brain(release: Path) -> None:
    folder = release / "nsddata/ppdata/subj03"
    transform = read(folder / "transforms/MNI-to-func1pt8.nii.gz")
    brain = read(folder / "func1pt8mm/brainmask.nii.gz") == 1
    assert (transform[~brain] == 9999).all()
    inside = transform[brain]
    assert (inside >= 1).all() and (inside <= [182, 218, 182]).all()
    left = read(folder / "func1pt8mm/roi/lh.nsdgeneral.nii.gz") >= 0
    assert (91 - transform[left][:, 0] < 12).all()  # the left hemisphere is at negative x
    assert 91 - np.median(transform[left][:, 0]) < -15
    visual = read(folder / "func1pt8mm/roi/prf-visualrois.nii.gz") > 0
    assert np.median(transform[visual][:, 1]) - 127 < -60  # and visual cortex at the back


def test_valid_is_the_share_of_sessions_and_invalid_voxels_are_zero(release: Path) -> None:
    for subject in ("subj01", "subj02", "subj03"):
        valid = read(release / f"nsddata/ppdata/{subject}/func1pt8mm/valid.nii.gz")
        brain = read(release / f"nsddata/ppdata/{subject}/func1pt8mm/brainmask.nii.gz") == 1
        folder = release / f"nsddata_betas/ppdata/{subject}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
        varies = []
        for path in sorted(folder.glob("betas_session*.hdf5")):
            with h5py.File(path) as file:
                varies.append(file["betas"][()].transpose(3, 2, 1, 0).any(-1))
        np.testing.assert_allclose(np.mean(varies, axis=0)[brain], valid[brain])
        assert not np.any(varies, axis=0)[~brain].any()
