"""Betas and masks in odd but valid files give the betas, places and trials that were written."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

S1, MASK = "s1.nii.gz", "s1-mask.nii.gz"


def write_nifti(
    path: Path,
    stored: np.ndarray,
    affine: np.ndarray,
    *,
    slope: float = 1,
    inter: float = 0,
    order: str = "<",
) -> None:
    """NIfTI by its bytes, since nibabel chooses its own scale factors."""
    header = nib.Nifti1Header(endianness=order)
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_sform(affine, code=1)
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
    header["magic"] = b"n+1"
    content = header.binaryblock + bytes(4) + stored.astype(stored.dtype.newbyteorder(order)).tobytes("F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def raw(stored: Callable, **how) -> Callable:
    """Betas of s1 as stored numbers with a scale."""
    return lambda plain: write_nifti(plain.root / S1, stored(plain), plain.affine, **how)


def image(name: str, kind: type = nib.Nifti1Image, dtype: str = "f4") -> Callable:
    """Betas of s1 in another kind of file."""

    def write(plain) -> None:
        saved = plain.save(name.lower(), plain.betas("s1").astype(dtype), kind)  # nibabel has no mixed case
        saved.rename(plain.root / name)
        plain.change("s1", betas=name)

    return write


def mask(change: Callable, name: str = MASK, kind: type = nib.Nifti1Image) -> Callable:
    def write(plain) -> None:
        plain.save(name, change(plain.mask["s1"]), kind)
        plain.change("s1", mask=name)

    return write


def array(change: Callable, *, name: str = "s1.npy", order: str = "trials-voxels", version=None) -> Callable:
    """Betas of s1 in ``.npy``; all subjects have one order of axes, so s2 gets such a file too."""

    def write(plain) -> None:
        flat = plain.flat("s1")
        with (plain.root / name).open("wb") as file:
            np.lib.format.write_array(file, change(flat.T if order == "voxels-trials" else flat), version)
        second(plain, order)
        plain.change("s1", betas=name)

    return write


def second(plain, order: str = "trials-voxels") -> None:
    flat = plain.flat("s2")
    np.save(plain.root / "s2.npy", flat.T if order == "voxels-trials" else flat)
    plain.change("s2", betas="s2.npy")
    plain.change(axis_order=order)


def hdf5(name: str = "s1.h5", *, key: str = "betas", dtype: str = "f4", file=None, **options) -> Callable:
    def write(plain) -> None:
        with h5py.File(plain.root / name, "w", **(file or {})) as opened:
            opened.create_dataset(key, data=plain.flat("s1").astype(dtype), **options)
        second(plain)
        plain.change("s1", betas=name, key=key)

    return write


def linked_hdf5(plain) -> None:
    hdf5("elsewhere.h5", key="deep/inside")(plain)
    with h5py.File(plain.root / "s1.h5", "w") as file:
        file["betas"] = h5py.ExternalLink("elsewhere.h5", "deep/inside")
    plain.change("s1", betas="s1.h5", key=None)


def virtual_hdf5(plain) -> None:
    flat = plain.flat("s1")
    layout = h5py.VirtualLayout(flat.shape, flat.dtype)
    for session in (0, 1):
        rows = slice(12 * session, 12 * session + 12)
        with h5py.File(plain.root / f"part{session}.h5", "w") as file:
            file["x"] = flat[rows]
        layout[rows] = h5py.VirtualSource(plain.root / f"part{session}.h5", "x", (12, flat.shape[1]))
    with h5py.File(plain.root / "s1.h5", "w") as file:
        file.create_virtual_dataset("betas", layout)
    second(plain)
    plain.change("s1", betas="s1.h5")


def gzip_of_several_members(plain) -> None:
    content = gzip.decompress((plain.root / S1).read_bytes())
    parts = [content[:500], content[500:3000], content[3000:]]
    (plain.root / S1).write_bytes(b"".join(map(gzip.compress, parts)))


def extension_before_the_values(plain) -> None:
    made = nib.Nifti1Image(plain.betas("s1"), plain.affine)
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made by a scanner " * 20))
    nib.save(made, plain.root / S1)


def affine_of(change: Callable[[np.ndarray], np.ndarray], code: str = "sform") -> Callable:
    """All volumes with another affine, written in one of the two ways."""

    def write(plain) -> None:
        plain.affine = change(plain.affine)
        for path in plain.root.glob("*.nii.gz"):
            made = nib.Nifti1Image(np.asanyarray(nib.load(path).dataobj), None)
            made.set_sform(plain.affine if code == "sform" else None, code=2 if code == "sform" else 0)
            made.set_qform(plain.affine if code == "qform" else None, code=1 if code == "qform" else 0)
            nib.save(made, path)

    return write


def turned(affine: np.ndarray) -> np.ndarray:
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return np.block([[turn @ affine[:3, :3], affine[:3, 3:]], [affine[3:]]])


def places_in_a_table(plain) -> None:
    ijk = np.argwhere(plain.mask["s1"])
    mm = ijk @ plain.affine[:3, :3].T + plain.affine[:3, 3]
    rows = [" z_mm;k;y_mm;j;x_mm ;i"]
    rows += [f"{z};{k}.0;{y:.6e};{j};{x};+{i}" for (i, j, k), (x, y, z) in zip(ijk, mm, strict=True)]
    (plain.root / "places.csv").write_text("\r\n".join(rows), newline="")
    plain.change("s1", voxels="places.csv")


def places_in_parquet(plain) -> None:
    """Indexed by a number of the voxel, with ceilings that are missing and columns of small types."""
    ijk = np.argwhere(plain.mask["s1"])
    made = pd.DataFrame(ijk.astype(np.int8), columns=["i", "j", "k"])
    made[["x_mm", "y_mm", "z_mm"]] = (ijk @ plain.affine[:3, :3].T + plain.affine[:3, 3]).astype(np.float32)
    made["ncsnr"] = np.where(made["i"] == 0, np.nan, 0.5)
    made.set_index(pd.Index(range(100, 100 + len(made)), name="voxel")).to_parquet(plain.root / "places.pq")
    plain.change("s1", voxels="places.pq")


def one_file_a_session(plain) -> None:
    plain.save("a.mgz", plain.betas("s1")[..., :12], nib.MGHImage)
    plain.save("b.nii", plain.betas("s1")[..., 12:], nib.Nifti2Image)
    plain.change("s1", betas=["a.mgz", "b.nii"])


def symbolic_links(plain) -> None:
    """As git-annex and DataLad leave them: a link without an ending that tells the kind."""
    for name in (S1, "s2.nii.gz", MASK, "trials.tsv", "captions.json"):
        shutil.move(plain.root / name, plain.root / f"object-{name.partition('.')[0]}")
        (plain.root / name).symlink_to(f"object-{name.partition('.')[0]}")


def linked_folder(plain) -> None:
    shutil.move(plain.root, plain.root.with_name("real"))
    plain.root.symlink_to("real")


def spaces_and_accents(plain) -> None:
    folder = plain.root / "Überprüfung 1" / "sujet é#&'%41[x]"
    folder.mkdir(parents=True)
    shutil.move(plain.root / S1, folder / "bêtas (1).nii.gz")
    plain.change("s1", betas=f"Überprüfung 1/{folder.name}/bêtas (1).nii.gz")


def absolute_paths(plain) -> None:
    plain.change("s1", betas=str(plain.root / S1), mask=str(plain.root / "pictures" / ".." / MASK))


def whole_numbers_and_a_scale(plain) -> None:
    for subject in ("s1", "s2"):
        plain.save(f"{subject}.nii.gz", plain.whole[subject])
    plain.change(scale=1 / 64)


def cifti_in_its_own_order(plain) -> None:
    """Two structures, the second half of the mask's voxels first."""
    places = np.argwhere(plain.mask["s1"])
    half = len(places) // 2
    models = [
        nib.cifti2.BrainModelAxis(
            f"CIFTI_STRUCTURE_THALAMUS_{side}", voxel=own, affine=plain.affine, volume_shape=(5, 4, 3)
        )
        for side, own in (("LEFT", places[half:]), ("RIGHT", places[:half][::-1]))
    ]
    order = [*range(half, len(places)), *range(half)[::-1]]
    trials = nib.cifti2.ScalarAxis([str(n) for n in range(24)])
    made = nib.Cifti2Image(plain.flat("s1")[:, order], (trials, models[0] + models[1]))
    nib.save(made, plain.root / "s1.dscalar.nii")
    second(plain)
    plain.change("s1", betas="s1.dscalar.nii")


ODD: dict[str, Callable] = {
    "big-endian NIfTI": raw(lambda p: p.betas("s1"), order=">"),
    "big-endian NIfTI of int16 with a scale factor": raw(lambda p: p.whole["s1"], slope=1 / 64, order=">"),
    "scale factor and intercept": raw(lambda p: p.whole["s1"] + np.int16(64), slope=1 / 64, inter=-1),
    "negative scale factor": raw(lambda p: -p.whole["s1"], slope=-1 / 64),
    "unsigned numbers with an intercept": raw(
        lambda p: (p.whole["s1"] + 900).astype(np.uint16), slope=1 / 64, inter=-900 / 64
    ),
    "scale factor 0, which means none": raw(lambda p: p.betas("s1"), slope=0, inter=5),
    "scale factor NaN": raw(lambda p: p.betas("s1"), slope=np.nan, inter=np.nan),
    "float64 betas": image(S1, dtype="f8"),
    "trials on NIfTI's fifth axis": lambda p: p.save(S1, p.betas("s1")[:, :, :, None]),
    "NIfTI-2": image(S1, nib.Nifti2Image),
    "NIfTI-2 not compressed": image("s1.nii", nib.Nifti2Image),
    ".nii for .nii.gz": image("s1.nii"),
    ".NII.GZ": image("S1.NII.GZ"),
    ".Nii": image("s1.Nii"),
    ".nii.Gz": image("s1.nii.Gz"),
    ".Mgz": image("s1.Mgz", nib.MGHImage),
    "MGH": image("s1.mgh", nib.MGHImage),
    "MGZ": image("s1.mgz", nib.MGHImage),
    ".MGZ": image("s1.MGZ", nib.MGHImage),
    "gzip of several members": gzip_of_several_members,
    "an extension of the header before the values": extension_before_the_values,
    "one file a session, each of another kind": one_file_a_session,
    "whole numbers and a scale in the header": whole_numbers_and_a_scale,
    "qform alone": affine_of(lambda a: a, "qform"),
    "left-handed voxels": affine_of(lambda a: a @ np.diag([-1, 1, 1, 1])),
    "axes in the order z, x, y": affine_of(lambda a: a[:, [2, 0, 1, 3]]),
    "an oblique slab": affine_of(turned),
    "an oblique slab by its quaternion": affine_of(turned, "qform"),
    "float mask": mask(lambda m: m.astype(np.float32)),
    "float mask with NaN outside": mask(lambda m: np.where(m, 1.0, np.nan)),
    "mask of 255": mask(lambda m: m.astype(np.uint8) * np.uint8(255)),
    "atlas of -1, 0 and labels as mask": mask(lambda m: np.where(m, 7, -1).astype(np.int16)),
    "mask with a fourth axis": mask(lambda m: m[..., None].astype(np.int16)),
    "mask in MGZ": mask(lambda m: m.astype(np.int32), "mask.mgz", nib.MGHImage),
    "mask in NIfTI-2": mask(lambda m: m.astype(np.int32), "mask.nii", nib.Nifti2Image),
    "big-endian mask": lambda p: write_nifti(
        p.root / MASK, p.mask["s1"].astype(np.int16), p.affine, order=">"
    ),
    "mask with a scale factor": lambda p: write_nifti(
        p.root / MASK, p.mask["s1"].astype(np.int16) * np.int16(1000), p.affine, slope=0.001
    ),
    "places in a table of voxels": places_in_a_table,
    "places in Parquet": places_in_parquet,
    ".npy in Fortran order": array(np.asfortranarray),
    ".npy big-endian": array(lambda v: v.astype(">f8")),
    ".npy of float16": array(lambda v: v.astype(np.float16)),
    ".NPY of version 3": array(lambda v: v, name="S1.NPY", version=(3, 0)),
    ".npy by voxels": array(lambda v: v, order="voxels-trials"),
    "HDF5 with gzip, shuffle and checksums": hdf5(compression="gzip", shuffle=True, fletcher32=True),
    "HDF5 with LZF in chunks that do not fit the shape": hdf5(compression="lzf", chunks=(7, 5)),
    "HDF5 big-endian": hdf5(dtype=">f8"),
    "HDF5 of float16": hdf5(dtype="f2"),
    "HDF5 of the newest version": hdf5(file={"libver": "latest"}),
    "HDF5 behind a block of MATLAB": hdf5(file={"userblock_size": 512}),
    "HDF5 that can grow": hdf5(maxshape=(None, None)),
    "HDF5 with a deep key": hdf5(key="a/b c/bêtas"),
    ".HDF5": hdf5("S1.HDF5"),
    "HDF5 that links to another file": linked_hdf5,
    "HDF5 put together from two files": virtual_hdf5,
    "CIFTI in its own order": cifti_in_its_own_order,
    "symbolic links": symbolic_links,
    "a folder that is a link": linked_folder,
    "spaces and accents in paths": spaces_and_accents,
    "absolute paths": absolute_paths,
}


@pytest.mark.parametrize("odd", list(ODD))
def test_odd_betas_and_masks_are_read_right(plain, odd):
    ODD[odd](plain)
    plain.require_read()


def test_the_plain_dataset_is_read_right(plain):
    assert plain.require_read() == ()
    assert yaml.safe_load(plain.header.read_text())["subjects"]["s1"]["betas"] == S1
