"""A small dataset in plain files, which tests rewrite in odd but valid ways; the oracle is its arrays."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from bitllm.data.formats.custom import read_custom
from bitllm.data.store import open_store
from bitllm.data.store.write import write_store

SHAPE, N_IMAGES, SUBJECTS = (5, 4, 3), 12, ("s1", "s2")
AFFINE = np.array([[2.0, 0, 0, -4], [0, 2, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1]])
WORDS = ("dog", "cat", "sky", "sea", "car", "bus", "cup", "pen", "hat", "map", "owl", "ant")
NAMES = [f"{word} {n}" for n, word in enumerate(WORDS)]
PARTS = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
SCALE = 1 / 64
"""Whole numbers up to 900 times this are exact in float16, so the store's betas must be equal bit by bit."""


@dataclass
class Plain:
    """The folder of the dataset, and the arrays that were written into it."""

    root: Path
    whole: dict[str, np.ndarray]
    """int16 [x, y, z, trials] by subject; the betas are `SCALE` times these."""
    mask: dict[str, np.ndarray]
    shown: dict[str, np.ndarray]
    """Image of each trial."""
    pictures: np.ndarray
    names: list[str] = field(default_factory=lambda: list(NAMES))
    affine: np.ndarray = field(default_factory=AFFINE.copy)
    named: dict[str, str] = field(default_factory=lambda: {name: name for name in SUBJECTS})
    """Name of each subject in the store."""

    @property
    def header(self) -> Path:
        return self.root / "header.yaml"

    @property
    def folder(self) -> Path:
        """Of the pictures; a dataset without it has none."""
        return self.root / "pictures"

    @property
    def trials(self) -> pd.DataFrame:
        """The trials table, all of it text."""
        tables = []
        for subject, shown in self.shown.items():
            table = pd.DataFrame({"trial_row": range(len(shown)), "subject": subject})
            table["session"], table["run"] = np.repeat([1, 2], N_IMAGES), np.tile([1, 1, 1, 2, 2, 2], 4)
            table["stimulus_id"] = [self.names[n] for n in shown]
            table["split"] = [PARTS[n] for n in shown]
            tables.append(table)
        return pd.concat(tables, ignore_index=True).astype(str)

    @property
    def captions(self) -> dict[str, list[str]]:
        return {name: [f"caption {c} of {n}" for c in range(1 + n % 3)] for n, name in enumerate(self.names)}

    def betas(self, subject: str) -> np.ndarray:
        """Floats [x, y, z, trials]."""
        return self.whole[subject] * np.float32(SCALE)

    def flat(self, subject: str) -> np.ndarray:
        """Floats [trials, voxels]."""
        return self.betas(subject)[self.mask[subject]].T

    def save(self, name: str, values: np.ndarray, kind: Any = nib.Nifti1Image) -> Path:
        nib.save(kind(values, self.affine), self.root / name)
        return self.root / name

    def write(self) -> None:
        """Write everything as plainly as can be."""
        subjects = {}
        for subject in SUBJECTS:
            self.save(f"{subject}.nii.gz", self.betas(subject))
            self.save(f"{subject}-mask.nii.gz", self.mask[subject].astype(np.uint8))
            subjects[subject] = {"betas": f"{subject}.nii.gz", "mask": f"{subject}-mask.nii.gz"}
        self.folder.mkdir()
        self.write_names()
        header = {"subjects": subjects, "trials": "trials.tsv", "captions": "captions.json"}
        header |= {"pictures": "pictures", "already_zscored": False, "normalization": "none", "space": "MNI"}
        self.header.write_text(yaml.safe_dump(header))

    def write_names(self) -> None:
        """Write the files that hold names of images: trials, captions, pictures."""
        self.trials.to_csv(self.root / "trials.tsv", sep="\t", index=False)
        (self.root / "captions.json").write_text(json.dumps(self.captions))
        if self.folder.is_dir():
            for name, picture in zip(self.names, self.pictures, strict=True):
                Image.fromarray(picture).save(self.folder / f"{name}.png")

    def rename(self, *names: str) -> None:
        """Give the first images other names."""
        for path in self.folder.glob("*"):
            path.unlink()
        self.names[: len(names)] = names
        self.write_names()

    def change(self, subject: str = "", **keys: Any) -> None:
        """Change keys of the header, or of one of its subjects; `None` removes a key."""
        header = yaml.safe_load(self.header.read_text())
        part = header["subjects"][subject] if subject else header
        part.update(keys)
        for key in [key for key, value in part.items() if value is None]:
            del part[key]
        self.header.write_text(yaml.safe_dump(header))

    def require_read(self, header: Path | None = None) -> tuple[str, ...]:
        """Compare everything in the store of the files with the arrays; returns the reader's notes."""
        reading = read_custom(header or self.header)
        write_store(self.root / "store", reading.contents, reading.settings)
        store = open_store(self.root / "store")
        stimuli = store.stimuli
        name_of = stimuli.get("stimulus_name", pd.Series(stimuli.index.astype(str), stimuli.index))
        assert sorted(name_of) == sorted(self.names)
        rows = [self.names.index(name) for name in name_of]
        assert stimuli["part"].tolist() == [PARTS[n] for n in rows]
        assert [list(store.captions[n]) for n in stimuli.index] == [self.captions[name] for name in name_of]
        if self.folder.is_dir():
            np.testing.assert_array_equal(store.pictures(stimuli.index.tolist()), self.pictures[rows])
        assert set(store.subjects) == set(self.named.values())
        for subject, name in self.named.items():
            data, trials = store.subject(name), self.trials[self.trials["subject"] == subject]
            np.testing.assert_array_equal(np.asarray(data.betas), self.flat(subject))
            assert name_of.loc[data.trials["nsd_id"]].tolist() == trials["stimulus_id"].tolist()
            for column in ("session", "run"):
                assert data.trials[column].tolist() == trials[column].astype(int).tolist()
            ijk = np.argwhere(self.mask[subject])
            np.testing.assert_array_equal(data.voxels[["i", "j", "k"]], ijk)
            mm = ijk @ self.affine[:3, :3].T + self.affine[:3, 3]
            np.testing.assert_allclose(data.voxels[["x_mm", "y_mm", "z_mm"]], mm, atol=1e-4)
        return reading.notes


@pytest.fixture
def plain(tmp_path: Path) -> Plain:
    """The dataset in plain files: two subjects, 24 trials each, twelve images."""
    rng = np.random.default_rng(11)
    root = tmp_path / "data"
    root.mkdir()
    whole = {s: rng.integers(-900, 900, (*SHAPE, 2 * N_IMAGES)).astype(np.int16) for s in SUBJECTS}
    mask = {s: rng.random(SHAPE) < 0.4 for s in SUBJECTS}
    shown = {s: np.concatenate([rng.permutation(N_IMAGES) for _ in range(2)]) for s in SUBJECTS}
    pictures = rng.integers(0, 256, (N_IMAGES, 6, 5, 3)).astype(np.uint8)
    made = Plain(root, whole, mask, shown, pictures)
    made.write()
    return made
