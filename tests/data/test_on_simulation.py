"""The road of the simulated release: it prepares, and its store passes the checks of real data."""

import ast

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.cli import main
from bitllm.data.batch import Anatomies, brain_input
from bitllm.data.dataset import select_trials
from bitllm.data.nsd.betas import percent_signal_change, read_session_betas
from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import check_split, make_split
from bitllm.data.store import Store, open_store
from bitllm.data.tasks import exchanges
from bitllm.data.tasks.sources import derive_from
from bitllm.simulation import release as release_module
from bitllm.simulation.parameters import preset
from bitllm.simulation.pictures import object_boxes
from bitllm.simulation.release import simulate_release
from bitllm.simulation.scenes import make_scenes
from bitllm.simulation.vocabulary import CATEGORIES

BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session{:02d}"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("simulated")
    simulate_release(folder / "nsd", preset("tiny"), seed=1)
    notes: list[str] = []
    prepare_nsd(folder / "nsd", folder / "store", note=notes.append)
    assert notes == []  # nothing to remark on, the volumes of views included
    return open_store(folder / "store")


@pytest.fixture(scope="module")
def as_nifti(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[tuple[str, int], np.ndarray]]:
    """The same release as NIfTI, with the simulation's own betas (trials, X, Y, Z), caught before rounding."""
    folder = tmp_path_factory.mktemp("nifti")
    simulate, own = release_module.session_percent, {}

    def caught(config, subject, images, session, *, seed):
        percent = simulate(config, subject, images, session, seed=seed)
        volume = np.zeros((len(percent), *subject.cortex.shape))
        volume[:, subject.cortex.brain] = percent
        own[config.subjects[subject.index], session + 1] = volume
        return percent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_module, "session_percent", caught)
        simulate_release(folder / "nsd", preset("tiny"), seed=1, betas_format="nifti")
    prepare_nsd(folder / "nsd", folder / "store")
    return open_store(folder / "store"), own


def test_the_share_in_view_is_that_of_the_simulations_volumes(simulated):
    out_of_view = 0
    for subject in simulated.subjects:
        folder = simulated.path.parent / f"nsd/nsddata/ppdata/{subject}/func1pt8mm"
        mask = nib.load(folder / "roi/nsdgeneral.nii.gz").get_fdata() > 0
        files = sorted(folder.glob("valid_session*.nii.gz"))
        share = np.mean([nib.load(path).get_fdata()[mask] for path in files], axis=0)
        np.testing.assert_allclose(simulated.subject(subject).voxels["valid"], share)
        out_of_view += (share < 1).sum()
    assert out_of_view > 0


def test_hdf5_and_nifti_prepare_to_bit_equal_stores(simulated, as_nifti):
    nifti = as_nifti[0]
    assert nifti.manifest.subjects == simulated.manifest.subjects  # with the checksum of every file
    assert nifti.manifest.sha256 == simulated.manifest.sha256
    for subject in simulated.subjects:
        first, second = (store.path / f"subjects/{subject}/betas.npy" for store in (simulated, nifti))
        assert first.read_bytes() == second.read_bytes()


def test_betas_are_the_simulations_own_to_the_rounding_of_int16(simulated, as_nifti):
    nifti, own = as_nifti
    grids = set()
    for (subject, session), volume in own.items():
        anatomy = simulated.path.parent / f"nsd/nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz"
        mask = nib.load(anatomy).get_fdata() > 0
        grids.add(mask.shape)
        for store, suffix in ((simulated, ".hdf5"), (nifti, ".nii.gz")):
            path = store.path.parent / "nsd" / (BETAS.format(subject, session) + suffix)
            read = percent_signal_change(read_session_betas(path, mask, len(volume)))
            assert np.abs(read - volume[:, mask]).max() <= 1 / 300 / 2 + 1e-5
    assert len(own) == sum(preset("tiny").sessions)
    assert any(len(set(grid)) == 3 for grid in grids)  # no two sides alike: a swap of axes would show


def test_objects_of_the_store_are_where_the_simulations_pictures_show_them(simulated):
    scenes = make_scenes(preset("tiny").n_images, seed=1)
    table = pd.read_csv(
        simulated.path.parent / "nsd/nsddata/experiments/nsd/nsd_stim_info_merged.csv", index_col="nsdId"
    )
    cut = table["cropBox"].loc[simulated.stimuli.index].map(lambda box: sum(ast.literal_eval(box)))
    assert 0.1 < (cut == 0).mean() < 0.5 and cut.max() > 0.3
    objects = simulated.objects
    assert objects.index.unique().equals(simulated.stimuli.index)
    for nsd_id in simulated.stimuli.index[::5]:
        found = objects.loc[[nsd_id]]
        names, boxes = zip(*object_boxes(scenes[nsd_id]), strict=True)
        assert found["category"].tolist() == list(names)
        left, top, right, bottom = np.clip(boxes, 0, 1).T
        expected = np.stack([left, top, right - left, bottom - top], axis=1)
        np.testing.assert_allclose(found[list("xywh")], expected, atol=2e-4)  # 0.01 of 375 pixels, added up
        np.testing.assert_allclose(found["area"], found["w"] * found["h"], atol=1e-4)
    assert not objects["is_crowd"].any() and set(objects["supercategory"]) == set(CATEGORIES)


def test_trials_of_the_store_are_the_images_of_the_design(simulated):
    design = scipy.io.loadmat(
        simulated.path.parent / "nsd/nsddata/experiments/nsd/nsd_expdesign.mat", squeeze_me=True
    )
    ordering, images = (design[key].astype(int) for key in ("masterordering", "subjectim"))
    counts = {}
    for row, subject in enumerate(simulated.subjects):
        trials = simulated.subject(subject).trials
        shown = images[row, ordering[: len(trials)] - 1] - 1
        np.testing.assert_array_equal(trials["nsd_id"], shown)
        n_shared = preset("tiny").n_shared
        np.testing.assert_array_equal(trials["shared"], ordering[: len(trials)] <= n_shared)
        assert set(trials["nsd_id"][trials["shared"]] + 1) <= set(design["sharedix"].tolist())
        counts[subject] = trials["nsd_id"].value_counts()
        assert counts[subject].max() == 3 == trials["repetition"].max() + 1
    full = [subject for subject in simulated.subjects if len(simulated.subject(subject).trials) == 240]
    assert all((counts[subject] == 3).all() and len(counts[subject]) == 80 for subject in full)


def test_shared_images_come_at_the_same_trials_for_all_subjects(simulated):
    first = simulated.subject("subj01").trials
    for subject in simulated.subjects:
        trials = simulated.subject(subject).trials
        here = first.iloc[: len(trials)]
        np.testing.assert_array_equal(trials["shared"], here["shared"])
        shared = here["shared"].to_numpy()
        np.testing.assert_array_equal(trials["nsd_id"][shared], here["nsd_id"][shared])
        if subject != "subj01":
            own = set(trials["nsd_id"][~shared])
            assert not own & set(first["nsd_id"])


def test_a_simulated_release_is_marked_as_such(simulated):
    assert simulated.manifest.source == "simulated"
    assert simulated.manifest.simulation["seed"] == 1


def test_training_trials_have_mean_0_and_deviation_1_in_every_session(simulated):
    for subject in simulated.subjects:
        data = simulated.subject(subject)
        is_training = simulated.stimuli["part"].loc[data.trials["nsd_id"]].to_numpy() == "train"
        session = data.trials["session"].to_numpy()
        for number in np.unique(session):
            betas = data.betas[is_training & (session == number)].astype(np.float64)
            np.testing.assert_allclose(betas.mean(axis=0), 0, atol=2e-3)
            deviation = betas.std(axis=0)
            np.testing.assert_allclose(deviation[deviation > 0], 1, atol=2e-3)


@pytest.mark.parametrize("name", ["poster", "develop"])
def test_splits_of_a_simulated_release_pass_the_check(simulated, name):
    split = make_split(simulated, name)
    check_split(simulated, split)
    assert all(
        len(select_trials(simulated, split, part, averaged=True)) for part in ("train", "validation", "test")
    )


def test_the_left_hemisphere_lies_at_negative_x(simulated):
    root = simulated.path.parent / "nsd"
    for subject in simulated.subjects:
        left = (
            nib.load(root / f"nsddata/ppdata/{subject}/func1pt8mm/roi/lh.nsdgeneral.nii.gz").get_fdata() > 0
        )
        voxels = simulated.subject(subject).voxels
        is_left = left[tuple(voxels[axis].to_numpy() for axis in "ijk")]
        assert voxels["x_mm"][is_left].mean() < 0 < voxels["x_mm"][~is_left].mean()


def test_vertices_of_fsaverage_have_the_z_scores_of_the_simulations_own_betas(tmp_path):
    config = preset("tiny").model_copy(update={"sessions": (4, 3)})
    simulate_release(tmp_path / "nsd", config, seed=1, fsaverage=True)
    prepare_nsd(tmp_path / "nsd", tmp_path / "store", space="fsaverage")
    store = open_store(tmp_path / "store")
    ids = {}
    for subject in store.subjects:
        data = store.subject(subject)
        folder = tmp_path / f"nsd/nsddata_betas/ppdata/{subject}/fsaverage/betas_fithrf_GLMdenoise_RR"
        is_training = store.stimuli["part"].loc[data.trials["nsd_id"]].to_numpy() == "train"
        ids[subject] = data.voxels[["i", "j", "x_mm", "y_mm", "z_mm"]].to_numpy().tolist()
        for session in range(1, 1 + store.manifest.subjects[subject].n_sessions):
            rows = (data.trials["session"] == session).to_numpy()
            halves = [
                np.squeeze(nib.load(folder / f"{side}.betas_session{session:02d}.mgh").get_fdata())[
                    data.voxels["i"][data.voxels["j"] == number]
                ]
                for number, side in enumerate(("lh", "rh"))
            ]
            percent = np.concatenate(halves).T
            train = percent[is_training[rows]]
            expected = np.nan_to_num((percent - train.mean(0)) / train.std(0))
            np.testing.assert_allclose(data.betas[rows], expected, rtol=2**-10, atol=1e-3)
        assert 0 < (data.voxels["valid"] < 1).mean() < 0.5
    assert ids["subj01"] == ids["subj02"]  # the vertices are common to all
    trials = select_trials(store, make_split(store, "poster"), "train", averaged=True)
    batch = brain_input(trials, Anatomies.of(store, trials.subjects, ("streams", "floc-faces")), [0, 5])
    assert batch.betas.shape == (2, len(ids["subj01"])) and batch.atlas_labels.max() == 7


def test_a_seed_below_0_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["simulate", str(tmp_path / "nsd"), "--preset", "tiny", "--seed", "-1"])
    err = capsys.readouterr().err
    assert err.startswith("bitllm: --seed: ") and "found -1" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_prepared_store_has_the_derived_and_the_simulated_questions(simulated):
    table = simulated.tasks
    assert set(table["task"]) == {
        "presence",
        "count",
        "choice",
        "category",
        "left_right",
        "vqa-v2",
        "visdial",
    }
    assert set(table["license"]) == {"none needed (simulated)"}
    assert set(table.index) <= set(simulated.stimuli.index)
    assert sorted(derive_from(simulated), key=lambda one: one.id) == sorted(
        (one for one in exchanges(simulated) if one.source == "derived"), key=lambda one: one.id
    )


def test_answers_are_true_of_the_scenes(simulated):
    scenes = pd.read_parquet(simulated.path.parent / "nsd/simulation_truth/scenes.parquet")
    for one in exchanges(simulated, tasks=["presence"]):
        scene = scenes.loc[one.nsd_id]
        names = {scene["object"], scene["partner"]}
        asked = one.id.split(":")[-1]
        assert (asked in names) == (one.answers[0][0] == "yes")
    colors = [one for one in exchanges(simulated, tasks=["vqa-v2"]) if one.question_type == "what color"]
    assert len(colors) > 100
    assert all(one.answers[0][0] == scenes.loc[one.nsd_id, "colour"] for one in colors)
