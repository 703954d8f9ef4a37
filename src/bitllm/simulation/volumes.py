"""Volumes, betas and label tables in the files and conventions of an NSD release."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from jaxtyping import Bool, Int16, Num

from bitllm.simulation.atlases import ATLASES, COMMON_ATLASES
from bitllm.simulation.cortex import LEFT, RIGHT, Cortex

_TR_S = 4 / 3
"""Repetition time that NSD writes into the headers of func1pt8mm."""


def write_nifti(path: Path, volume: Num[np.ndarray, "x y z *rest"], voxel_mm: float) -> None:
    """Write a volume like NSD: no scl_slope, and a placeholder affine with its origin in the center."""
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -((np.array(volume.shape[:3]) + 1) / 2 - 1) * voxel_mm
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm", "sec")
    if volume.ndim == 4:
        image.header["pixdim"][4] = _TR_S
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def write_betas_hdf5(
    path: Path, betas: Int16[np.ndarray, "trials voxels"], brain: Bool[np.ndarray, "x y z"]
) -> None:
    """Write one session as HDF5: dataset ``betas`` (trials, Z, Y, X) int16, one chunk per voxel.

    Voxels outside the brain mask are not allocated, and read as 0.
    """
    n_trials = len(betas)
    with h5py.File(path, "w") as file:
        shape = (n_trials, *brain.shape[::-1])
        dataset = file.create_dataset("betas", shape=shape, dtype="<i2", chunks=(n_trials, 1, 1, 1))
        columns = np.ascontiguousarray(betas.T.astype("<i2"))
        for (x, y, z), column in zip(np.argwhere(brain).tolist(), columns, strict=True):
            dataset.id.write_direct_chunk((0, z, y, x), column.tobytes())


def write_betas_nifti(
    path: Path, betas: Int16[np.ndarray, "trials voxels"], brain: Bool[np.ndarray, "x y z"], voxel_mm: float
) -> None:
    """Write one session as NIfTI: (X, Y, Z, trials) int16, 0 outside the brain mask."""
    volume = np.zeros((*brain.shape, len(betas)), dtype=np.int16)
    volume[brain] = betas.T
    write_nifti(path, volume, voxel_mm)


def write_anatomy(
    root: Path, subject: str, cortex: Cortex, in_view: Bool[np.ndarray, "sessions brain"]
) -> None:
    """Write masks, atlases and transform of a subject, and which voxels of the brain mask were in view."""
    folder = root / "nsddata" / "ppdata" / subject
    functional = folder / "func1pt8mm"
    write_nifti(functional / "brainmask.nii.gz", cortex.brain.astype(np.int16), cortex.voxel_mm)
    share = np.zeros(cortex.shape)
    share[cortex.brain] = in_view.mean(0)
    write_nifti(functional / "valid.nii.gz", share, cortex.voxel_mm)
    for session, seen in enumerate(in_view, start=1):
        valid = np.zeros(cortex.shape, np.int16)
        valid[cortex.brain] = seen
        write_nifti(functional / f"valid_session{session:02d}.nii.gz", valid, cortex.voxel_mm)
    for atlas in ATLASES:
        for prefix, hemisphere in (("", None), ("lh.", LEFT), ("rh.", RIGHT)):
            path = functional / "roi" / f"{prefix}{atlas}.nii.gz"
            write_nifti(path, cortex.atlas(atlas, hemisphere), cortex.voxel_mm)
    transform = cortex.mni_transform().astype(np.float32)
    write_nifti(folder / "transforms" / "MNI-to-func1pt8.nii.gz", transform, cortex.voxel_mm)
    write_label_tables(root, subject, tuple(ATLASES))


def write_label_tables(root: Path, subject: str, atlases: tuple[str, ...]) -> None:
    """Write NSD's ``.mgz.ctab`` files; as in NSD, some names end in a tab, and fsaverage has only some tables."""
    for atlas in atlases:
        lines = ["0 Unknown", *(f"{number} {name}\t" for number, name in enumerate(ATLASES[atlas], start=1))]
        for owner in (subject, "fsaverage") if atlas in COMMON_ATLASES else (subject,):
            path = root / "nsddata" / "freesurfer" / owner / "label" / f"{atlas}.mgz.ctab"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
