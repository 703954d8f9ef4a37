"""Regions, labels, MNI coordinates and noise ceilings at the voxels of the mask."""

import numpy as np
import pytest

from bitllm.data.nsd.anatomy import mni_mm, read_voxel_mask, read_voxels
from bitllm.data.nsd.layout import NsdRelease
from bitllm.errors import DataError

SUBJECT = "subj01"
ATLASES = ("prf-visualrois", "streams")


def mask_of(mini, roi: str = "nsdgeneral") -> np.ndarray:
    return read_voxel_mask(NsdRelease(mini.root), SUBJECT, roi)


def voxels_of(mini, atlases=ATLASES):
    return read_voxels(NsdRelease(mini.root), SUBJECT, mini.mask[SUBJECT], atlases)


def test_the_mask_is_labels_above_zero_without_minus_one(written_release):
    np.testing.assert_array_equal(mask_of(written_release), written_release.mask[SUBJECT])
    streams = written_release.labels[SUBJECT, "streams"] > 0
    np.testing.assert_array_equal(mask_of(written_release, "streams"), streams)


def test_minus_one_inside_the_brain_is_not_in_the_mask(release, write_volume):
    labelled = np.zeros((5, 7, 4))
    labelled[1:4, 2:5, 1:3] = 1
    labelled[2, 3, 1], labelled[0, 0, 0] = -1, -1  # inside the region and outside
    write_volume(release.roi(SUBJECT), labelled)
    mask = mask_of(release)
    assert mask.sum() == 3 * 3 * 2 - 1 == (labelled != 0).sum() - 2
    assert not mask[2, 3, 1] and not mask[0, 0, 0]


def test_the_templates_origin_and_corners_in_mm():
    corners = np.array([[91.0, 127, 73], [1, 1, 1], [182, 218, 182]])
    # FSL's MNI152_T1_1mm has the affine diag(-1, 1, 1) and the offset (90, -126, -72) for 0-based voxels
    by_affine = (corners - 1) * [-1, 1, 1] + [90, -126, -72]
    np.testing.assert_array_equal(mni_mm(corners), by_affine)
    np.testing.assert_array_equal(mni_mm(corners)[0], [0, 0, 0])


def test_a_voxel_outside_the_template_takes_its_nearest_neighbours_place(release, write_volume):
    shape = (9, 9, 9)
    mask = np.ones(shape, bool)
    mni = np.stack(np.meshgrid(*[np.arange(9.0)] * 3, indexing="ij"), axis=-1)
    mni[4, 4, 8] = 9999
    write_volume(release.transform(SUBJECT), mni)
    write_volume(NsdRelease(release.root).brainmask(SUBJECT), np.ones(shape))
    write_volume(release.session(SUBJECT, 1).with_name("ncsnr.nii.gz"), np.zeros(shape))
    voxels, _ = read_voxels(NsdRelease(release.root), SUBJECT, mask, ())
    place = voxels.set_index(["i", "j", "k"])[["x_mm", "y_mm", "z_mm"]]
    neighbours = [place.loc[p].tolist() for p in ((3, 4, 8), (5, 4, 8), (4, 3, 8), (4, 5, 8), (4, 4, 7))]
    assert place.loc[4, 4, 8].tolist() in neighbours
    assert np.isfinite(place.to_numpy()).all()


@pytest.mark.parametrize("name", ["nsdgeneral", "streams"])
def test_a_region_on_another_grid_is_named_with_both_shapes(release, write_volume, name):
    write_volume(release.roi(SUBJECT, name), np.ones((7, 5, 4)))
    message = rf"{name}.nii.gz: expected the shape \(5, 7, 4\), the grid of the brain mask, found \(7, 5, 4\)"
    with pytest.raises(DataError, match=message):
        mask_of(release)
        voxels_of(release)


def test_names_with_spaces_are_whole(release):
    table = release.table("prf-visualrois", SUBJECT)
    table.write_text("0 Unknown area\n1 left V1 ventral\t\n2  area  2  0 255 0 0\n3 V3 2\n")
    names = voxels_of(release)[1]["prf-visualrois"]
    assert names == {1: "left V1 ventral", 2: "area  2", 3: "V3 2"}
