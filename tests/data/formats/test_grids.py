"""What volumes say of themselves is compared before they are combined: grids, places, units, labels."""

import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bitllm.data.formats.custom import read_custom
from bitllm.errors import DataError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
FLIPPED = np.diag([-2.0, 2.0, 2.0, 1.0])
MM = ["x_mm", "y_mm", "z_mm"]


@pytest.fixture(name="mask")
def _mask(table):
    return np.asanyarray(nib.load(table.root / "mask.nii.gz").dataobj)


def test_a_flipped_mask_of_the_same_shape_is_refused_with_both_affines(table, mask):
    nib.save(nib.Nifti1Image(mask, FLIPPED), table.root / "mask.nii.gz")
    with pytest.raises(
        DataError, match=r"betas.nii.gz.*\[-2 0 0 0; 0 2 0 0; .*\[2 0 0 0; 0 2 0 0; "
    ) as error:
        read_custom(table.root / "header.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("shift_mm", "is_read"), [(5e-4, True), (2e-3, False)])
def test_grids_may_differ_by_a_thousandth_of_a_millimeter(table, mask, shift_mm, is_read):
    affine = AFFINE.copy()
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(mask, affine), table.root / "mask.nii.gz")
    if is_read:
        read_custom(table.root / "header.yaml")
    else:
        with pytest.raises(DataError, match=r"0.002"):
            read_custom(table.root / "header.yaml")


def test_a_rotation_is_measured_at_the_corners_and_not_by_its_entries(table, mask):
    angle = 5e-4  # entries differ by 0.001, the far corner by more than 0.002 mm
    affine = AFFINE.copy()
    affine[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    nib.save(nib.Nifti1Image(mask, affine), table.root / "mask.nii.gz")
    with pytest.raises(DataError, match=r"mm apart"):
        read_custom(table.root / "header.yaml")


def test_a_mask_on_another_grid_is_resampled_only_where_the_header_asks_for_it(table, mask, change_header):
    """The flipped mask, moved so that both cover the same box: its voxels come in the reverse order of x."""
    affine = FLIPPED.copy()
    affine[0, 3] = 2 * (mask.shape[0] - 1)
    nib.save(nib.Nifti1Image(mask, affine), table.root / "mask.nii.gz")
    subject = read_custom(change_header(resample_mask=True)).contents.subjects[0]
    expected = np.argwhere(mask[::-1])
    np.testing.assert_array_equal(subject.voxels[["i", "j", "k"]], expected)
    np.testing.assert_allclose(subject.voxels[MM], 2.0 * expected)
    stored = np.asanyarray(nib.load(table.root / "betas.nii.gz").dataobj)
    np.testing.assert_allclose(subject.read_session(1), stored[mask[::-1] > 0].T[:12] / 300, rtol=1e-5)
    affine[0, 3] = 900
    nib.save(nib.Nifti1Image(mask, affine), table.root / "mask.nii.gz")
    with pytest.raises(DataError, match=r"mask.nii.gz: .*found none after resampling"):
        read_custom(change_header())


def test_without_nilearn_the_package_to_install_is_named(table, change_header, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.image", None)
    with pytest.raises(DataError, match=r"bitllm\[maps\]"):
        read_custom(change_header(resample_mask=True))


def save_without_place(path, values, how: str) -> None:
    image = nib.Nifti1Image(values, AFFINE)
    if how == "codes of 0":
        image.set_sform(AFFINE, code=0)
        image.set_qform(AFFINE, code=0)
    else:
        image.set_qform(None, code=0)
        image.set_sform(np.diag([2.0, 0, 0, 1]), code=1)
    nib.save(image, path)


@pytest.mark.parametrize("how", ["codes of 0", "rows of zeros"])
def test_a_mask_that_does_not_say_where_it_lies_takes_the_places_of_the_betas(
    table, mask, change_header, how
):
    save_without_place(table.root / "mask.nii.gz", mask, how)
    voxels = read_custom(table.root / "header.yaml").contents.subjects[0].voxels
    np.testing.assert_allclose(voxels[MM], 2.0 * np.argwhere(mask))
    betas = np.asanyarray(nib.load(table.root / "betas.nii.gz").dataobj)
    np.save(table.root / "betas.npy", betas)
    with pytest.raises(DataError, match=r"mask.nii.gz: expected a header that says where the voxels lie"):
        read_custom(change_header(betas="betas.npy"))
    save_without_place(table.root / "betas.nii.gz", betas, how)
    with pytest.raises(DataError, match=r"mask.nii.gz: expected a header that says where the voxels lie"):
        read_custom(change_header(betas="betas.nii.gz"))


def test_mgh_without_its_flag_of_directions_does_not_say_where_it_lies(table, mask, change_header):
    path = table.root / "mask.mgh"
    nib.save(nib.MGHImage(mask.astype(np.int32), FLIPPED), path)
    content = bytearray(path.read_bytes())
    content[28:30] = b"\0\0"  # goodRASFlag
    path.write_bytes(content)
    voxels = read_custom(change_header(mask="mask.mgh")).contents.subjects[0].voxels
    np.testing.assert_allclose(voxels[MM], 2.0 * np.argwhere(mask))


def test_a_header_in_meters_or_micrometers_gives_places_in_millimeters(table, mask):
    expected = 2.0 * np.argwhere(mask)
    for unit, factor in (("meter", 1e-3), ("micron", 1e3)):
        affine = np.diag([2 * factor, 2 * factor, 2 * factor, 1])
        image = nib.Nifti1Image(mask, affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, table.root / "mask.nii.gz")
        voxels = read_custom(table.root / "header.yaml").contents.subjects[0].voxels
        np.testing.assert_allclose(voxels[MM], expected, rtol=1e-5)


def test_labels_saved_again_as_scaled_int16_are_rounded(table, mask):
    """-1, 0 and 1 with nibabel's own scale factors: 0 comes back as 0.0000153."""
    image = nib.Nifti1Image(
        np.where(mask > 0, 1.0, np.where(np.indices(mask.shape)[0] % 2, -1.0, 0.0)), AFFINE
    )
    image.set_data_dtype(np.int16)
    nib.save(image, table.root / "mask.nii.gz")
    stored = nib.load(table.root / "mask.nii.gz").get_fdata()
    assert (stored > 0).sum() > mask.sum()  # what comparing with 0 would have kept
    voxels = read_custom(table.root / "header.yaml").contents.subjects[0].voxels
    np.testing.assert_array_equal(voxels[["i", "j", "k"]], np.argwhere(mask))


@pytest.mark.parametrize("value", [0.37, 1.002, np.inf])
def test_a_map_of_probabilities_is_no_mask(table, mask, value):
    nib.save(nib.Nifti1Image(np.where(mask > 0, value, 0.0), AFFINE), table.root / "mask.nii.gz")
    with pytest.raises(DataError, match=rf"mask.nii.gz: .*found {value:g}"):
        read_custom(table.root / "header.yaml")


def test_cifti_of_another_volume_than_the_masks_is_refused(table, mask, change_header):
    trials = nib.cifti2.ScalarAxis([str(n) for n in range(24)])
    flat = np.ones((24, int(mask.sum())), np.float32)
    for affine, match in ((FLIPPED, r"b.dscalar.nii: .*\[-2 0 0 0"), (AFFINE, None)):
        voxels = nib.cifti2.BrainModelAxis.from_mask(mask > 0, name="thalamus_left", affine=affine)
        nib.save(nib.Cifti2Image(flat, header=(trials, voxels)), table.root / "b.dscalar.nii")
        header = change_header(betas="b.dscalar.nii", scale=1.0, axis_order="trials-voxels")
        if match is None:
            read_custom(header)
        else:
            with pytest.raises(DataError, match=match):
                read_custom(header)


def test_betas_in_several_files_must_lie_on_one_grid(table, change_header):
    betas = np.asanyarray(nib.load(table.root / "betas.nii.gz").dataobj)
    nib.save(nib.Nifti1Image(betas[..., :12], AFFINE), table.root / "a.nii")
    nib.save(nib.Nifti1Image(betas[..., 12:], FLIPPED), table.root / "b.nii")
    with pytest.raises(DataError, match=r"b.nii: .*\[-2 0 0 0"):
        read_custom(change_header(betas=["a.nii", "b.nii"]))


def test_a_table_of_places_in_another_order_than_the_mask_is_refused(table, mask, change_header):
    ijk = pd.DataFrame(np.argwhere(mask), columns=["i", "j", "k"])
    places = ijk.assign(x_mm=ijk["i"] * 2.0, y_mm=ijk["j"] * 2.0, z_mm=ijk["k"] * 2.0)
    places.to_csv(table.root / "places.tsv", sep="\t", index=False)
    header = change_header(voxels="places.tsv")
    read_custom(header)
    fortran = places.sort_values(["k", "j", "i"])
    fortran.to_csv(table.root / "places.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match=r"places.tsv: .*i, j, k"):
        read_custom(header)


def test_cifti_with_a_scale_factor_of_its_own_is_not_scaled_twice(table, mask, change_header):
    trials = nib.cifti2.ScalarAxis([str(n) for n in range(24)])
    voxels = nib.cifti2.BrainModelAxis.from_mask(mask > 0, name="thalamus_left", affine=AFFINE)
    made = nib.Cifti2Image(np.linspace(-3, 3, 24 * int(mask.sum())).reshape(24, -1), header=(trials, voxels))
    made.set_data_dtype(np.int16)  # nibabel writes a scale factor
    nib.save(made, table.root / "b.dscalar.nii")
    with pytest.raises(DataError, match=r"b.dscalar.nii: .*float64"):
        read_custom(change_header(betas="b.dscalar.nii", axis_order="trials-voxels"))
