"""The road of the simulated release: it prepares, and its store passes the checks of real data."""

import numpy as np
import pytest

from bitllm.data.dataset import select_trials
from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import check_split, make_split
from bitllm.data.store import Store, open_store
from bitllm.simulation.parameters import preset
from bitllm.simulation.release import simulate_release


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("simulated")
    simulate_release(folder / "nsd", preset("tiny"), seed=1)
    prepare_nsd(folder / "nsd", folder / "store")
    return open_store(folder / "store")


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
    import nibabel as nib

    for subject in simulated.subjects:
        left = (
            nib.load(root / f"nsddata/ppdata/{subject}/func1pt8mm/roi/lh.nsdgeneral.nii.gz").get_fdata() > 0
        )
        voxels = simulated.subject(subject).voxels
        is_left = left[tuple(voxels[axis].to_numpy() for axis in "ijk")]
        assert voxels["x_mm"][is_left].mean() < 0 < voxels["x_mm"][~is_left].mean()
