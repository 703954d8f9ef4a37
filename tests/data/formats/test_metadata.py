"""What files state about themselves (codes, attributes, brain models) is applied, compared, or noted."""

import re

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bitllm.data.formats.custom import read_custom
from bitllm.errors import DataError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def betas_of(header) -> np.ndarray:
    subject = read_custom(header).contents.subjects[0]
    return np.concatenate([subject.read_session(n) for n in (1, 2)])


def save_mask(table, *, sform: str, qform: str | None = None, qform_shift_mm: float = 0.0) -> None:
    """Rewrite the mask with NIfTI codes by name."""
    image = nib.load(table.root / "mask.nii.gz")
    made = nib.Nifti1Image(np.asanyarray(image.dataobj), AFFINE)
    made.set_sform(AFFINE, code=sform)
    moved = AFFINE.copy()
    moved[0, 3] = qform_shift_mm
    made.set_qform(None if qform is None else moved, code=0 if qform is None else qform)
    nib.save(made, table.root / "mask.nii.gz")


@pytest.mark.parametrize(
    ("space", "code", "is_noted"),
    [
        ("MNI152NLin2009cAsym", "scanner", True),
        ("MNI152NLin2009cAsym", "talairach", True),
        ("MNI152NLin2009cAsym", "mni", False),
        ("MNI152NLin2009cAsym", "aligned", False),
        ("T1w", "mni", True),
        ("T1w", "scanner", False),
        ("unknown", "mni", False),
    ],
)
def test_a_space_that_contradicts_the_code_of_the_affine_is_noted(
    table, change_header, space, code, is_noted
):
    save_mask(table, sform=code)
    notes = [note for note in read_custom(change_header(space=space)).notes if "mask.nii.gz" in note]
    assert [space in note and code in note for note in notes] == ([True] if is_noted else [])


@pytest.mark.parametrize(("shift_mm", "is_noted"), [(5e-4, False), (3.0, True)])
def test_sform_and_qform_that_disagree_are_noted_and_the_sform_is_used(table, shift_mm, is_noted):
    save_mask(table, sform="scanner", qform="scanner", qform_shift_mm=shift_mm)
    reading = read_custom(table.root / "header.yaml")
    notes = [note for note in reading.notes if "qform" in note]
    assert [("3 mm" in note, "sform is used" in note) for note in notes] == [(True, True)] * is_noted
    places = reading.contents.subjects[0].voxels
    np.testing.assert_allclose(places["x_mm"], 2.0 * places["i"], atol=1e-5)


def write_betas(table, values: np.ndarray, **attributes) -> None:
    with h5py.File(table.root / "b.h5", "w") as file:
        file.create_dataset("betas", data=values).attrs.update(attributes)


def test_scale_offset_and_missing_values_of_the_cf_conventions_are_applied(table, change_header):
    stored = np.round(table.betas * 300).astype(np.int16)
    header = change_header(betas="b.h5", axis_order="trials-voxels", scale=1.0)
    attributes = {"scale_factor": np.array([0.5], np.float32), "add_offset": 2.0, "units": "percent"}
    write_betas(table, stored, **attributes)
    np.testing.assert_array_equal(betas_of(header), stored * np.float32(0.5) + 2)
    stored[3, 1] = -999
    write_betas(table, stored, **attributes, _FillValue=np.int16(-999))
    expected = stored * np.float32(0.5) + 2
    expected[3, 1] = np.nan
    np.testing.assert_array_equal(betas_of(header), expected)
    with pytest.raises(DataError, match=r"b\.h5.*scale 0\.003"):
        read_custom(change_header(scale=1 / 300))  # scaled twice


def test_attributes_that_change_nothing_are_accepted(table, change_header):
    stored = np.round(table.betas * 300).astype(np.int16)
    write_betas(table, stored, scale=1.0, offset=0, units="percent", _FillValue=np.int16(-32768))
    header = change_header(betas="b.h5", axis_order="trials-voxels")
    np.testing.assert_allclose(betas_of(header), stored / 300, rtol=1e-6)


@pytest.mark.parametrize(
    "attribute", [{"scale": 0.01}, {"Slope": 2}, {"offset": 1.0}, {"scale_factor": [1.0, 2.0]}, {"gain": "x"}]
)
def test_an_attribute_that_may_be_a_scale_is_refused_in_one_line(table, change_header, attribute):
    write_betas(table, np.ones_like(table.betas), **attribute)
    header = change_header(betas="b.h5", axis_order="trials-voxels", scale=1.0)
    with pytest.raises(DataError, match=rf"b\.h5.*{next(iter(attribute))}") as error:
        read_custom(header)
    assert "\n" not in str(error.value)


def write_cifti(table, name: str, models: nib.cifti2.BrainModelAxis, values: np.ndarray) -> str:
    axes = (nib.cifti2.ScalarAxis([str(n) for n in range(len(values))]), models)
    nib.save(nib.Cifti2Image(values.astype(np.float32), header=axes), table.root / name)
    return name


def cortex(left: list[int], right: list[int]) -> nib.cifti2.BrainModelAxis:
    of_side = nib.cifti2.BrainModelAxis.from_surface
    return of_side(left, 20, name="CORTEX_LEFT") + of_side(right, 20, name="CORTEX_RIGHT")


def write_places(table, x_mm: np.ndarray) -> str:
    places = pd.DataFrame({"x_mm": x_mm, "y_mm": np.arange(7.0), "z_mm": 0.0})
    places.to_csv(table.root / "places.tsv", sep="\t", index=False)
    return "places.tsv"


def test_cifti_files_of_one_subject_must_have_the_same_brain_models(table, change_header):
    flat = np.arange(24 * 7).reshape(24, 7)
    names = [
        write_cifti(table, "a.dscalar.nii", cortex([0, 1, 2, 5], [0, 3, 4]), flat[:12]),
        write_cifti(table, "b.dscalar.nii", cortex([0, 1, 2, 5], [0, 3, 4]), flat[12:]),
        write_cifti(table, "c.dscalar.nii", cortex([0, 1, 2, 5], [0, 3, 7]), flat[12:]),
        write_cifti(table, "d.dscalar.nii", cortex([0, 1, 2], [0, 3, 4, 5]), flat[12:]),
    ]
    places = write_places(table, np.linspace(-3, 3, 7))
    options = {"mask": None, "voxels": places, "scale": 1.0, "axis_order": "trials-voxels"}
    np.testing.assert_array_equal(betas_of(change_header(betas=names[:2], **options)), flat)
    for other, column in ((names[2], 7), (names[3], 4)):
        with pytest.raises(DataError, match=rf"{re.escape(other)}.*{re.escape(names[0])}.*column {column}"):
            read_custom(change_header(betas=[names[0], other], **options))


def test_a_table_with_the_left_hemisphere_on_the_right_is_refused_for_cifti(table, change_header):
    betas = write_cifti(table, "a.dscalar.nii", cortex([0, 1, 2, 5], [0, 3, 4]), np.ones((24, 7)))
    places = write_places(table, np.linspace(3, -3, 7))
    header = change_header(betas=betas, mask=None, voxels=places, scale=1.0, axis_order="trials-voxels")
    with pytest.raises(DataError, match=r"places\.tsv.*1\.5 mm.*-2\.0 mm"):
        read_custom(header)


def test_pictures_of_16_bits_that_come_out_almost_black_are_noted(table):
    for name, largest in (("0", 65535), ("1", 255), ("2", 4095)):
        gray = np.linspace(0, largest, 30).astype(np.uint16).reshape(6, 5)
        Image.fromarray(gray).save(table.root / f"pictures/{name}.png")
    notes = [note for note in read_custom(table.root / "header.yaml").notes if "16-bit" in note]
    assert len(notes) == 1 and "1.png" in notes[0] and "(2 " in notes[0]
