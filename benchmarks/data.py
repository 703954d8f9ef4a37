"""Speed of reading betas: one session with NSD's size and chunks, and random rows of a store.

A synthetic session of subject 1's size (750 x 83 x 104 x 81 int16, chunks of one voxel and 750 trials) is written to a
temporary folder, with a mask of 15,724 voxels at the back of the volume. For both sides of every ratio all files are in
the page cache, and the results are checked to be equal. A single trial touches the chunk of every voxel, so from HDF5
it is timed on one plane (8,424 chunks) and scaled to the mask's 15,724.

Prediction, written before measuring: the reader is 10 times faster than the whole dataset (2% of the chunks,
but one look-up each); it is within 1.3 of the mask's chunks alone; NIfTI is within 1.2 of unpacking it; random
rows of the store are as fast as the memory map they are, and 1,000 times faster than from chunks of one voxel;
the peak of memory grows by 0.1 GB over what the imports take.

Added later, and predicted before it was measured: on fsaverage (one hemisphere of a session, 163,842 vertices x
750 float32, of which 18,992 are kept) the reader takes at most 3 times as long as reading the file's bytes.

Measured on 2 cores at a load of 4 (other work; one thread of our own), 29 s in all: the reader takes 0.13 s, the
whole dataset 9.4 s (73 times as long), the mask's chunks alone 0.12 s (reader by chunks 1.09); NIfTI, of 40
trials, 1.01 of unpacking it; a row of the store 2.8 µs, 1.00 of the memory map, and 67 ms from chunks of one voxel
(24,000 times as long); a session is prepared, normalized and written in 0.62 s; fsaverage 0.05 s a hemisphere, 1.90
of reading the bytes. The peak of memory is 0.21 GB after the imports, 0.21 GB after reading a session, 0.41 GB
after preparing. The prediction was too careful for the dataset and for single trials, and too low for the memory
of preparing. Two runs before, at a load of 7: reader by chunks 1.22 and 1.28, NIfTI 0.95 and 1.04, store rows .98
and (timed one after the other, not by turns) .73 of the memory map.

Not fully comparable: the dataset is read once, the others are the best of three. The chunks alone are now also
collected in an array, to compare them; when they were only counted (an earlier, partial run, before this prediction
was completed) they took 0.21 s and the reader 0.44 s, 2.0 times as long.

Run with ``python benchmarks/data.py``; it needs 2 GB of disk, which it frees.
"""

import gzip
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd

from bitllm.data.nsd.betas import percent_signal_change, read_session_betas
from bitllm.data.nsd.surface import read_surface_betas
from bitllm.data.store import open_store
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.write import write_store

SHAPE, N_TRIALS, N_VOXELS = (81, 104, 83), 750, 15_724
N_VERTICES, N_KEPT_VERTICES = 163_842, 18_992
TIMED_PLANE = 35
N_SESSIONS, N_ROWS, N_NIFTI_TRIALS, REPEATS = 4, 2_000, 40, 3


def main() -> None:
    """Print every time and ratio as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "betas_session01.hdf5"
        _, seconds = timed(lambda: write_session(path))
        # the rows first: preparing is to have its peak of memory measured before the dataset is read whole
        found = {"made_up_in_s": seconds, **measure_rows(path, Path(folder) / "store"), **measure_hdf5(path)}
        path.unlink()
        found |= measure_nifti(Path(folder) / "betas_session01.nii.gz")
        found |= measure_surface(Path(folder) / "lh.betas_session01.mgh")
    print(json.dumps(found, indent=2))


def measure_hdf5(path: Path) -> dict[str, float]:
    """The reader against the whole dataset and against the mask's chunks alone."""
    mask = a_mask()
    betas, reader = fastest(lambda: read_session_betas(path, mask, N_TRIALS))
    columns, chunks = fastest(lambda: read_chunks(path, mask))
    assert np.array_equal(columns.T, betas), "the reader does not read what the chunks hold"
    whole, dataset = timed(lambda: read_whole(path))
    assert np.array_equal(whole.transpose(0, 3, 2, 1)[:, mask], betas), "the reader does not read the same"
    return {
        "reader_s": reader,
        "chunks_alone_s": chunks,
        "whole_dataset_s": dataset,
        "whole_by_reader": dataset / reader,
        "reader_by_chunks": reader / chunks,
    }


def measure_rows(path: Path, store: Path) -> dict[str, float]:
    """Random rows of a store against its file as a memory map, and against HDF5 with one voxel a chunk."""
    mask, before = a_mask(), peak_gb()
    read_session_betas(path, mask, N_TRIALS)
    of_reader = peak_gb()
    _, prepared = timed(lambda: prepare(path, mask, store))
    peak = peak_gb()
    betas = open_store(store).subject("subj01").betas
    raw = np.memmap(store / "subjects/subj01/betas.npy", np.float16, "r", 128, betas.shape)
    rows = np.random.default_rng(0).integers(0, len(betas), N_ROWS)
    assert np.array_equal(raw[rows], betas[rows]), "the store does not read what its file holds"
    both = [[timed(partial(read_rows, of, rows))[1] for of in (raw, betas)] for _ in range(20)]
    bare, of_store = np.min(
        both, axis=0
    ).tolist()  # by turns: milliseconds, on a machine that does other work
    plane, seconds = timed(lambda: read_one_trial(path, 7, TIMED_PLANE))
    of_chunks = seconds * N_VOXELS / plane.size
    return {
        "prepared_sessions": N_SESSIONS,
        "prepared_s_a_session": prepared / N_SESSIONS,
        "peak_gb_before": before,
        "peak_gb_after_reader": of_reader,
        "peak_gb_after_preparing": peak,
        "row_memory_map_ms": 1e3 * bare / N_ROWS,
        "row_store_ms": 1e3 * of_store / N_ROWS,
        "store_rows_by_memory_map": bare / of_store,
        "row_one_voxel_chunks_ms_scaled_from_a_plane": 1e3 * of_chunks,
        "store_rows_by_one_voxel_chunks": of_chunks / (of_store / N_ROWS),
    }


def measure_nifti(path: Path) -> dict[str, float]:
    """The reader against unpacking the file; some trials of a session, which says the same."""
    mask, rng = a_mask(), np.random.default_rng(0)
    values = rng.normal(0, 600, (*SHAPE, N_NIFTI_TRIALS)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    _, unpack = fastest(lambda: unpacked(path))
    betas, reader = fastest(lambda: read_session_betas(path, mask, N_NIFTI_TRIALS))
    assert np.array_equal(values[mask].T, betas), "the reader does not read the same"
    return {"nifti_reader_s": reader, "unpack_s": unpack, "nifti_reader_by_unpack": reader / unpack}


def measure_surface(path: Path) -> dict[str, float]:
    """The reader of fsaverage's vertices against reading the file's bytes; one hemisphere of a session."""
    header = nib.MGHImage(np.zeros((N_VERTICES, 1, 1), np.float32), np.eye(4)).header.copy()
    header.set_data_shape((N_VERTICES, 1, 1, N_TRIALS))
    rng = np.random.default_rng(0)
    kept = np.sort(rng.choice(N_VERTICES, N_KEPT_VERTICES, replace=False))
    mask = np.isin(np.arange(N_VERTICES), kept)
    expected = np.empty((N_TRIALS, N_KEPT_VERTICES), np.float32)
    with path.open("wb") as file:
        header.writehdr_to(file)
        file.seek(header.get_data_offset())
        for trial in range(N_TRIALS):
            vertices = rng.normal(0, 2, N_VERTICES).astype(">f4")
            expected[trial] = vertices[kept]
            file.write(vertices.tobytes())
    _, of_bytes = fastest(lambda: read_bytes(path))
    betas, reader = fastest(lambda: read_surface_betas((path,), (mask,), N_TRIALS))
    assert np.array_equal(betas, expected), "the reader does not read the same"
    return {
        "surface_reader_s": reader,
        "surface_bytes_s": of_bytes,
        "surface_reader_by_bytes": reader / of_bytes,
    }


def prepare(path: Path, mask: np.ndarray, store: Path) -> None:
    """A store of some sessions, all of which are the same file."""
    places = pd.DataFrame(np.argwhere(mask), columns=["x_mm", "y_mm", "z_mm"])
    sessions = np.repeat(np.arange(1, N_SESSIONS + 1), N_TRIALS)
    trials = pd.DataFrame({"session": sessions, "nsd_id": np.tile(np.arange(N_TRIALS), N_SESSIONS)})
    read = partial(read_percent, path, mask)
    subject = SubjectContents("subj01", trials, places, read, str(path))
    images = pd.DataFrame({"nsd_id": np.arange(N_TRIALS), "shared": np.arange(N_TRIALS) < N_TRIALS // 10})
    captions = images[["nsd_id"]].assign(caption="a thing")
    write_store(store, StoreContents([subject], images, captions, str(path)), StoreSettings(source="made-up"))


def read_percent(path: Path, mask: np.ndarray, _session: int) -> np.ndarray:
    """A session as the command reads it."""
    return percent_signal_change(read_session_betas(path, mask, N_TRIALS))


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


def read_chunks(path: Path, mask: np.ndarray) -> np.ndarray:
    """The mask's chunks and nothing else."""
    columns = []
    with h5py.File(path) as file:
        dataset = file["betas"].id
        for i, j, k in np.argwhere(mask).tolist():
            columns.append(np.frombuffer(dataset.read_direct_chunk((0, k, j, i))[1], np.int16))
    return np.stack(columns)


def read_rows(betas: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Rows one by one, copied out of the file."""
    return [np.array(betas[row]) for row in rows]


def read_one_trial(path: Path, trial: int, plane: int) -> np.ndarray:
    """One plane of one trial, which touches the chunk of each of its voxels."""
    with h5py.File(path) as file:
        return file["betas"][trial, plane]


def read_bytes(path: Path) -> int:
    """Read a file and keep nothing."""
    n_bytes = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            n_bytes += len(block)
    return n_bytes


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


def fastest(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and the least seconds of some repeats (the first warms the cache)."""
    results, seconds = zip(*(timed(work) for _ in range(REPEATS)), strict=True)
    return results[-1], min(seconds)


def peak_gb() -> float:
    """Most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
