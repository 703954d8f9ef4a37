"""The release as a whole: its files, its determinism, its refusals, and nothing to see at zero signal."""

import errno
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io
from safetensors.numpy import load_file

from bitllm.errors import OutputError
from bitllm.files import sha256_of_file
from bitllm.simulation import SIMULATION_VERSION, SimulationConfig, simulate_release, volumes
from bitllm.simulation.release import early_view

BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR"


def read_trials(root: Path, subject: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Betas (int16) in nsdgeneral as read from HDF5, with the image and the session of each trial."""
    mask = (
        np.asarray(nib.load(root / f"nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj) == 1
    )
    sessions = []
    for path in sorted((root / BETAS.format(subject)).glob("betas_session*.hdf5")):
        with h5py.File(path) as file:
            sessions.append(file["betas"][()].transpose(0, 3, 2, 1)[:, mask])
    design = scipy.io.loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    betas = np.concatenate(sessions)
    image = design["masterordering"].ravel()[: len(betas)].astype(int)
    return betas, image, np.repeat(np.arange(len(sessions)), len(sessions[0]))


def z_scored(betas: np.ndarray, session: np.ndarray) -> np.ndarray:
    """Betas z-scored by voxel and session; sessions without variance are NaN."""
    result = betas.astype(float)
    for name in np.unique(session):
        part = result[session == name]
        spread = part.std(0)
        result[session == name] = (part - part.mean(0)) / np.where(spread > 0, spread, np.nan)
    return result


def test_the_release_has_nsd_s_files(release: Path, config: SimulationConfig) -> None:
    for number, subject in enumerate(config.subjects):
        names = {path.name for path in (release / BETAS.format(subject)).iterdir()}
        sessions = {f"betas_session{index:02d}.hdf5" for index in range(1, config.sessions[number] + 1)}
        assert names == sessions | {"ncsnr.nii.gz"}
        assert (release / f"nsddata/ppdata/{subject}/transforms/MNI-to-func1pt8.nii.gz").exists()
        assert (release / f"nsddata/freesurfer/{subject}/label/floc-faces.mgz.ctab").exists()
    assert not (release / "nsddata/freesurfer/fsaverage/label/floc-faces.mgz.ctab").exists()
    content = json.loads((release / "simulation.json").read_text())
    assert (content["seed"], content["simulation_version"]) == (1, SIMULATION_VERSION)
    assert SimulationConfig.parse(content["parameters"]) == config


def test_ncsnr_equals_one_computed_apart(release: Path, config: SimulationConfig) -> None:
    for subject in config.subjects[:2]:
        betas, image, session = read_trials(release, subject)
        z = z_scored(betas, session)
        within = [z[image == name].var(0, ddof=1) for name in np.unique(image) if (image == name).sum() == 3]
        variance = np.nanmean(within, axis=0)
        expected = np.sqrt(np.maximum(0, 1 - variance) / variance)
        mask = (
            np.asarray(
                nib.load(release / f"nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj
            )
            == 1
        )
        found = np.asarray(nib.load(release / BETAS.format(subject) / "ncsnr.nii.gz").dataobj)[mask]
        np.testing.assert_allclose(found, expected, atol=2e-3)  # sums in float32


def test_responses_to_repeats_agree_with_the_saved_truth(release: Path) -> None:
    truth = load_file(release / "simulation_truth/subj01.safetensors")
    betas, image, session = read_trials(release, "subj01")
    z = np.nan_to_num(z_scored(betas, session))
    strong = truth["strength"] > np.median(truth["strength"])
    true = truth["responses"][image - 1].astype(float)
    r = (z * (true - true.mean(0)) / true.std(0)).mean(0)
    assert np.median(r[strong]) > 0.5


def test_the_same_seed_gives_the_same_files_and_noise_does_not_change_the_scenes(
    release: Path, config: SimulationConfig, tmp_path: Path
) -> None:
    simulate_release(tmp_path / "again", config, seed=1)
    simulate_release(tmp_path / "noisy", config.model_copy(update={"noise": 2.0}), seed=1)
    files = sorted(path.relative_to(release) for path in release.rglob("*") if path.is_file())
    changed = [
        str(path)
        for path in files
        if sha256_of_file(release / path) != sha256_of_file(tmp_path / "again" / path)
    ]
    assert changed == []
    untouched = (
        "nsddata_stimuli/stimuli/nsd/annotations/captions_train2017.json",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
        "nsddata/ppdata/subj02/behav/responses.tsv",
    )
    for name in untouched:
        assert sha256_of_file(release / name) == sha256_of_file(tmp_path / "noisy" / name)
    betas = Path(BETAS.format("subj01")) / "betas_session01.hdf5"
    assert sha256_of_file(release / betas) != sha256_of_file(tmp_path / "noisy" / betas)


def test_without_signal_the_betas_hold_no_image(
    release: Path, config: SimulationConfig, tmp_path: Path
) -> None:
    simulate_release(tmp_path / "silent", config.model_copy(update={"signal": 0.0}), seed=1)

    def repeat_correlation(root: Path) -> tuple[float, float]:
        betas, image, session = read_trials(root, "subj01")
        z = np.nan_to_num(z_scored(betas, session))
        z -= z.mean(1, keepdims=True)
        pairs = [np.flatnonzero(image == name)[:2] for name in np.unique(image)]
        r = [np.corrcoef(z[a], z[b])[0, 1] for a, b in pairs]
        return float(np.mean(r)), float(np.std(r) / np.sqrt(len(r)))

    silent, error = repeat_correlation(tmp_path / "silent")
    assert abs(silent) < 4 * error
    assert repeat_correlation(release)[0] > 0.1
    table = "nsddata/experiments/nsd/nsd_expdesign.mat"
    ordering = [scipy.io.loadmat(root / table)["masterordering"] for root in (release, tmp_path / "silent")]
    np.testing.assert_array_equal(*ordering)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, config: SimulationConfig) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="expected an empty or a new folder"):
        simulate_release(tmp_path, config, seed=1)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, config: SimulationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(volumes, "write_betas_hdf5", full)
    with pytest.raises(OutputError, match="the disk is full"):
        simulate_release(tmp_path / "nsd", config, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_session_and_picture(tmp_path: Path, config: SimulationConfig) -> None:
    small = config.model_copy(update={"sessions": (4, 3)})
    calls: list[tuple[str, int, int]] = []
    simulate_release(tmp_path / "nsd", small, seed=2, progress=lambda *call: calls.append(call))
    assert [done for what, done, _ in calls if what == "sessions"] == list(range(1, 8))
    assert ("pictures", small.n_images, small.n_images) in calls


def test_the_pictures_file_holds_every_image(release: Path, config: SimulationConfig) -> None:
    with h5py.File(release / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        brick = file["imgBrick"]
        assert brick.shape == (config.n_images, 48, 48, 3) and brick.dtype == np.uint8
        assert brick[()].reshape(config.n_images, -1).std(1).min() > 10
    scenes = pd.read_parquet(release / "simulation_truth/scenes.parquet")
    assert len(scenes) == config.n_images and scenes.index.name == "nsd_id"


def test_the_early_view_is_the_mean_of_each_cell() -> None:
    picture = np.zeros((1, 24, 24, 3), dtype=np.uint8)
    picture[0, 2:4, 0:2] = (255, 0, 0)  # second cell of the first column
    view = early_view(picture)[0]
    np.testing.assert_allclose(view[12], [1 / 3, 1, -0.5, 0])
    assert not np.delete(view, 12, axis=0).any()
