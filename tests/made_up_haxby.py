"""A made-up folder in the layouts of Haxby et al. 2001, with a known signal, for tests."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

CATEGORIES = ("bottle", "cat", "chair", "face", "house", "scissors", "scrambledpix", "shoe")
AFFINE = np.array([[-3.5, 0, 0, 68.25], [0, 3.75, 0, -50.0], [0, 0, 3.75, -40.0], [0, 0, 0, 1.0]])
SHAPE = (5, 6, 4)
REST, BLOCK = 3, 4
"""Volumes of a pause and of a block."""


@dataclass(frozen=True)
class MadeUp:
    """A folder and what was put into it."""

    folder: Path
    series: np.ndarray
    """Values of all voxels [x, y, z, volumes], as stored."""
    mask: np.ndarray
    labels: list[str]
    runs: list[int]

    def replace_labels(self, old: str, new: str, count: int = -1) -> None:
        """Change the text of the labels."""
        path = next(self.folder.rglob("labels.txt"))
        path.write_text(path.read_text().replace(old, new, count))


def make_up(
    folder: Path,
    *,
    n_runs: int = 4,
    categories: tuple[str, ...] = CATEGORIES,
    strength: float = 60.0,
    is_slice: bool = False,
    seed: int = 0,
) -> MadeUp:
    """Write ``subj1`` in nilearn's layout, or one slice in PyMVPA's: patterns of categories, drift and noise."""
    rng = np.random.default_rng(seed)
    shape = (*SHAPE[:2], 1) if is_slice else SHAPE
    patterns = {name: rng.standard_normal(shape) for name in categories}
    labels, runs, values = [], [], []
    for run in range(n_runs):
        own = ["rest"] * REST
        for name in rng.permutation(categories).tolist():
            own += [name] * BLOCK + ["rest"] * REST
        for time, _ in enumerate(own):
            shown = own[max(0, time - 2)]  # the response is two volumes late
            signal = strength * patterns[shown] if shown != "rest" else 0.0
            values.append(1000 + 5 * time * (run + 1) + signal + 8 * rng.standard_normal(shape))
        labels += own
        runs += [run] * len(own)
    series = np.stack(values, axis=-1).round().astype(np.int16)
    mask = np.zeros(shape, bool)
    mask[1:4, 1:5] = True
    place = folder if is_slice else folder / "subj1"
    place.mkdir(parents=True)
    if is_slice:
        series[~mask] = 0
    rows = [f"{label} {run}" for label, run in zip(labels, runs, strict=True)]
    name, heading = ("attributes_literal.txt", []) if is_slice else ("labels.txt", ["labels chunks"])
    (place / name).write_text("\n".join([*heading, *rows]) + "\n")
    write_volume(place / "bold.nii.gz", series)
    if not is_slice:
        write_volume(place / "mask4_vt.nii.gz", mask.astype(np.int16))
    return MadeUp(folder, series, mask, labels, runs)


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write a NIfTI volume or series with both codes set to scanner."""
    image = nib.Nifti1Image(values, affine)
    image.header.set_sform(affine, code=1)
    image.header.set_qform(affine, code=1)
    nib.save(image, path)
