"""Small datasets, written exactly as the formats' specifications say, with the source arrays kept."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from bitllm.data.formats.sidecar import ParsedDataset
from bitllm.data.store import Store, open_store
from bitllm.data.store.write import write_store

N_VOXELS, N_IMAGES = 7, 12


@dataclass
class Source:
    """A dataset on disk and what was put into it."""

    root: Path
    betas: np.ndarray
    nsd_id: np.ndarray
    captions: dict[int, list[str]]
    pictures: dict[int, np.ndarray]

    @property
    def captions_file(self) -> Path:
        return self.root / "captions.json"

    @property
    def voxels(self) -> Path:
        return self.root / "voxels"


def npy(values: np.ndarray) -> bytes:
    """An array as the bytes of a plain .npy file."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def png(picture: np.ndarray) -> bytes:
    """A picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return stream.getvalue()


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    """A webdataset tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"sample{number:09d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def images(root: Path, rng: np.random.Generator) -> tuple[dict[int, list[str]], dict[int, np.ndarray]]:
    """Captions (six of the image 0) and pictures of every image; the captions are written as JSON."""
    captions = {n: [f"caption {c} of {n}" for c in range(6 if n == 0 else 5)] for n in range(N_IMAGES)}
    pictures = {n: rng.integers(0, 256, (6, 5, 3)).astype(np.uint8) for n in range(N_IMAGES)}
    root.mkdir(parents=True, exist_ok=True)
    (root / "captions.json").write_text(json.dumps(captions))
    return captions, pictures


def places(root: Path, subject: str, n_voxels: int = N_VOXELS) -> None:
    """A table of places."""
    (root / "voxels").mkdir(exist_ok=True)
    mm = np.arange(3 * n_voxels).reshape(n_voxels, 3) / 2
    pd.DataFrame(mm, columns=["x_mm", "y_mm", "z_mm"]).to_csv(
        root / f"voxels/{subject}.tsv", sep="\t", index=False
    )


def mindeye_sample(nsd_id: int, rows: np.ndarray, picture: np.ndarray) -> dict[str, bytes]:
    """A sample of MindEye1: three rows, those beyond the real ones repeated."""
    padded = rows[np.arange(3) % len(rows)]
    return {
        "png": png(picture),
        "nsdgeneral.npy": npy(padded),
        "num_uniques.npy": npy(np.array([len(rows)])),
        "coco73k.npy": npy(np.array([nsd_id])),
        "trial.npy": npy(np.array([nsd_id * 3])),
    }


@pytest.fixture
def mindeye(tmp_path: Path) -> Source:
    """MindEye1's tars: images 0-7 train, 8-9 val, 10-11 test, one to three repeats, shuffled."""
    rng = np.random.default_rng(1)
    root = tmp_path / "wds"
    captions, pictures = images(root, rng)
    places(root, "subj01")
    betas, nsd_id = [], []
    for split, ids in (("train", rng.permutation(8)), ("val", [8, 9]), ("test", [11, 10])):
        samples = []
        for n in map(int, ids):
            rows = rng.standard_normal((1 + n % 3, N_VOXELS)).astype(np.float16)
            samples.append(mindeye_sample(n, rows, pictures[n]))
            betas.append(rows)
            nsd_id += [n] * len(rows)
        half = len(samples) // 2
        for number, part in enumerate((samples[:half], samples[half:])):
            write_tar(root / f"{split}/{split}_subj01_{number}.tar", part)
    return Source(root, np.concatenate(betas), np.array(nsd_id), captions, pictures)


@pytest.fixture
def mindeye2(tmp_path: Path) -> Source:
    """Two sessions of twelve trials; the shared trials (images 10, 11) are in new_test."""
    rng = np.random.default_rng(3)
    root = tmp_path / "me2"
    captions, pictures = images(root, rng)
    places(root, "subj01")
    betas = rng.standard_normal((24, 7)).astype(np.float32)
    write_h5(root / "betas_all_subj01_fp32_renorm.hdf5", betas=betas)
    brick = np.stack([p.transpose(2, 0, 1) / 255 for p in pictures.values()]).astype(np.float16)
    write_h5(root / "coco_images_224_float16.hdf5", images=brick)
    nsd_id = np.concatenate([rng.permutation(12), rng.permutation(12)])
    rows = np.full((24, 1, 17), np.nan)  # response times may be missing
    rows[:, 0, 0], rows[:, 0, 1], rows[:, 0, 5] = nsd_id, 1, range(24)
    rows[:, 0, 2], rows[:, 0, 3], rows[:, 0, 4] = np.repeat([1, 2], 12), 1, np.tile(range(1, 13), 2)
    rows[:, 0, 16] = nsd_id >= 10
    for session in (0, 1):
        own = [r for r in rows[session * 12 : session * 12 + 12] if not r[0, 16]]
        write_tar(root / f"wds/subj01/train/{session}.tar", [{"behav.npy": npy(r)} for r in own])
    shared = [{"behav.npy": npy(r)} for r in rows if r[0, 16]]
    write_tar(root / "wds/subj01/new_test/0.tar", shared)
    write_tar(root / "wds/subj01/test/0.tar", shared)
    return Source(root, betas, nsd_id, captions, pictures)


@pytest.fixture
def mindllm(tmp_path: Path) -> Source:
    """One group a trial, counted by COCO ids (1000 - n)."""
    rng = np.random.default_rng(4)
    root = tmp_path / "mindllm"
    captions, pictures = images(root, rng)
    (root / "pictures").mkdir()
    places(root, "subj03")
    nsd_id = np.repeat(np.arange(12), 2)
    betas = 3 + 2 * rng.standard_normal((24, 7)).astype(np.float32)
    (root / "nsd0").mkdir()
    with h5py.File(root / "nsd0/subject_3.h5", "w") as file:
        for row, n in enumerate(nsd_id):
            group = file.create_group(f"{'train' if n < 9 else 'test'}/{row:05d}")
            group["visual_voxels"], group["coco_id"], group["prev_coco_id"] = betas[row], 1000 - n, -1
    for n, picture in pictures.items():
        (root / f"pictures/{1000 - n:012d}.png").write_bytes(png(picture))
    table = "\n".join(f"{n},{1000 - n},{n >= 9}" for n in range(12))
    (root / "stimuli.csv").write_text(f"nsdId,cocoId,shared1000\n{table}\n")
    texts = [f'{{"image_id": {1000 - n}, "caption": "{c}"}}' for n, found in captions.items() for c in found]
    (root / "captions.json").write_text(f'{{"annotations": [{",".join(texts)}]}}')
    return Source(root, betas, nsd_id, captions, pictures)


@pytest.fixture
def table(tmp_path: Path) -> Source:
    """The general contract: int16 of 300 x betas in NIfTI, two sessions interleaved in no odd order."""
    rng = np.random.default_rng(2)
    root = tmp_path / "läb data"
    captions, pictures = images(root, rng)
    mask = rng.random((4, 3, 5)) < 0.5
    stored = rng.integers(-900, 900, (4, 3, 5, 24)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), root / "mask.nii.gz")
    nib.save(nib.Nifti1Image(stored, affine), root / "betas.nii.gz")
    (root / "pictures").mkdir()
    for n, picture in pictures.items():
        (root / f"pictures/{n}.png").write_bytes(png(picture))
    nsd_id = np.concatenate([rng.permutation(N_IMAGES), rng.permutation(N_IMAGES)])
    trials = pd.DataFrame({"trial_row": range(24), "subject": "s1", "session": np.repeat([1, 2], 12)})
    trials["run"], trials["stimulus_id"] = 1, nsd_id
    trials["split"] = np.where(nsd_id < 8, "train", np.where(nsd_id < 10, "val", "test"))
    trials.to_csv(root / "trials.tsv", sep="\t", index=False)
    header = {
        "subjects": {"s1": {"betas": "betas.nii.gz", "mask": "mask.nii.gz"}},
        "trials": "trials.tsv",
        "captions": "captions.json",
        "pictures": "pictures",
        "scale": 1 / 300,
        "axis_order": "xyz-trials",
        "already_zscored": False,
        "space": "T1w",
    }
    (root / "header.yaml").write_text(yaml.safe_dump(header))
    return Source(root, stored[mask].T / 300, nsd_id, captions, pictures)


@pytest.fixture
def stored(table: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole numbers in the lab's NIfTI: volume, mask, and trials x voxels."""
    volume = np.asanyarray(nib.load(table.root / "betas.nii.gz").dataobj)
    mask = np.asanyarray(nib.load(table.root / "mask.nii.gz").dataobj) > 0
    return volume, mask, volume[mask].T


@pytest.fixture(name="change_header")
def _change_header(table: Source):
    """Change keys of the header file."""

    def change(**keys) -> Path:
        path = table.root / "header.yaml"
        subject = {key: keys.pop(key) for key in ("betas", "mask", "voxels", "key") if key in keys}
        header = yaml.safe_load(path.read_text()) | keys
        header["subjects"]["s1"] = {
            k: v for k, v in (header["subjects"]["s1"] | subject).items() if v is not None
        }
        path.write_text(yaml.safe_dump(header))
        return path

    return change


@pytest.fixture(name="prepared")
def _prepared(tmp_path: Path):
    """Write the store of a reading and open it."""

    def prepare(reading: ParsedDataset, name: str = "store") -> Store:
        write_store(tmp_path / name, reading.contents, reading.settings)
        return open_store(tmp_path / name)

    return prepare


@pytest.fixture(name="require_equal")
def _require_equal():
    """Compare a store with the source arrays: trial order, betas, captions, pictures."""

    def require(store: Store, subject: str, source: Source, betas: np.ndarray) -> None:
        data = store.subject(subject)
        assert data.trials["nsd_id"].tolist() == source.nsd_id.tolist()
        np.testing.assert_allclose(np.asarray(data.betas), betas, rtol=1e-3, atol=1e-6)
        seen = sorted(set(source.nsd_id.tolist()))
        assert {n: list(store.captions[n]) for n in seen} == {n: source.captions[n] for n in seen}
        np.testing.assert_array_equal(store.pictures(seen), np.stack([source.pictures[n] for n in seen]))

    return require


def write_h5(path: Path, **datasets: np.ndarray) -> None:
    """HDF5 with some datasets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values


@pytest.fixture
def make() -> SimpleNamespace:
    """The functions that write files, for tests that write their own."""
    functions = (npy, png, write_tar, images, places, mindeye_sample, write_h5)
    return SimpleNamespace(**{function.__name__: function for function in functions}, source=Source)
