"""The simulated fsaverage: vertices, labels, and betas taken from the volume's voxels."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from bitllm.files import sha256_of_file
from bitllm.simulation import SimulationConfig, simulate_release

BETAS = "nsddata_betas/ppdata/{}/{}/betas_fithrf_GLMdenoise_RR"


def read(path: Path) -> np.ndarray:
    return np.squeeze(np.asarray(nib.load(path).dataobj))


@pytest.fixture(scope="module")
def with_surface(tmp_path_factory: pytest.TempPathFactory, config: SimulationConfig) -> Path:
    out = tmp_path_factory.mktemp("surface") / "nsd"
    simulate_release(out, config, seed=1, fsaverage=True)
    return out


def test_the_surface_changes_no_other_file(release: Path, with_surface: Path) -> None:
    files = [path.relative_to(release) for path in sorted(release.rglob("*")) if path.is_file()]
    assert not any("fsaverage" in str(path) and path.suffix == ".mgh" for path in files)
    assert [f for f in files if sha256_of_file(release / f) != sha256_of_file(with_surface / f)] == []


def test_vertices_take_the_values_of_the_nearest_voxel_of_their_hemisphere(with_surface: Path) -> None:
    anatomy = with_surface / "nsddata/ppdata/subj02"
    mni = read(anatomy / "transforms/MNI-to-func1pt8.nii.gz")
    mm = np.stack([91 - mni[..., 0], mni[..., 1] - 127, mni[..., 2] - 73], -1)
    with h5py.File(with_surface / BETAS.format("subj02", "func1pt8mm") / "betas_session02.hdf5") as file:
        volume = file["betas"][()].transpose(3, 2, 1, 0) / 300
    valid = read(anatomy / "func1pt8mm/valid_session02.nii.gz")
    for side in ("lh", "rh"):
        here = np.argwhere(read(anatomy / f"func1pt8mm/roi/{side}.nsdgeneral.nii.gz") >= 0)
        places, faces = nib.freesurfer.read_geometry(
            with_surface / f"nsddata/freesurfer/fsaverage/surf/{side}.white"
        )
        distance = np.linalg.norm(places[:, None] - mm[tuple(here.T)][None], axis=-1)
        voxel = tuple(here[distance.argmin(1)].T)
        betas = read(with_surface / BETAS.format("subj02", "fsaverage") / f"{side}.betas_session02.mgh")
        seen = valid[voxel] == 1
        assert np.isnan(betas[~seen]).all()
        np.testing.assert_allclose(betas[seen], volume[voxel][seen], atol=1 / 300 / 2 + 1e-5)
        assert len(faces) == 2 * len(places) - 4  # a closed surface of triangles (Euler)
        assert (places[:, 0].mean() < 0) == (side == "lh")


def test_labels_of_the_subjects_own_surface_agree_with_the_volume_at_most_vertices(
    with_surface: Path,
) -> None:
    own = read(with_surface / "nsddata/freesurfer/subj01/label/lh.prf-visualrois.mgz")
    vertex = read(with_surface / "nsddata/ppdata/subj01/transforms/lh.white-to-fsaverage.mgz")
    assert vertex.min() >= 1 and vertex.max() <= len(own) != len(vertex)
    label = own[vertex - 1]
    folder = with_surface / "nsddata/ppdata/subj01"
    mni = read(folder / "transforms/MNI-to-func1pt8.nii.gz")
    mm = np.stack([91 - mni[..., 0], mni[..., 1] - 127, mni[..., 2] - 73], -1)
    volume = read(folder / "func1pt8mm/roi/lh.prf-visualrois.nii.gz")
    places = nib.freesurfer.read_geometry(with_surface / "nsddata/freesurfer/fsaverage/surf/lh.white")[0]
    inside = np.argwhere(volume >= 0)
    nearest = np.linalg.norm(places[:, None] - mm[tuple(inside.T)][None], axis=-1).argmin(1)
    at_voxel = volume[tuple(inside[nearest].T)]
    labelled = (label > 0) | (at_voxel > 0)
    assert (label > 0).sum() > 50
    assert np.mean((label > 0)[labelled] == (at_voxel > 0)[labelled]) > 0.6  # voxels of 16 mm
