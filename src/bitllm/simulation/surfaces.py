"""The simulated cortex on fsaverage: vertices that all subjects share, sampled from each volume.

NSD samples three depths of a finer volume and registers subjects by folding. Here a vertex takes the value of the
nearest cortical voxel (in MNI space) of its hemisphere, because the purpose is to test the files, not the sampling.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy.spatial import ConvexHull, KDTree

from bitllm.simulation.atlases import ATLASES, COMMON_ATLASES, atlas_labels
from bitllm.simulation.cortex import LEFT, RIGHT, Cortex, displaced, even_sphere, sheet_mm
from bitllm.simulation.parameters import SimulationConfig, stream

HEMISPHERES = {"lh": LEFT, "rh": RIGHT}

NearestVoxels = dict[str, Int[np.ndarray, " vertices"]]
"""For each hemisphere and vertex, the column of its voxel among those of the brain mask."""


def template_sphere(config: SimulationConfig) -> Float[np.ndarray, "vertices 3"]:
    """The vertices of one hemisphere as unit vectors; a finer volume has more of them."""
    return even_sphere(int(20_000 / (config.voxel_mm / 4) ** 2))


def template_mm(config: SimulationConfig, hemisphere: str) -> Float[np.ndarray, "vertices 3"]:
    """Coordinates of the vertices of a hemisphere, in mm."""
    side = -1 if HEMISPHERES[hemisphere] == LEFT else 1
    return sheet_mm(template_sphere(config), 0.0) * [side, 1, 1]


def nearest_voxels(config: SimulationConfig, cortex: Cortex) -> NearestVoxels:
    """The voxel from which each vertex is sampled."""
    of_brain = np.flatnonzero(cortex.cortical[cortex.brain])
    mm = cortex.mni_mm[cortex.cortical]
    nearest = {}
    for name, side in HEMISPHERES.items():
        here = np.flatnonzero(cortex.hemisphere == side)
        nearest[name] = of_brain[here[KDTree(mm[here]).query(template_mm(config, name))[1]]]
    return nearest


def write_template(root: Path, config: SimulationConfig) -> None:
    """Write fsaverage's white surfaces, and the labels that all subjects share."""
    sphere = template_sphere(config)
    folder = root / "nsddata" / "freesurfer" / "fsaverage"
    (folder / "surf").mkdir(parents=True, exist_ok=True)
    faces = ConvexHull(sphere).simplices.astype(np.int32)
    for name in HEMISPHERES:
        nib.freesurfer.write_geometry(folder / "surf" / f"{name}.white", template_mm(config, name), faces)
        for atlas in sorted(COMMON_ATLASES):
            _write_mgh(folder / "label" / f"{name}.{atlas}.mgz", atlas_labels(atlas, sphere))


def write_native_labels(root: Path, config: SimulationConfig, subject: int, *, seed: int) -> None:
    """Write the other labels as NSD does: on the subject's own surface, with the map from there to fsaverage.

    The subject's own surface has its own number and order of vertices; its functional areas are displaced by the
    misalignment.
    """
    template = template_sphere(config)
    rng = stream(seed, "native surface", subject)
    native = rng.permutation(even_sphere(int(1.2 * len(template)) + 7 * subject))
    places = displaced(native, config.misalignment_mm, stream(seed, "misalignment", subject))
    name = config.subjects[subject]
    transforms = root / "nsddata" / "ppdata" / name / "transforms"
    vertex = KDTree(native).query(template)[1] + 1  # NSD's count from 1
    for hemisphere in HEMISPHERES:
        _write_mgh(transforms / f"{hemisphere}.white-to-fsaverage.mgz", vertex)
        for atlas in sorted(ATLASES.keys() - COMMON_ATLASES):
            path = root / "nsddata" / "freesurfer" / name / "label" / f"{hemisphere}.{atlas}.mgz"
            _write_mgh(path, atlas_labels(atlas, places))


def write_betas(
    folder: Path,
    session: int,
    percent: Float[np.ndarray, "trials brain"],
    in_view: Bool[np.ndarray, " brain"],
    nearest: NearestVoxels,
) -> None:
    """Write one session (1-based): float32 in percent signal change, NaN where the voxel is out of view."""
    for hemisphere, voxel in nearest.items():
        values = np.where(in_view[voxel], percent[:, voxel], np.nan)
        _write_mgh(folder / f"{hemisphere}.betas_session{session:02d}.mgh", values.T)


def write_ncsnr(folder: Path, ncsnr: Float[np.ndarray, " brain"], nearest: NearestVoxels) -> None:
    """Write the noise-ceiling signal-to-noise ratio of every vertex."""
    for hemisphere, voxel in nearest.items():
        _write_mgh(folder / f"{hemisphere}.ncsnr.mgh", ncsnr[voxel])


def _write_mgh(path: Path, values: Num[np.ndarray, "vertices *trials"]) -> None:
    """Write like NSD: vertices along the first of three axes, trials along the fourth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.float32 if values.dtype.kind == "f" else np.int32
    shaped = values.reshape(len(values), 1, 1, *values.shape[1:]).astype(dtype)
    nib.save(nib.MGHImage(shaped, np.eye(4)), path)
