"""GLMsingle's outputs against the arrays that were put into them."""

import io
import json
import os
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.cli import main
from bitllm.data.formats.glmsingle import read_glmsingle
from bitllm.data.store import open_store
from bitllm.errors import DataError

GRID, N_TRIALS = (4, 3, 2), 24
NAME = "TYPED_FITHRF_GLMDENOISE_RR"


@pytest.fixture(name="made")
def _made(tmp_path):
    """Percent betas x, y, z, trial of one subject in two sessions, and the table of its trials."""
    rng = np.random.default_rng(3)
    betas = rng.normal(1.5, 2.0, (*GRID, N_TRIALS)).astype(np.float32)
    mask = rng.random(GRID) < 0.5
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    shown = np.concatenate([rng.permutation(12), rng.permutation(12)])
    trials = pd.DataFrame({"trial_row": range(N_TRIALS), "subject": "s1", "session": np.repeat([1, 2], 12)})
    trials["run"], trials["stimulus_id"] = 1, [f"img{n:02d}" for n in shown]
    trials["split"] = np.where(shown < 8, "train", np.where(shown < 10, "val", "test"))
    trials.sample(frac=1, random_state=0).to_csv(tmp_path / "trials.tsv", sep="\t", index=False)
    captions = {f"img{n:02d}": [f"caption of {n}"] for n in range(12)}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    expected = np.empty((N_TRIALS, mask.sum()))
    for rows in (slice(0, 12), slice(12, 24)):
        flat = betas[mask].T[rows].astype(np.float64)
        training = flat[shown[rows] < 8]
        expected[rows] = (flat - training.mean(0)) / training.std(0)
    # stimorder counts conditions from 0 in the order of their first appearance, not as the ids do
    order = np.array([list(dict.fromkeys(shown)).index(n) for n in shown])
    return betas, shown, order, expected


@pytest.fixture(name="read")
def _read(tmp_path):
    def read(betas: Path, **changed):
        files = {
            "trials": tmp_path / "trials.tsv",
            "captions": (tmp_path / "captions.json",),
            "subject": "s1",
            "places": tmp_path / "mask.nii.gz",
        }
        return read_glmsingle(betas, **files | changed)

    return read


def test_blank_trials_are_skipped_and_the_subject_and_table_may_be_written_in_other_ways(
    made, read, tmp_path, prepared
):
    betas, shown, order, _ = made
    trials = pd.read_csv(tmp_path / "trials.tsv", sep="\t", dtype=str).assign(subject="sub-s1")
    blank = [3, 17]
    trials.loc[trials["trial_row"].isin(map(str, blank)), "stimulus_id"] = ""
    trials.to_csv(tmp_path / "trials.csv.gz", index=False)
    order = order.copy()
    order[blank] = 99
    design = save_hdf5(tmp_path / "DESIGNINFO.hdf5", "stimorder", order)
    mask = np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj) > 0
    places = pd.DataFrame(np.argwhere(mask) * 1.0, columns=["x_mm", "y_mm", "z_mm"])
    places.to_csv(tmp_path / "places.tsv.gz", sep="\t", index=False)
    flat = save_hdf5(tmp_path / f"{NAME}.hdf5", "betasmd", betas[mask][:, None, None, :])
    reading = read(flat, trials=tmp_path / "trials.csv.gz", design=design, places=tmp_path / "places.tsv.gz")
    assert [note for note in reading.notes if "2 trials without an image" in note]
    data = prepared(reading).subject("s1")
    left = np.setdiff1d(np.arange(N_TRIALS), blank)
    assert data.trials["nsd_id"].tolist() == shown[left].tolist()
    rows = left[left < 12]
    training = betas[mask].T[rows][shown[rows] < 8]
    expected = (betas[mask].T[rows] - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(np.asarray(data.betas)[: len(rows)], expected, rtol=2e-3, atol=2e-3)


def save_hdf5(path: Path, key: str, values: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file[key] = values
    return path


def save_pickled(path: Path, content: object) -> Path:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def save_matlab(path: Path, key: str, values: np.ndarray) -> Path:
    """MATLAB v7.3 is HDF5 after a block of 512 bytes, with the axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file[key] = values.transpose()
        file[key].attrs["MATLAB_class"] = np.bytes_("single")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(128))
    return path


def save(folder: Path, kind: str, name: str, key: str, values: np.ndarray) -> Path:
    path = folder / f"{name}.{kind}"
    if kind == "npy":
        return save_pickled(path, {key: values, "R2": np.float64(1), "params": {"chunklen": 3, "tr": [1.6]}})
    return (save_matlab if kind == "mat" else save_hdf5)(path, key, values)


@pytest.mark.parametrize("kind", ["hdf5", "npy", "mat"])
def test_a_store_holds_the_betas_in_the_order_of_stimorder(made, read, prepared, tmp_path, kind):
    betas, shown, order, expected = made
    path = save(tmp_path, kind, NAME, "modelmd" if kind == "mat" else "betasmd", betas)  # MATLAB says so
    design = save(tmp_path, kind, "DESIGNINFO", "stimorder", order[None])
    store = prepared(read(path, design=design, trust_pickle=kind == "npy"))
    data = store.subject("s1")
    assert data.trials["nsd_id"].tolist() == shown.tolist()
    np.testing.assert_allclose(np.asarray(data.betas), expected, rtol=2**-10, atol=1e-3)
    assert store.captions == {n: (f"caption of {n}",) for n in range(12)}
    assert store.stimuli["part"].tolist() == ["train"] * 8 + ["validation"] * 2 + ["test"] * 2


def test_matlab_files_before_version_7_3_are_read(made, read, prepared, tmp_path):
    betas, shown, order, expected = made
    path, design = tmp_path / f"{NAME}.mat", tmp_path / "DESIGNINFO.mat"
    scipy.io.savemat(path, {"modelmd": betas, "R2": betas[..., 0]}, do_compression=True)
    scipy.io.savemat(design, {"stimorder": order[None]})
    data = prepared(read(path, design=design)).subject("s1")
    assert data.trials["nsd_id"].tolist() == shown.tolist()
    np.testing.assert_allclose(np.asarray(data.betas), expected, rtol=2**-10, atol=1e-3)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=rf"{NAME}.mat: .*-v7.3"):
        read(path)
    scipy.io.savemat(path, {"R2": betas})
    with pytest.raises(DataError, match=rf"{NAME}.mat: expected betasmd or modelmd, found R2"):
        read(path)


@pytest.mark.parametrize("kind", ["npy", "hdf5", "old.mat"])
def test_complex_numbers_are_refused(made, read, tmp_path, kind):
    betas = made[0].astype(np.complex64)
    path = tmp_path / f"{NAME}.{kind}"
    if kind == "old.mat":
        scipy.io.savemat(path, {"modelmd": betas})
    else:
        save(tmp_path, kind, NAME, "betasmd", betas)
    with pytest.raises(DataError, match=rf"{NAME}.{kind}: .*complex"):
        read(path, trust_pickle=True)


def test_a_list_of_voxels_takes_a_table_of_places(made, read, prepared, tmp_path):
    betas, _, _, expected = made
    mask = np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj) > 0
    path = save_hdf5(tmp_path / f"{NAME}.hdf5", "betasmd", betas[mask][:, None, None, :])
    table = pd.DataFrame(np.argwhere(mask) * 1.0, columns=["x_mm", "y_mm", "z_mm"])
    table.to_csv(tmp_path / "places.tsv", sep="\t", index=False)
    reading = read(path, places=tmp_path / "places.tsv")
    assert "not checked against stimorder" in " ".join(reading.notes)
    np.testing.assert_allclose(
        np.asarray(prepared(reading).subject("s1").betas), expected, rtol=2**-10, atol=1e-3
    )


def test_trials_in_another_order_than_stimorder_are_refused(made, read, tmp_path):
    betas, _, order, _ = made
    path = save_hdf5(tmp_path / f"{NAME}.hdf5", "betasmd", betas)
    design = save_hdf5(tmp_path / "DESIGNINFO.hdf5", "stimorder", order[::-1])
    with pytest.raises(DataError, match=r"DESIGNINFO.hdf5: .*the trials table is in another order"):
        read(path, design=design)
    save_hdf5(design, "stimorder", order[:-1])
    with pytest.raises(DataError, match=r"a stimorder of 24 trials, as in the trials table, found 23"):
        read(path, design=design)


def test_what_is_not_single_trial_betas_is_refused(made, read, tmp_path):
    betas = made[0]
    with pytest.raises(DataError, match=r"TYPEA_ONOFF.hdf5: expected single-trial betas .*found TYPEA"):
        read(save_hdf5(tmp_path / "TYPEA_ONOFF.hdf5", "onoffR2", betas))
    with pytest.raises(DataError, match=r"expected a dataset `betasmd`, found R2"):
        read(save_hdf5(tmp_path / f"{NAME}.hdf5", "R2", betas))
    with pytest.raises(DataError, match=r"expected betasmd or modelmd, found R2"):
        read(save_pickled(tmp_path / f"{NAME}.npy", {"R2": betas}), trust_pickle=True)
    with pytest.raises(DataError, match=r"betas.txt: expected GLMsingle's .hdf5, .npy or .mat"):
        read(tmp_path / "betas.txt")
    with pytest.raises(DataError, match=r"expected axes xyz-trials on the mask's grid"):
        read(save_hdf5(tmp_path / f"{NAME}.hdf5", "betasmd", betas.transpose()))


class Malicious:
    """Runs a command where it is unpickled without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_is_read_with_consent_alone_and_runs_nothing(made, read, tmp_path):
    path = save_pickled(tmp_path / f"{NAME}.npy", {"betasmd": made[0]})
    with pytest.raises(DataError, match=r"found .npy, which is a pickle and can run code; .*--trust-pickle"):
        read(path)
    ran = tmp_path / "ran"
    save_pickled(path, {"betasmd": made[0], "evil": Malicious(f"touch '{ran}'")})
    with pytest.raises(DataError, match=r"found a pickle that asks for `(posix|nt).system`"):
        read(path, trust_pickle=True)
    assert not ran.exists()
    np.load(path, allow_pickle=True)  # without the restriction it would have run
    assert ran.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"nonsense", "found another or a damaged file"),
        (np.zeros(3), "found another or a damaged file .it is a plain array"),
        ([1, 2], "expected a dictionary that GLMsingle saved, found another"),
        (7, "expected a dictionary that GLMsingle saved, found int"),
    ],
)
def test_a_npy_that_is_no_dictionary_is_refused(made, read, tmp_path, content, match):
    path = tmp_path / f"{NAME}.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        stream = io.BytesIO()
        is_plain = isinstance(content, np.ndarray)
        np.save(stream, content if is_plain else np.array(content, dtype=object), allow_pickle=not is_plain)
        path.write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=match):
        read(path, trust_pickle=True)


def test_the_command_takes_a_normalization(made, tmp_path, capsys):
    betas, shown, _, _ = made
    path = save_pickled(tmp_path / f"{NAME}.npy", {"betasmd": betas})
    words = ["--trials", "trials.tsv", "--captions", "captions.json", "--places", "mask.nii.gz"]
    words = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    words += ["--subject", "s1", "--normalization", "across-sessions", "--trust-pickle"]
    main(["prepare", "glmsingle", str(path), str(tmp_path / "store"), *words])
    flat = betas[np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj) > 0].T.astype(np.float64)
    training = flat[shown < 8]
    expected = (flat - training.mean(0)) / training.std(0)
    found = open_store(tmp_path / "store").subject("s1").betas
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
    assert "--design" in capsys.readouterr().out
