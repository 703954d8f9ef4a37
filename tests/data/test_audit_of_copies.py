"""Subjects with the same betas, and trials on two sides, however the copy was made."""

import numpy as np
import pandas as pd
import pytest

from bitllm.data.audit import audit
from bitllm.data.splits import make_split
from bitllm.data.store import open_store
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.write import write_store

N_VOXELS, N_TRIALS, N_SESSIONS = 90, 40, 3


def responses(seed: int) -> np.ndarray:
    """Betas of three sessions; each voxel has its own mean and deviation."""
    rng = np.random.default_rng(seed)
    shape = (N_SESSIONS, N_TRIALS, N_VOXELS)
    return rng.normal(rng.normal(0, 1, N_VOXELS), rng.uniform(0.5, 2, N_VOXELS), shape).astype(np.float32)


def subject(name: str, betas: np.ndarray, seed: int = 0) -> SubjectContents:
    shown = np.random.default_rng(seed).integers(0, 60, N_SESSIONS * N_TRIALS)
    trials = pd.DataFrame({"session": np.repeat(range(1, N_SESSIONS + 1), N_TRIALS), "nsd_id": shown})
    places = pd.DataFrame(
        np.random.default_rng(9).normal(size=(N_VOXELS, 3)), columns=["x_mm", "y_mm", "z_mm"]
    )
    return SubjectContents(name, trials, places, lambda session: betas[session - 1], f"{name}.npy")


def written(folder, people, normalization="training"):
    stimuli = pd.DataFrame({"nsd_id": range(60), "shared": np.arange(60) < 20})
    captions = pd.DataFrame({"nsd_id": range(60), "caption": [f"thing {n}" for n in range(60)]})
    whole = StoreContents(people, stimuli, captions, "header.yaml")
    write_store(folder, whole, StoreSettings(source="table", normalization=normalization))
    return open_store(folder)


def in_another_order(rng, betas):
    return betas[:, rng.permutation(N_TRIALS)]


COPIES = {
    "a byte copy": lambda rng, betas: betas,
    "trials in another order": in_another_order,
    "voxels in another order": lambda rng, betas: betas[..., rng.permutation(N_VOXELS)],
    "scaled": lambda rng, betas: betas * 0.37,
    "another unit for every voxel": lambda rng, betas: betas * rng.uniform(1, 3, N_VOXELS) + 2,
    "sessions swapped": lambda rng, betas: betas[::-1],
    "one session": lambda rng, betas: np.concatenate([betas[:1], responses(7)[1:]]).astype(np.float32),
}


@pytest.mark.parametrize("normalization", ["training", "across-sessions", "none"])
@pytest.mark.parametrize("how", COPIES)
def test_a_held_out_subject_with_the_betas_of_a_training_subject_is_a_leak(tmp_path, how, normalization):
    betas = responses(1)
    copied = COPIES[how](np.random.default_rng(3), betas).astype(np.float32)
    people = [subject("s1", betas), subject("s2", responses(2)), subject("s3", copied, seed=5)]
    store = written(tmp_path / "store", people, normalization)
    leaks = audit(store, split=make_split(store, "poster"))["leaks"]
    assert [leak.split(" (")[0] for leak in leaks] == [
        "one brain under two names: s3 has the betas of s1",
        "test subject in training: s3 has the betas of s1",
    ]
    n_copied = N_TRIALS if how == "one session" else N_TRIALS * N_SESSIONS
    assert f"({n_copied} of {N_TRIALS * N_SESSIONS} trials)" in leaks[0]


def test_subjects_that_saw_the_same_images_and_answer_alike_are_no_copies(tmp_path):
    """A third of the variance is the same in both: more than brains of two people share."""
    one, other = responses(1), responses(2)
    alike = (0.58 * one + 0.81 * other).astype(np.float32)
    store = written(tmp_path / "store", [subject("s1", one), subject("s2", alike)])
    assert audit(store)["leaks"] == []


def test_two_training_subjects_with_the_same_betas_are_told_without_a_split(tmp_path):
    people = [subject(name, responses(1)) for name in ("s1", "s2")]
    store = written(tmp_path / "store", people)
    assert audit(store)["leaks"] == ["one brain under two names: s2 has the betas of s1 (120 of 120 trials)"]


def test_a_test_trial_among_training_trials_is_found_where_the_first_voxels_are_out_of_view(tmp_path):
    betas = responses(1)
    betas[..., :70] = 0
    store = written(tmp_path / "store", [subject("s1", betas)])
    data = store.subject("s1")
    part = store.stimuli["part"].loc[data.trials["nsd_id"]].to_numpy()
    assert audit(store)["leaks"] == []
    path = store.path / "subjects/s1/betas.npy"
    stored = np.load(path)
    stored[np.flatnonzero(part == "train")[0]] = stored[np.flatnonzero(part == "test")[0]]
    np.save(path, stored)
    leaks = audit(open_store(store.path))["leaks"]
    assert [leak.split(" has")[0] for leak in leaks] == ["test trial in training: s1"]
