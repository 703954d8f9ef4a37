"""ITK's transforms of points against the numbers that were written into them."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from bitllm.data.io.transforms import transform_points
from bitllm.errors import DataError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MATRIX = np.array([[1.02, 0.05, -0.03], [-0.04, 0.97, 0.02], [0.01, 0.03, 1.05]])
CENTER, SHIFT = np.array([3.0, -8.0, 12.0]), np.array([4.0, -2.0, 6.0])
SIZE, SPACING, ORIGIN = (9, 8, 7), np.array([20.0, 25.0, 30.0]), np.array([-80.0, -90.0, -70.0])
TURN = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # of the grid of the displacements
SLOPE = np.array([[0.02, 0.01, 0], [0, -0.03, 0.01], [0.01, 0, 0.02]])


@pytest.fixture(name="points")
def _points() -> np.ndarray:
    """In RAS, inside the grid of the displacements."""
    index = np.random.default_rng(0).uniform(0.5, 5.5, (50, 3))
    return (ORIGIN + index * SPACING @ TURN.T) * [-1, -1, 1]


def displaced(lps: np.ndarray) -> np.ndarray:
    """A displacement that is linear in the place, which linear interpolation returns exactly."""
    return lps + lps @ SLOPE.T + [1, 2, 3]


def write_composite(path, *kinds):
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup")
        for number, kind in enumerate(("CompositeTransform", *kinds)):
            part = group.create_group(str(number))
            part["TransformType"] = [f"{kind}_double_3_3".encode()]
            if kind.startswith("Displacement"):
                index = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), axis=-1)
                lps = ORIGIN + (index * SPACING) @ TURN.T
                vectors = displaced(lps) - lps
                part["TransformParameters"] = vectors.transpose(
                    2, 1, 0, 3
                ).ravel()  # x fastest, vectors whole
                part["TransformFixedParameters"] = np.concatenate([SIZE, ORIGIN, SPACING, TURN.ravel()])
            elif number:
                part["TransformParameters"] = np.concatenate([MATRIX.ravel(), SHIFT])
                part["TransformFixedParameters"] = CENTER


def affine_in_ras() -> np.ndarray:
    in_lps = np.eye(4)
    in_lps[:3, :3], in_lps[:3, 3] = MATRIX, SHIFT + CENTER - MATRIX @ CENTER
    return LPS @ in_lps @ LPS


def test_an_affine_maps_points_as_nibabel_does(tmp_path, points):
    numbers = " ".join(map(str, [*MATRIX.ravel(), *SHIFT])), " ".join(map(str, CENTER))
    text = "Transform: MatrixOffsetTransformBase_double_3_3\nParameters: {}\nFixedParameters: {}\n"
    (tmp_path / "x.txt").write_text("#Insight Transform File V1.0\n#Transform 0\n" + text.format(*numbers))
    write_composite(tmp_path / "x.h5", "AffineTransform")
    expected = nib.affines.apply_affine(affine_in_ras(), points)
    for name in ("x.txt", "x.h5"):
        np.testing.assert_allclose(transform_points(tmp_path / name, points), expected, atol=1e-9)


def test_the_last_transform_is_applied_first_and_points_outside_a_field_stay(tmp_path, points):
    path = tmp_path / "x.h5"
    write_composite(path, "AffineTransform", "DisplacementFieldTransform")
    flip = np.array([-1, -1, 1])
    expected = nib.affines.apply_affine(affine_in_ras(), displaced(points * flip) * flip)
    np.testing.assert_allclose(transform_points(path, points), expected, atol=1e-9)
    far = np.array([[400.0, 0, 0], [0, 0, -300]])
    np.testing.assert_allclose(transform_points(path, far), nib.affines.apply_affine(affine_in_ras(), far))


def test_other_files_are_refused_in_one_line(tmp_path, points):
    (tmp_path / "x.txt").write_text("a table")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["betas"] = [1.0]
    write_composite(tmp_path / "spline.h5", "BSplineTransform")
    write_composite(tmp_path / "cut.h5", "DisplacementFieldTransform")
    with h5py.File(tmp_path / "cut.h5", "a") as file:
        values = file["TransformGroup/1/TransformParameters"][:-3]
        del file["TransformGroup/1/TransformParameters"]
        file["TransformGroup/1/TransformParameters"] = values
    for name, fragment in (
        ("x.txt", "FixedParameters"),
        ("data.h5", "TransformGroup"),
        ("spline.h5", "found BSplineTransform"),
        ("cut.h5", "each of .9, 8, 7. voxels"),
    ):
        with pytest.raises(DataError, match=fragment):
            transform_points(tmp_path / name, points)
