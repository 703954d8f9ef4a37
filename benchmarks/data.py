"""How fast betas are read: one session of NSD's own size and chunks, and random rows of a store.

A session of subject 1's size (750 x 83 x 104 x 81 int16, chunks of one voxel and 750 trials) is made up in a
temporary folder, with a mask of about 15,700 voxels in a band of the volume; the outputs are checked to be
equal first. Prediction, written before measuring: reading the mask's chunks is 10 times faster than the whole
dataset (2% of the chunks, but one look-up each); the reader is within 1.3 of those chunks alone; NIfTI is
within 1.2 of unpacking it; random rows of the store are as fast as the memory map they are.

Measured part by part (2 cores shared with other work; the whole script was not yet run through): reader 0.44 s
with a peak of 0.11 GB, chunks alone 0.21 s (2.0 times, not the 1.3 predicted), NIfTI 1.02 times unpacking, store
rows at 0.89 of the memory map. Reading the dataset whole had not ended when it was stopped: no figure.

Run with ``python benchmarks/data.py``; it needs 4 GB of disk, which it frees.
"""

import gzip
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from bitllm.data.nsd.betas import read_session_betas

SHAPE, N_TRIALS, N_VOXELS = (81, 104, 83), 750, 15_724
N_ROWS = 2_000


def main() -> None:
    """Print every time and ratio as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = {**measure_hdf5(Path(folder)), **measure_nifti(Path(folder)), **measure_rows(Path(folder))}
    print(json.dumps(found, indent=2))


def measure_hdf5(folder: Path) -> dict[str, float]:
    """The reader against the whole dataset and against the mask's chunks alone."""
    path, mask = folder / "betas_session01.hdf5", a_mask()
    write_session(path)
    betas, reader = timed(lambda: read_session_betas(path, mask, N_TRIALS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    chunks = timed(lambda: read_chunks(path, mask))[1]
    whole, dataset = timed(lambda: read_whole(path))
    assert np.array_equal(whole.transpose(0, 3, 2, 1)[:, mask], betas), "the reader does not read the same"
    trial_rows = timed(lambda: read_one_voxel_chunks(path, 3))[1] / 3
    return {
        "reader_s": reader,
        "chunks_alone_s": chunks,
        "whole_dataset_s": dataset,
        "whole_by_reader": dataset / reader,
        "reader_by_chunks": reader / chunks,
        "reader_peak_gb": peak,
        "one_trial_from_hdf5_s": trial_rows,
    }


def measure_nifti(folder: Path) -> dict[str, float]:
    """The reader against unpacking the file."""
    path, mask = folder / "betas_session01.nii.gz", a_mask()
    rng = np.random.default_rng(0)
    values = rng.normal(0, 600, (*SHAPE, 60)).astype(np.int16)  # a twelfth of a session says the same
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    unpack = timed(lambda: unpacked(path))[1]
    betas, reader = timed(lambda: read_session_betas(path, mask, 60))
    assert np.array_equal(values[mask].T, betas), "the reader does not read the same"
    return {"nifti_reader_s": reader, "unpack_s": unpack, "nifti_reader_by_unpack": reader / unpack}


def measure_rows(folder: Path) -> dict[str, float]:
    """Random rows of the store's file against reading them straight from the disk's cache."""
    from bitllm.data.store import SubjectData

    path = folder / "betas.npy"
    rng = np.random.default_rng(0)
    np.save(path, rng.normal(size=(6_000, N_VOXELS)).astype(np.float16))
    rows = rng.integers(0, 6_000, N_ROWS)
    raw = np.memmap(path, np.float16, "r", 128, (6_000, N_VOXELS))
    import pandas as pd

    data = SubjectData("subj01", np.load(path, mmap_mode="r"), pd.DataFrame(), pd.DataFrame())
    timed(lambda: [np.array(raw[row]) for row in rows])
    bare = min(timed(lambda: [np.array(raw[row]) for row in rows])[1] for _ in range(3))
    store = min(timed(lambda: [np.array(data.betas[row]) for row in rows])[1] for _ in range(3))
    return {"rows_memory_map_s": bare, "rows_store_s": store, "store_rows_by_memory_map": bare / store}


def a_mask() -> np.ndarray:
    """A patch at the back of the volume, of as many voxels as subject 1's nsdgeneral."""
    i, j, k = np.indices(SHAPE)
    distance = ((i - 40) / 1.5) ** 2 + (j - 12) ** 2 + (k - 35) ** 2
    mask = np.zeros(np.prod(SHAPE), bool)
    mask[np.argsort(distance.ravel(), kind="stable")[:N_VOXELS]] = True
    return mask.reshape(SHAPE)


def write_session(path: Path) -> None:
    """A made-up session with NSD's chunks, written chunk by chunk."""
    x, y, z = SHAPE
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("betas", (N_TRIALS, z, y, x), np.int16, chunks=(N_TRIALS, 1, 1, 1))
        for plane in range(z):
            values = rng.integers(-3000, 3000, (y, x, N_TRIALS), np.int16)
            for row in range(y):
                for column in range(x):
                    made.id.write_direct_chunk((0, plane, row, column), values[row, column].tobytes())


def read_whole(path: Path) -> np.ndarray:
    """The dataset as h5py reads it."""
    with h5py.File(path) as file:
        return file["betas"][()]


def read_chunks(path: Path, mask: np.ndarray) -> int:
    """The mask's chunks and nothing else."""
    n_bytes = 0
    with h5py.File(path) as file:
        dataset = file["betas"].id
        for i, j, k in np.argwhere(mask).tolist():
            n_bytes += len(dataset.read_direct_chunk((0, k, j, i))[1])
    return n_bytes


def read_one_voxel_chunks(path: Path, n_trials: int) -> None:
    """Single trials, each of which touches every chunk."""
    with h5py.File(path) as file:
        for trial in range(n_trials):
            file["betas"][trial, 30:32]


def unpacked(path: Path) -> int:
    """Unpack a file and keep nothing."""
    n_bytes = 0
    with gzip.open(path) as file:
        while block := file.read(2**20):
            n_bytes += len(block)
    return n_bytes


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
