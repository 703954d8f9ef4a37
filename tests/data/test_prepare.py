"""The store of the miniature release against values worked out by hand and by loops."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.prepare import prepare_nsd
from bitllm.data.store import open_store
from bitllm.data.store.complete import part_of_image
from bitllm.errors import DataError, OutputError

PREPARE = {"validation_fraction": 0.3, "seed": 2}


def part_of(store, nsd_id: int) -> str:
    return store.stimuli["part"].loc[nsd_id]


def z_scored_by_a_loop(mini, store, subject: str) -> np.ndarray:
    """Canonical voxel order and z-scores, one number at a time."""
    x, y, z = mini.mask[subject].shape
    places = [(i, j, k) for i in range(x) for j in range(y) for k in range(z) if mini.mask[subject][i, j, k]]
    rows, first = [], 0
    for session in range(1, 1 + sum(key[0] == subject for key in mini.volumes)):
        volume = mini.volumes[subject, session]
        trials = range(volume.shape[3])
        train = [t for t in trials if part_of(store, mini.nsd_id[subject][first + t]) == "train"]
        block = np.zeros((len(trials), len(places)))
        for column, (i, j, k) in enumerate(places):
            values = [float(volume[i, j, k, t]) / 300 for t in train]
            mean = sum(values) / len(values)
            deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
            for t in trials:
                block[t, column] = (volume[i, j, k, t] / 300 - mean) / deviation if deviation else 0.0
        rows.append(block)
        first += len(trials)
    return np.concatenate(rows)


@pytest.mark.parametrize("subject", ["subj01", "subj02", "subj03"])
def test_betas_equal_a_loop_over_trials_and_voxels(written_release, store, subject):
    expected = z_scored_by_a_loop(written_release, store, subject)
    betas = store.subject(subject).betas
    assert betas.dtype == np.float16
    assert betas.shape == expected.shape
    np.testing.assert_allclose(betas, expected, rtol=2**-10, atol=1e-6)  # float16 has 11 bits


def test_across_sessions_has_one_mean_and_deviation_from_all_training_trials_of_a_voxel(
    written_release, tmp_path
):
    told = []
    prepare_nsd(
        written_release.root,
        tmp_path / "store",
        normalization="across-sessions",
        workers=2,
        progress=lambda *step: told.append(step),
        **PREPARE,
    )
    store = open_store(tmp_path / "store")
    assert (
        store.manifest.statistics == "across-sessions"
        and "all sessions together" in store.manifest.normalization
    )
    for subject in store.subjects:
        mask = written_release.mask[subject]
        sessions = range(1, 1 + sum(key[0] == subject for key in written_release.volumes))
        percent = [written_release.volumes[subject, s][mask].T / 300 for s in sessions]
        shown = written_release.nsd_id[subject][: sum(map(len, percent))]
        is_train = np.array([part_of(store, n) == "train" for n in shown])
        betas = np.asarray(store.subject(subject).betas)
        expected = np.empty(betas.shape)
        for voxel in range(mask.sum()):
            in_view = np.concatenate([np.full(len(p), p[:, voxel].any()) for p in percent])
            values = np.concatenate([p[:, voxel] for p in percent])
            known = values[is_train & in_view]
            expected[:, voxel] = np.where(in_view, (values - known.mean()) / known.std(), 0)
        np.testing.assert_allclose(betas, expected, rtol=2**-10, atol=1e-3)
    assert told[-1][1:] == (2 * 8 + 1, 2 * 8 + 1)  # eight sessions, each read twice
    assert not list((tmp_path / "store").rglob("*moments*")) and not list(
        (tmp_path / "store").rglob("statistics.npy")
    )


def test_trials_follow_the_design_and_count_repetitions(written_release, store):
    trials = store.subject("subj03").trials
    nsd_id = written_release.nsd_id["subj03"][:24]
    assert trials["nsd_id"].tolist() == nsd_id.tolist()
    assert trials["session"].tolist() == [1] * 12 + [2] * 12
    assert trials["run"].tolist() == ([1] * 7 + [2] * 5) * 2
    assert trials["trial"].tolist() == [*range(1, 8), *range(1, 6)] * 2
    assert trials["repetition"].tolist() == [nsd_id[:row].tolist().count(n) for row, n in enumerate(nsd_id)]
    assert trials["shared"].tolist() == np.isin(nsd_id, written_release.shared).tolist()


def test_voxels_carry_place_coordinates_ceiling_and_labels(written_release, store):
    voxels = store.subject("subj02").voxels
    mask = written_release.mask["subj02"]
    np.testing.assert_array_equal(voxels[["i", "j", "k"]], np.argwhere(mask))
    mni = written_release.mni["subj02"][mask]
    by_hand = np.column_stack([91 - mni[:, 0], mni[:, 1] - 127, mni[:, 2] - 73])
    np.testing.assert_allclose(voxels[["x_mm", "y_mm", "z_mm"]], by_hand, rtol=1e-5, atol=1e-4)
    ncsnr = written_release.ncsnr["subj02"][mask]
    assert np.isnan(ncsnr[0])
    assert voxels["ncsnr"].tolist() == [0.0, *ncsnr[1:].tolist()]
    for atlas in ("prf-visualrois", "streams"):
        labels = written_release.labels["subj02", atlas][mask]
        assert voxels[atlas].tolist() == [max(0, int(label)) for label in labels]
    assert "lh.nsdgeneral" not in voxels
    assert store.atlases["prf-visualrois"] == {1: "V1v", 2: "V1d", 3: "V2v"}


def test_images_have_their_own_captions_and_pictures(written_release, store):
    seen = sorted({n for subject in store.subjects for n in store.subject(subject).trials["nsd_id"]})
    assert store.stimuli.index.tolist() == seen
    assert all(list(store.captions[n]) == written_release.captions[n] for n in seen)
    assert len(store.captions) == len(seen)
    some = [seen[5], seen[0], seen[5]]
    np.testing.assert_array_equal(store.pictures(some), written_release.pictures[some])
    assert store.stimuli["coco_id"].loc[seen[0]] == 1000 + 7 * (29 - seen[0])


def test_shared_images_are_the_test_part_and_the_rest_is_split_by_image(written_release, store):
    part = store.stimuli["part"]
    assert set(part.index[part == "test"]) == set(written_release.shared.tolist())
    assert set(part) == {"train", "validation", "test"}
    again = {n: part_of_image(n, is_shared=False, validation_fraction=0.3, seed=2) for n in part.index}
    assert all(again[n] == part[n] for n in part.index if part[n] != "test")
    many = [part_of_image(n, is_shared=False, validation_fraction=0.08, seed=7) for n in range(20_000)]
    assert many.count("validation") / len(many) == pytest.approx(0.08, abs=0.006)  # three standard errors


def test_statistics_do_not_see_test_and_validation_trials(release, store, tmp_path, write_hdf5_betas):
    trials = store.subject("subj01").trials
    part = store.stimuli["part"].loc[trials["nsd_id"]].to_numpy()
    changed = release.volumes["subj01", 2].copy()
    changed[..., part[12:24] != "train"] += 5000
    write_hdf5_betas(release.session("subj01", 2), changed)
    prepare_nsd(release.root, tmp_path / "again", **PREPARE)
    before, after = (s.subject("subj01").betas for s in (store, open_store(tmp_path / "again")))
    np.testing.assert_array_equal(before[part == "train"], after[part == "train"])
    held_out = np.flatnonzero(part[12:24] != "train") + 12
    assert (before[held_out] != after[held_out]).all(axis=1).all()


def test_hdf5_and_nifti_prepare_to_the_same_bytes(release, store, tmp_path, write_volume):
    for (subject, session), volume in release.volumes.items():
        release.session(subject, session).unlink()
        write_volume(release.session(subject, session, "nii.gz"), volume)
    prepare_nsd(release.root, tmp_path / "nifti", **PREPARE)
    again = open_store(tmp_path / "nifti")
    assert again.manifest == store.manifest


def test_preparing_again_gives_the_same_manifest(written_release, store, tmp_path):
    prepare_nsd(written_release.root, tmp_path / "again", **PREPARE)
    assert open_store(tmp_path / "again").manifest == store.manifest
    prepare_nsd(written_release.root, tmp_path / "other", validation_fraction=0.3, seed=3)
    assert open_store(tmp_path / "other").manifest.sha256 != store.manifest.sha256


def test_some_subjects_can_be_prepared_and_progress_is_told(written_release, tmp_path):
    told = []
    prepare_nsd(
        written_release.root,
        tmp_path / "two",
        subjects=["subj03", "subj01"],
        progress=lambda *step: told.append(step),
    )
    assert open_store(tmp_path / "two").subjects == ("subj01", "subj03")
    assert told[0] == ("subj01 session 1", 1, 6)
    assert told[-1] == ("pictures and captions", 6, 6)


def test_the_manifest_says_where_the_data_came_from(release, store, tmp_path):
    assert store.manifest.source == "nsd"
    assert store.manifest.simulation is None
    (release.root / "simulation.json").write_text(json.dumps({"preset": "tiny", "seed": 1}))
    prepare_nsd(release.root, tmp_path / "simulated", **PREPARE)
    manifest = open_store(tmp_path / "simulated").manifest
    assert (manifest.source, manifest.simulation) == ("simulated", {"preset": "tiny", "seed": 1})


def test_the_store_is_read_with_numpy_and_pandas_alone(store):
    betas = np.load(store.path / "subjects/subj01/betas.npy", mmap_mode="r")
    trials = pd.read_parquet(store.path / "subjects/subj01/trials.parquet")
    assert len(betas) == len(trials) == 36
    assert list(trials.columns) == ["session", "run", "trial", "nsd_id", "repetition", "shared"]
    assert len(np.load(store.path / "pictures.npy")) == len(pd.read_parquet(store.path / "stimuli.parquet"))


def test_an_output_folder_with_files_is_refused_and_kept(written_release, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="expected an empty or a new folder, found files"):
        prepare_nsd(written_release.root, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.fixture(name="no_betas")
def _no_betas(monkeypatch):
    """Fail the test when any betas are read."""
    for reader in ("VolumeSessions", "SurfaceSessions"):
        monkeypatch.setattr(
            f"bitllm.data.prepare.{reader}.__call__", lambda *_: pytest.fail("betas were read first")
        )


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.unlink(), r"nsd_stimuli.hdf5: expected NSD's pictures, found no file"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "whole HDF5, found a damaged file"),
        (lambda path: write_brick(path, (30, 6, 5, 3), "f4"), "expected a dataset `imgBrick` of uint8 pictures"),
        (lambda path: write_brick(path, (30, 6, 5), "u1"), "expected a dataset `imgBrick` of uint8 pictures"),
        (lambda path: write_brick(path, (9, 6, 5, 3), "u1"), r"expected at least \d+ pictures, found 9"),
    ],
)  # fmt: skip
def test_odd_pictures_are_named_before_any_betas_are_read(release, tmp_path, no_betas, damage, match):
    damage(release.stimuli)
    half_made = tmp_path / "store.unfinished"
    half_made.mkdir()
    (half_made / "session0001.done").write_text("hours of work")
    with pytest.raises(DataError, match=match):
        prepare_nsd(release.root, tmp_path / "store")
    assert (half_made / "session0001.done").exists()


def write_brick(path, shape: tuple[int, ...], dtype: str) -> None:
    with h5py.File(path, "w") as file:
        file["imgBrick"] = np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--picture-px", "0"), ("--picture-px", "99999999"), ("--seed", "-1"), ("--workers", "0")],
        *[("--validation-fraction", value) for value in ("-1", "2", "nan")],
        *[("--sessions", "0"), ("--sessions", "-99")],
    ],
)
def test_a_number_out_of_its_range_is_one_line(written_release, tmp_path, no_betas, capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "nsd", str(written_release.root), str(tmp_path / "store"), option, value])
    err = capsys.readouterr().err
    assert err.startswith(f"bitllm: {option}: ")
    assert f"found {value}" in err
    assert len(err.strip().splitlines()) == 1


def test_an_atlas_that_one_subject_lacks_is_named(release, tmp_path):
    release.roi("subj02", "streams").unlink()
    with pytest.raises(DataError, match=r"subj02.*streams.nii.gz: expected the atlas `streams`"):
        prepare_nsd(release.root, tmp_path / "store")


def test_label_tables_that_disagree_are_named(release, tmp_path):
    release.table("prf-visualrois", "subj02").write_text("1 V1v\n2 hV4\n3 V2v\n")
    with pytest.raises(
        DataError, match=r"subj02.*expected the label 2 to be `V1d`, as in subj01, found `hV4`"
    ):
        prepare_nsd(release.root, tmp_path / "store")


def test_an_atlas_without_a_table_is_named_by_its_numbers(release, tmp_path):
    shutil.rmtree(release.root / "nsddata/freesurfer/fsaverage")
    prepare_nsd(release.root, tmp_path / "store")
    assert open_store(tmp_path / "store").atlases["streams"] == {1: "streams-1", 2: "streams-2"}
