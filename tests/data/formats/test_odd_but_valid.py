"""Other people's formats in odd but valid files give the store of the arrays that were written."""

import io
import json
import tarfile
from collections.abc import Callable

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.data.formats.glmsingle import read_glmsingle
from bitllm.data.formats.processed import read_processed
from bitllm.data.formats.sidecar import Sidecar
from bitllm.errors import DataError

N_VOXELS = 7
NAME = "TYPED_FITHRF_GLMDENOISE_RR"


def rewritten(
    make, change: Callable[[str, bytes], tuple[str, bytes]], *, packed: bool = False, how=tarfile.PAX_FORMAT
):
    """Write every tar again, its members changed."""

    def write(source) -> None:
        for path in source.root.rglob("*.tar"):
            with tarfile.open(path) as archive:
                members = [(one.name, archive.extractfile(one).read()) for one in archive]
            with tarfile.open(path, "w:gz" if packed else "w", format=how) as archive:
                for name, content in (change(*one) for one in members):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))

    return write


def arrays(make, change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def of_member(name: str, content: bytes) -> tuple[str, bytes]:
        return (
            (name, make.npy(change(np.load(io.BytesIO(content)))))
            if name.endswith("npy")
            else (name, content)
        )

    return rewritten(make, of_member)


def big_endian(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder(">"))


TARS: dict[str, Callable] = {
    "big-endian members": lambda make: arrays(make, big_endian),
    "members in Fortran order": lambda make: arrays(make, np.asfortranarray),
    "float64 members": lambda make: arrays(make, lambda values: values.astype(np.float64)),
    "tars packed with gzip": lambda make: rewritten(make, lambda name, content: (name, content), packed=True),
    "members in a folder with an accent": lambda make: rewritten(
        make, lambda name, content: (f"./é {'x' * 120}/{name}", content), how=tarfile.GNU_FORMAT
    ),
    "endings in upper case": lambda make: rewritten(
        make, lambda name, content: (name.partition(".")[0] + "." + name.partition(".")[2].upper(), content)
    ),
}


@pytest.mark.parametrize("odd", list(TARS))
def test_odd_tars_of_mindeye_are_read_right(mindeye, make, prepared, require_equal, odd):
    TARS[odd](make)(mindeye)
    store = prepared(
        read_processed(
            "mindeye", mindeye.root, Sidecar(captions=(mindeye.captions_file,), voxels=mindeye.voxels)
        )
    )
    require_equal(store, "subj01", mindeye, mindeye.betas)


@pytest.mark.parametrize(
    ("odd", "options"),
    [
        ("big-endian members", {"compression": "gzip"}),
        ("members in Fortran order", {"dtype": ">f4"}),
        ("tars packed with gzip", {"dtype": "f8", "chunks": (5, 7)}),
    ],
)
def test_odd_files_of_mindeye2_are_read_right(mindeye2, make, prepared, require_equal, odd, options):
    with h5py.File(mindeye2.root / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file.create_dataset("betas", data=mindeye2.betas.astype(options.get("dtype", "f4")), **options)
    brick = np.stack([picture.transpose(2, 0, 1) / 255 for picture in mindeye2.pictures.values()])
    with h5py.File(mindeye2.root / "coco_images_224_float16.hdf5", "w") as file:
        file.create_dataset("images", data=brick, dtype=">f4", compression="gzip", shuffle=True)
    TARS[odd](make)(mindeye2)
    sidecar = Sidecar(captions=(mindeye2.captions_file,), voxels=mindeye2.voxels)
    store = prepared(read_processed("mindeye2", mindeye2.root, sidecar))
    require_equal(store, "subj01", mindeye2, mindeye2.betas)


ONE_TRIAL: dict[str, Callable] = {
    "rows of 1 × voxels": lambda row, coco: (row[None], np.array([coco])),
    "compressed float16": lambda row, coco: (row.astype(np.float16), np.int32(coco)),
    "big-endian": lambda row, coco: (row.astype(">f8"), np.array(coco, ">u4")),
    "ids as floats": lambda row, coco: (row, np.array([[float(coco)]])),
}


@pytest.mark.parametrize("odd", list(ONE_TRIAL))
def test_odd_trials_of_mindllm_are_read_right(mindllm, prepared, odd):
    root, nsd_id, betas = mindllm.root, mindllm.nsd_id, mindllm.betas.astype(np.float16)
    with h5py.File(root / "nsd0/subject_3.h5", "w", track_order=True) as file:
        for row in reversed(range(24)):
            values, coco = ONE_TRIAL[odd](betas[row].astype(np.float32), 1000 - nsd_id[row])
            group = file.create_group(f"{'train' if nsd_id[row] < 9 else 'test'}/{row:05d}")
            group.create_dataset("visual_voxels", data=values, compression="gzip")
            group["coco_id"] = coco
    rows = [f"{n};{1000 - n};{int(n >= 9)}" for n in range(12)]
    (root / "stimuli.csv").write_text("\r\n".join(["nsdId;cocoId;shared1000", *rows]))
    written = {str(1000 - n): found for n, found in mindllm.captions.items()}
    mindllm.captions_file.write_text(json.dumps(written), encoding="utf-8-sig")
    files = {"captions": (mindllm.captions_file,), "voxels": mindllm.voxels}
    reading = read_processed("mindllm", root, Sidecar(**files, stimulus_table=root / "stimuli.csv"))
    np.testing.assert_array_equal(reading.contents.subjects[0].read_session(1), betas)
    store = prepared(reading)
    assert store.subject("subj03").trials["nsd_id"].tolist() == nsd_id.tolist()
    assert store.captions == {n: tuple(found) for n, found in mindllm.captions.items()}


@pytest.mark.parametrize("number", [995.6, np.nan, np.inf])
def test_numbers_of_images_that_are_not_whole_are_refused(tmp_path, number):
    with h5py.File(tmp_path / "subject_3.h5", "w") as file:
        for part in ("train", "test"):
            file[f"{part}/0/visual_voxels"], file[f"{part}/0/coco_id"] = np.zeros(N_VOXELS), number
    with pytest.raises(DataError, match=rf"subject_3.h5: .*train/0.*{number:g}"):
        read_processed("mindllm", tmp_path, Sidecar())


def hdf5(name: str, **options) -> Callable:
    def write(folder, betas):
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("betasmd", data=betas, **options)
        return folder / name

    return write


def matlab(name: str, change: Callable = lambda values: values, **options) -> Callable:
    def write(folder, betas):
        scipy.io.savemat(folder / name, {"modelmd": change(betas), "R2": betas[..., 0]}, **options)
        return folder / name

    return write


def pickled(change: Callable, key: str = "betasmd") -> Callable:
    def write(folder, betas):
        np.save(folder / f"{NAME}.npy", np.array({key: change(betas), "HRFindex": [1, 2]}, dtype=object))
        return folder / f"{NAME}.npy"

    return write


GLMSINGLE: dict[str, Callable] = {
    "compressed HDF5": hdf5(f"{NAME}.hdf5", compression="gzip", shuffle=True, chunks=(2, 3, 1, 5)),
    "big-endian HDF5": hdf5(f"{NAME}.hdf5", dtype=">f8"),
    ".HDF5": hdf5(f"{NAME}.HDF5"),
    ".H5": hdf5(f"{NAME}.H5"),
    ".mat of version 5, compressed": matlab(f"{NAME}.mat", do_compression=True),
    ".MAT big-endian": matlab(f"{NAME}.MAT", big_endian),
    "pickle in Fortran order": pickled(np.asfortranarray),
    "pickle big-endian": pickled(big_endian),
    "name with spaces and an accent": hdf5("résultats (1).hdf5"),
}


@pytest.mark.parametrize("odd", list(GLMSINGLE))
def test_odd_outputs_of_glmsingle_are_read_right(tmp_path, prepared, odd):
    rng = np.random.default_rng(3)
    betas = rng.normal(1.5, 2.0, (4, 3, 2, 24)).astype(np.float32)
    mask = rng.random((4, 3, 2)) < 0.5
    nib.save(nib.Nifti2Image(np.where(mask, 1.0, np.nan), np.diag([2, 2, 2, 1])), tmp_path / "mask.NII.GZ")
    shown = np.concatenate([rng.permutation(12), rng.permutation(12)])
    table = pd.DataFrame({"trial_row": range(24), "subject": "1", "session": np.repeat([1, 2], 12), "run": 1})
    table["stimulus_id"] = [f"{n:03d}" for n in shown]
    table["split"] = np.where(shown < 8, "train", np.where(shown < 10, "val", "test"))
    table.set_index(["trial_row"]).sample(frac=1, random_state=0).to_parquet(tmp_path / "trials.parquet")
    (tmp_path / "captions.json").write_text(json.dumps({f"{n:03d}": [f"caption of {n}"] for n in range(12)}))
    files = {"trials": tmp_path / "trials.parquet", "captions": (tmp_path / "captions.json",), "subject": "1"}
    path = GLMSINGLE[odd](tmp_path, betas)
    reading = read_glmsingle(path, **files, places=tmp_path / "mask.NII.GZ", trust_pickle=True)
    subject = reading.contents.subjects[0]
    np.testing.assert_array_equal(subject.read_session(1), betas[mask].T[:12])
    np.testing.assert_array_equal(subject.read_session(2), betas[mask].T[12:])
    store = prepared(reading)
    named = store.stimuli["stimulus_name"].loc[store.subject("1").trials["nsd_id"]]
    assert named.tolist() == [f"{n:03d}" for n in shown]
