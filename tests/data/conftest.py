"""A miniature NSD release, written with h5py, nibabel and scipy alone: the oracle of the reader's tests."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import Split
from bitllm.data.store import Store, open_store

SHAPES = {"subj01": (5, 7, 4), "subj02": (6, 5, 3), "subj03": (4, 6, 5)}
N_SESSIONS = {"subj01": 3, "subj02": 3, "subj03": 2}
RUN_LENGTHS = (7, 5)
N_PICTURES, N_SHARED, N_OWN = 30, 4, 8
BETAS = "betas_fithrf_GLMdenoise_RR"
ATLASES = {"prf-visualrois": ["V1v", "V1d", "V2v"], "streams": ["early", "ventral"]}


@dataclass
class Miniature:
    """The folder of the release, and what was written into it."""

    root: Path
    shared: np.ndarray
    nsd_id: dict[str, np.ndarray]
    volumes: dict[tuple[str, int], np.ndarray]
    mask: dict[str, np.ndarray]
    mni: dict[str, np.ndarray]
    ncsnr: dict[str, np.ndarray]
    labels: dict[tuple[str, str], np.ndarray]
    captions: dict[int, list[str]]
    pictures: np.ndarray

    def session(self, subject: str, session: int, suffix: str = "hdf5") -> Path:
        folder = self.root / f"nsddata_betas/ppdata/{subject}/func1pt8mm/{BETAS}"
        return folder / f"betas_session{session:02d}.{suffix}"

    def roi(self, subject: str, name: str = "nsdgeneral") -> Path:
        return self.root / f"nsddata/ppdata/{subject}/func1pt8mm/roi/{name}.nii.gz"

    @property
    def design(self) -> Path:
        return self.root / "nsddata/experiments/nsd/nsd_expdesign.mat"

    def responses(self, subject: str) -> Path:
        return self.root / f"nsddata/ppdata/{subject}/behav/responses.tsv"

    @property
    def stimulus_table(self) -> Path:
        return self.root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"

    def annotations(self, split: str = "train2017") -> Path:
        return self.root / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json"

    @property
    def stimuli(self) -> Path:
        return self.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

    def transform(self, subject: str) -> Path:
        return self.root / f"nsddata/ppdata/{subject}/transforms/MNI-to-func1pt8.nii.gz"

    def table(self, atlas: str, owner: str) -> Path:
        return self.root / f"nsddata/freesurfer/{owner}/label/{atlas}.mgz.ctab"


def write_volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.8, 1.8, 1.8, 1.0])), path)


def write_hdf5_betas(path: Path, volume: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        chunks = (volume.shape[3], 1, 1, 1)
        file.create_dataset("betas", data=volume.transpose(3, 2, 1, 0), chunks=chunks)


def _write_design(mini: Miniature, ordering: np.ndarray, subject_images: np.ndarray) -> None:
    stimpattern = np.zeros((3, len(RUN_LENGTHS), 9), np.uint8)
    for run, length in enumerate(RUN_LENGTHS):
        stimpattern[:, run, :length] = 1
    mini.design.parent.mkdir(parents=True)
    content = {
        "masterordering": ordering[None] + 1.0,
        "subjectim": subject_images + 1.0,
        "sharedix": np.sort(mini.shared)[None] + 1.0,
        "stimpattern": stimpattern,
    }
    scipy.io.savemat(mini.design, content)


def _write_responses(mini: Miniature, subject: str, ordering: np.ndarray) -> None:
    rows = [(s, r + 1, t + 1) for s in (1, 2, 3) for r, n in enumerate(RUN_LENGTHS) for t in range(n)]
    table = pd.DataFrame(rows, columns=["SESSION", "RUN", "TRIAL"])
    table.insert(0, "SUBJECT", int(subject[-2:]))
    table["73KID"], table["10KID"] = mini.nsd_id[subject] + 1, ordering + 1
    table["RT"] = np.nan
    table = table[table["SESSION"] <= N_SESSIONS[subject]]
    mini.responses(subject).parent.mkdir(parents=True)
    table.to_csv(mini.responses(subject), sep="\t", index=False)


def _write_subject(mini: Miniature, subject: str, rng: np.random.Generator) -> None:
    shape = SHAPES[subject]
    mini.mask[subject] = rng.random(shape) < 0.4
    labelled = np.where(mini.mask[subject], 1.0, rng.choice([-1.0, 0.0], shape))
    write_volume(mini.roi(subject), labelled)
    write_volume(mini.roi(subject, "lh.nsdgeneral"), labelled)
    write_volume(mini.roi(subject).parents[1] / "brainmask.nii.gz", np.ones(shape))
    for atlas, names in ATLASES.items():
        mini.labels[subject, atlas] = rng.integers(-1, len(names) + 1, shape).astype(float)
        write_volume(mini.roi(subject, atlas), mini.labels[subject, atlas])
    mini.mni[subject] = rng.uniform(1, 180, (*shape, 3)).astype(np.float32)
    write_volume(mini.transform(subject), mini.mni[subject])
    mini.ncsnr[subject] = rng.uniform(0, 1, shape).astype(np.float32)
    mini.ncsnr[subject][np.unravel_index(mini.mask[subject].argmax(), shape)] = np.nan
    write_volume(mini.session(subject, 1).with_name("ncsnr.nii.gz"), mini.ncsnr[subject])
    for session in range(1, N_SESSIONS[subject] + 1):
        volume = rng.integers(-900, 900, (*shape, sum(RUN_LENGTHS))).astype(np.int16)
        if session == 1:  # the mask's last voxel is out of view in this session
            volume[tuple(np.argwhere(mini.mask[subject])[-1])] = 0
        mini.volumes[subject, session] = volume
        write_hdf5_betas(mini.session(subject, session), volume)
        write_volume(
            mini.session(subject, session).with_name(f"R2_session{session:02d}.nii.gz"), np.ones(shape)
        )


def _write_stimuli(mini: Miniature) -> None:
    coco = 1000 + 7 * np.arange(N_PICTURES)[::-1]
    split = np.where(np.arange(N_PICTURES) % 3 == 0, "val2017", "train2017")
    shared = np.isin(np.arange(N_PICTURES), mini.shared)
    table = pd.DataFrame(
        {"cocoId": coco, "cocoSplit": split, "nsdId": range(N_PICTURES), "shared1000": shared}
    )
    table.to_csv(mini.stimulus_table)
    mini.annotations().parent.mkdir(parents=True)
    for name in ("train2017", "val2017"):
        images = np.flatnonzero(split == name).tolist()
        rounds = [[(n, f"caption {r} of {n}") for n in images if r < 5 or n % 4 == 0] for r in range(6)]
        rows = [row for one_round in rounds for row in one_round]
        annotations = [{"image_id": int(coco[n]), "id": 1, "caption": f" {c}\n"} for n, c in rows]
        mini.annotations(name).write_text(json.dumps({"images": [], "annotations": annotations}))
        for n, caption in rows:
            mini.captions.setdefault(n, []).append(caption)
    with h5py.File(mini.stimuli, "w") as file:
        file.create_dataset("imgBrick", data=mini.pictures)


def _write_tables(mini: Miniature) -> None:
    for atlas, names in ATLASES.items():
        for owner in ["fsaverage"] if atlas == "streams" else list(SHAPES):
            lines = ["0 Unknown", *(f"{number} {name}\t" for number, name in enumerate(names, 1))]
            mini.table(atlas, owner).parent.mkdir(parents=True, exist_ok=True)
            mini.table(atlas, owner).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def written_release(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """The release as written, for tests that only read."""
    rng = np.random.default_rng(5)
    ids = rng.permutation(N_PICTURES)
    shared = ids[:N_SHARED]
    own = ids[N_SHARED : N_SHARED + 3 * N_OWN].reshape(3, N_OWN)
    subject_images = np.hstack([np.tile(shared, (3, 1)), own])
    ordering = rng.permutation(np.repeat(np.arange(N_SHARED + N_OWN), 3))
    nsd_id = {subject: subject_images[row][ordering] for row, subject in enumerate(SHAPES)}
    pictures = rng.integers(0, 256, (N_PICTURES, 6, 5, 3)).astype(np.uint8)
    root = tmp_path_factory.mktemp("nsd")
    mini = Miniature(root, shared, nsd_id, {}, {}, {}, {}, {}, {}, pictures)
    _write_design(mini, ordering, subject_images)
    for subject in SHAPES:
        _write_responses(mini, subject, ordering)
        _write_subject(mini, subject, rng)
    _write_stimuli(mini)
    _write_tables(mini)
    return mini


@pytest.fixture
def release(written_release: Miniature, tmp_path: Path) -> Miniature:
    """A copy of the release that a test may damage."""
    root = tmp_path / "nsd"
    shutil.copytree(written_release.root, root)
    return Miniature(**{**vars(written_release), "root": root})


@pytest.fixture(scope="session")
def store(written_release: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The prepared store of the release, for tests that only read."""
    out = tmp_path_factory.mktemp("prepared") / "store"
    prepare_nsd(written_release.root, out, validation_fraction=0.3, seed=2)
    return open_store(out)


@pytest.fixture
def copied_store(store: Store, tmp_path: Path) -> Path:
    """A copy of the prepared store that a test may damage."""
    return Path(shutil.copytree(store.path, tmp_path / "store"))


@pytest.fixture(name="write_volume")
def _write_volume():
    """Write an array as NIfTI."""
    return write_volume


@pytest.fixture(name="write_hdf5_betas")
def _write_hdf5_betas():
    """Write a volume (X, Y, Z, trials) as NSD writes its betas."""
    return write_hdf5_betas


@pytest.fixture
def changed():
    """Change fields of a split, and give it the checksum of its new content."""

    def change(split: Split, **fields) -> Split:
        split = replace(split, **fields)
        content = {key: value for key, value in vars(split).items() if key != "sha256"}
        listed = {
            key: value if isinstance(value, str | int) else sorted(value)
            for key, value in content.items()
            if value is not None
        }
        text = json.dumps(listed, sort_keys=True, separators=(",", ":"))
        return replace(split, sha256=hashlib.sha256(text.encode()).hexdigest())

    return change
