"""NSD's own files in odd but valid forms give the store of the arrays that were written."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.data.prepare import prepare_nsd
from bitllm.data.store import open_store
from bitllm.errors import DataError

SUBJECT = "subj01"
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])


def hdf5(dtype: str = "<i2", **options) -> Callable:
    """Betas of the first session with other options; the axes stay those of NSD's HDF5."""

    def write(mini) -> None:
        values = mini.volumes[SUBJECT, 1].transpose(3, 2, 1, 0)
        with h5py.File(mini.session(SUBJECT, 1), "w") as file:
            file.create_dataset("betas", data=values.astype(dtype), **options)

    return write


def nifti(ending: str, kind: type = nib.Nifti1Image, order: str = "<") -> Callable:
    """Betas of the first session as NIfTI in the place of HDF5."""

    def write(mini) -> None:
        mini.session(SUBJECT, 1).unlink()
        made = kind(mini.volumes[SUBJECT, 1], AFFINE, kind.header_class(endianness=order))
        made.set_data_dtype(np.dtype(np.int16))  # a header that is given states its own
        nib.save(made, mini.session(SUBJECT, 1, ending))

    return write


def volume(
    path: Callable, change: Callable[[np.ndarray], np.ndarray], dtype=None, kind=nib.Nifti1Image
) -> Callable:
    """A volume saved again with changed values; nibabel finds scale factors for a type that needs them."""

    def write(mini) -> None:
        values = change(nib.load(path(mini)).get_fdata())
        made = kind(values, AFFINE)
        made.set_data_dtype(dtype or values.dtype)
        nib.save(made, path(mini))

    return write


def text(path: Callable, change: Callable[[str], str], encoding: str = "utf-8") -> Callable:
    return lambda mini: path(mini).write_bytes(change(path(mini).read_text()).encode(encoding))


def stimulus_table(change: Callable[[pd.DataFrame], pd.DataFrame], **how) -> Callable:
    def write(mini) -> None:
        made = change(pd.read_csv(mini.stimulus_table, index_col=0))
        made.to_csv(mini.stimulus_table, **how)

    return write


def design(dtype: str, **how) -> Callable:
    def write(mini) -> None:
        content = {k: v for k, v in scipy.io.loadmat(mini.design).items() if not k.startswith("_")}
        content["masterordering"] = content["masterordering"].T
        content = {key: value.astype(dtype) for key, value in content.items()}
        scipy.io.savemat(mini.design, content | {"basiccnt": np.zeros((2, 2)), "note": "ä"}, **how)

    return write


def linked(mini) -> None:
    """Subject and pictures on another disk."""
    folder = mini.session(SUBJECT, 1).parents[2]
    for path, target in ((folder, "elsewhere"), (mini.stimuli, "pictures")):
        shutil.move(path, mini.root.parent / target)
        path.symlink_to(mini.root.parent / target)


def accents(mini) -> None:
    mini.root = Path(shutil.move(mini.root, mini.root.with_name("Daten für NSD (1)")))


def captions(mini) -> None:
    """A mark, escaped letters, annotations of other images and spaces in texts."""
    content = json.loads(mini.annotations().read_text())
    for one in content["annotations"]:
        one["caption"] = "\t" + one["caption"].replace(" of", "\u00a0of ")
    content["annotations"].append({"image_id": 4, "id": 0, "caption": "nobody saw it"})
    mini.annotations().write_text(json.dumps(content), encoding="utf-8-sig")


def packed_pictures(mini) -> None:
    with h5py.File(mini.stimuli, "w", libver="latest") as file:
        file.create_dataset("imgBrick", data=mini.pictures, compression="lzf", chunks=(4, 6, 5, 3))


ODD: dict[str, Callable] = {
    "big-endian HDF5 in NSD's chunks": hdf5(dtype=">i2", chunks=(12, 1, 1, 1)),
    "compressed HDF5": hdf5(chunks=(12, 1, 1, 1), compression="gzip", shuffle=True),
    "HDF5 without chunks": hdf5(),
    "big-endian HDF5 in other chunks with checksums": hdf5(dtype=">i2", chunks=(5, 2, 3, 2), fletcher32=True),
    "NIfTI betas": nifti("nii.gz"),
    "big-endian NIfTI betas": nifti("nii.gz", order=">"),
    "NIfTI-2 betas": nifti("nii.gz", nib.Nifti2Image),
    "betas in .nii": nifti("nii"),
    "float mask with NaN": volume(lambda m: m.roi(SUBJECT), lambda v: np.where(v < 0, np.nan, v)),
    "mask saved again as scaled int16": volume(lambda m: m.roi(SUBJECT), lambda v: v, np.int16),
    "atlas saved again as scaled int16": volume(lambda m: m.roi(SUBJECT, "streams"), lambda v: v, np.int16),
    "mask with a fourth axis in NIfTI-2": volume(
        lambda m: m.roi(SUBJECT), lambda v: v[..., None], np.int32, nib.Nifti2Image
    ),
    "transform as NIfTI's vectors": volume(lambda m: m.transform(SUBJECT), lambda v: v[:, :, :, None]),
    "responses with quotes, a mark and line ends of Windows": text(
        lambda m: m.responses(SUBJECT),
        lambda t: "\r\n".join('"' + row.replace("\t", '"\t"') + '"' for row in t.splitlines()) + "\r\n\r\n",
        "utf-8-sig",
    ),
    "responses with CR alone": text(lambda m: m.responses(SUBJECT), lambda t: t.replace("\n", "\r")),
    "responses of whole numbers as floats": lambda m: (
        pd.read_csv(m.responses(SUBJECT), sep="\t")
        .astype(float)
        .to_csv(m.responses(SUBJECT), sep="\t", index=False)
    ),
    "responses packed with gzip": lambda m: m.responses(SUBJECT).write_bytes(
        gzip.compress(m.responses(SUBJECT).read_bytes())
    ),
    "stimuli without an index, in another order": stimulus_table(lambda t: t[::-1], index=False),
    "stimuli with TRUE and FALSE": text(
        lambda m: m.stimulus_table, lambda t: t.replace("True", "TRUE").replace("False", "FALSE")
    ),
    "stimuli with 1 and 0 for shared images": stimulus_table(
        lambda t: t.assign(shared1000=t["shared1000"].astype(int)), sep=";"
    ),
    "design of uint16, in columns, compressed": design("uint16", do_compression=True),
    "design of MATLAB 5's floats": design("float32", long_field_names=True),
    "names of labels with colors": text(
        lambda m: m.table("prf-visualrois", SUBJECT),
        lambda t: "\r\n".join(f"  {row.strip()}\t 255 0 12 0" for row in t.splitlines()),
    ),
    "compressed pictures": packed_pictures,
    "captions with a mark and escapes": captions,
    "links to another disk": linked,
    "spaces and accents in the root": accents,
}


@pytest.mark.parametrize("odd", list(ODD))
def test_odd_files_of_nsd_are_read_right(release, tmp_path, odd):
    ODD[odd](release)
    prepare_nsd(release.root, tmp_path / "store", subjects=(SUBJECT,), normalization="none")
    store = open_store(tmp_path / "store")
    data = store.subject(SUBJECT)
    mask = release.mask[SUBJECT]
    betas = np.concatenate([release.volumes[SUBJECT, session][mask].T for session in (1, 2, 3)]) / 300
    np.testing.assert_allclose(np.asarray(data.betas), betas, rtol=2**-10)
    assert data.trials["nsd_id"].tolist() == release.nsd_id[SUBJECT][: len(betas)].tolist()
    assert data.trials["run"].tolist() == ([1] * 7 + [2] * 5) * 3
    np.testing.assert_array_equal(data.voxels[["i", "j", "k"]], np.argwhere(mask))
    mm = (release.mni[SUBJECT][mask] - np.array([91, 127, 73])) * np.array([-1, 1, 1])
    np.testing.assert_allclose(data.voxels[["x_mm", "y_mm", "z_mm"]], mm, atol=1e-4)
    for atlas in ("streams", "prf-visualrois"):
        labels = np.maximum(release.labels[SUBJECT, atlas][mask], 0)
        assert data.voxels[atlas].tolist() == labels.astype(int).tolist()
    assert store.atlases["prf-visualrois"] == {1: "V1v", 2: "V1d", 3: "V2v"}
    seen = store.stimuli.index.tolist()
    assert [list(store.captions[n]) for n in seen] == [release.captions[n] for n in seen]
    np.testing.assert_array_equal(store.pictures(seen), release.pictures[seen])
    assert store.stimuli["coco_id"].tolist() == [1000 + 7 * (29 - n) for n in seen]


def test_a_label_with_two_names_is_refused(release, tmp_path):
    table = release.table("prf-visualrois", SUBJECT)
    table.write_text(table.read_text() + "1 V1d\n")
    with pytest.raises(DataError, match=r"prf-visualrois.mgz.ctab: .*`V1v` and `V1d`"):
        prepare_nsd(release.root, tmp_path / "store", subjects=(SUBJECT,))
