"""Every volume of a subject lies on the brain mask's grid, its labels are whole, and any byte order is read."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.nsd.anatomy import read_views, read_voxel_mask, read_voxels
from bitllm.data.nsd.betas import read_session_betas
from bitllm.data.nsd.layout import NsdRelease
from bitllm.errors import DataError

SUBJECT = "subj01"
N_TRIALS = 12
FLIPPED = np.diag([-1.8, 1.8, 1.8, 1.0])
VALID = "valid_session01.nii.gz"


def valid(mini):
    return mini.roi(SUBJECT).parents[1] / VALID


def anatomy(mini):
    release = NsdRelease(mini.root)
    mask = read_voxel_mask(release, SUBJECT, "nsdgeneral")
    return read_voxels(release, SUBJECT, mask, ("streams",))[0], read_views(release, SUBJECT, mask, [1])


@pytest.mark.parametrize("which", ["nsdgeneral", "streams", "MNI-to-func1pt8", "ncsnr", "valid_session01"])
def test_a_volume_with_another_affine_than_the_brain_mask_is_named_with_both(release, write_volume, which):
    paths = {
        "nsdgeneral": release.roi(SUBJECT),
        "streams": release.roi(SUBJECT, "streams"),
        "MNI-to-func1pt8": release.transform(SUBJECT),
        "ncsnr": release.session(SUBJECT, 1).with_name("ncsnr.nii.gz"),
        "valid_session01": valid(release),
    }
    write_volume(valid(release), np.ones(release.mask[SUBJECT].shape))
    anatomy(release)
    image = nib.load(paths[which])
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), FLIPPED), paths[which])
    with pytest.raises(DataError, match=rf"{which}.nii.gz: .*\[1.8 0 0 0; .*\[-1.8 0 0 0; "):
        anatomy(release)


def test_nifti_betas_with_another_affine_are_refused_by_the_command(release, write_volume, tmp_path, capsys):
    for session in (1, 2, 3):
        path = release.session(SUBJECT, session, "nii.gz")
        affine = FLIPPED if session == 3 else np.diag([1.8, 1.8, 1.8, 1.0])
        nib.save(nib.Nifti1Image(release.volumes[SUBJECT, session], affine), path)
        release.session(SUBJECT, session).unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "nsd", str(release.root), str(tmp_path / "store"), "--subjects", SUBJECT])
    said = capsys.readouterr().err.strip()
    assert "betas_session03.nii.gz" in said and "[-1.8 0 0 0; " in said and "\n" not in said
    assert not (tmp_path / "store").exists()


def test_a_volume_that_does_not_say_where_it_lies_is_compared_by_its_shape(release):
    image = nib.Nifti1Image(release.ncsnr[SUBJECT], np.eye(4))
    image.set_sform(None, code=0)
    nib.save(image, release.session(SUBJECT, 1).with_name("ncsnr.nii.gz"))
    expected = np.nan_to_num(release.ncsnr[SUBJECT][release.mask[SUBJECT]])
    np.testing.assert_allclose(anatomy(release)[0]["ncsnr"], expected)


@pytest.mark.parametrize(("value", "match"), [(0.5, "found 0.5"), (70_000, "32767")])
def test_values_that_are_no_labels_are_refused(release, write_volume, value, match):
    write_volume(release.roi(SUBJECT, "streams"), np.full(release.mask[SUBJECT].shape, float(value)))
    with pytest.raises(DataError, match=rf"streams.nii.gz: .*{match}"):
        anatomy(release)


def test_a_damaged_chunk_of_a_session_is_named_with_its_trials(release):
    path, mask = release.session(SUBJECT, 1), release.mask[SUBJECT]
    with h5py.File(path, "w") as file:
        values = release.volumes[SUBJECT, 1].transpose(3, 2, 1, 0)
        made = file.create_dataset("betas", data=values, chunks=(6, *values.shape[1:]), fletcher32=True)
        place = made.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"betas_session01.hdf5: .*`betas`, trials 6 to 11 "):
        read_session_betas(path, mask, N_TRIALS)
