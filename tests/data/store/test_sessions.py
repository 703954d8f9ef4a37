"""Sessions with too few training trials, sessions of zeros, and names of subjects that look alike."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.audit import audit
from bitllm.data.inspect import inspect_store, inspect_text
from bitllm.data.store import open_store
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.write import write_store
from bitllm.errors import DataError


def contents(n_training_in_2: int, names: tuple[str, ...] = ("s1",)) -> StoreContents:
    """Two sessions of 24 trials: images 0 to 11 train, 12 to 23 test; in the second one so many training trials."""
    rng = np.random.default_rng(0)
    shown = np.concatenate(
        [
            np.arange(24),
            np.where(np.arange(24) < n_training_in_2, np.arange(24) % 12, 12 + np.arange(24) % 12),
        ]
    )
    trials = pd.DataFrame({"session": np.repeat([1, 2], 24), "nsd_id": shown})
    voxels = pd.DataFrame(rng.normal(size=(6, 3)), columns=["x_mm", "y_mm", "z_mm"])
    values = {name: rng.normal(2, 3, (2, 24, 6)).astype(np.float32) for name in names}
    subjects = [
        SubjectContents(n, trials, voxels, lambda session, n=n: values[n][session - 1], "betas.npy")
        for n in names
    ]
    part = ["train"] * 12 + ["test"] * 12
    stimuli = pd.DataFrame({"nsd_id": range(24), "shared": np.arange(24) >= 12, "part": part})
    captions = pd.DataFrame({"nsd_id": range(24), "caption": [f"thing {n}" for n in range(24)]})
    return StoreContents(subjects, stimuli, captions, "header.yaml")


def settings(normalization: str) -> StoreSettings:
    return StoreSettings(source="table", normalization=normalization)


@pytest.mark.parametrize("normalization", ["training", "not-shared"])
@pytest.mark.parametrize("n_training", [0, 1])
def test_a_session_with_too_few_training_trials_is_refused_before_betas_are_read(
    tmp_path, n_training, normalization
):
    whole = contents(n_training)
    unread = replace(whole.subjects[0], read_session=lambda _: pytest.fail("betas were read"))
    with pytest.raises(
        DataError, match=rf"betas\.npy.*found {n_training} in session 2.*`across-sessions`"
    ) as caught:
        write_store(tmp_path / "store", replace(whole, subjects=[unread]), settings(normalization))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_training", [0, 1])
def test_across_sessions_a_session_of_test_trials_has_the_statistics_of_the_others(tmp_path, n_training):
    whole = contents(n_training)
    write_store(tmp_path / "store", whole, settings("across-sessions"))
    values = np.concatenate([whole.subjects[0].read_session(s) for s in (1, 2)]).astype(np.float64)
    training = values[whole.subjects[0].trials["nsd_id"].to_numpy() < 12]
    expected = (values - training.mean(0)) / training.std(0)
    store = open_store(tmp_path / "store")
    np.testing.assert_allclose(store.subject("s1").betas, expected, rtol=2e-3, atol=1e-3)
    assert inspect_store(store)["subjects"]["s1"]["sessions_of_zeros"] == []


def test_a_session_with_few_training_trials_is_noted(tmp_path):
    notes = []
    write_store(tmp_path / "few", contents(9), settings("training"), note=notes.append)
    assert len(notes) == 1 and "session 2 has only 9" in notes[0] and "across-sessions" in notes[0]
    notes.clear()
    write_store(tmp_path / "enough", contents(10), settings("training"), note=notes.append)
    write_store(tmp_path / "across", contents(9), settings("across-sessions"), note=notes.append)
    assert notes == []


def test_a_subject_without_training_trials_is_told_what_would_help(tmp_path):
    whole = contents(1)
    of_test = whole.subjects[0].trials.assign(nsd_id=12 + np.arange(48) % 12)
    with pytest.raises(DataError, match="found 0"):
        write_store(
            tmp_path / "store",
            replace(whole, subjects=[replace(whole.subjects[0], trials=of_test)]),
            settings("across-sessions"),
        )


def test_a_session_that_does_not_vary_is_refused(tmp_path):
    whole = contents(12)
    one = replace(whole.subjects[0], read_session=lambda session: np.full((24, 6), 3.0, np.float32))
    with pytest.raises(DataError, match=r"s1 session 1.*6 of 6"):
        write_store(tmp_path / "store", replace(whole, subjects=[one]), settings("training"))


def test_inspect_and_audit_tell_of_sessions_of_zeros_in_a_store_of_an_earlier_version(tmp_path, capsys):
    write_store(tmp_path / "store", contents(12), settings("training"))
    path = tmp_path / "store/subjects/s1/betas.npy"
    betas = np.load(path)
    betas[24:] = 0
    np.save(path, betas)
    store = open_store(tmp_path / "store")
    assert inspect_store(store)["subjects"]["s1"]["sessions_of_zeros"] == [2]
    assert "s1: all betas are 0 in session 2" in inspect_text(inspect_store(store))
    assert ["s1 are 0 in session 2" in note for note in audit(store)["notes"]] == [True]
    main(["audit", str(tmp_path / "store")])
    assert "0 in session 2" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["S1", "s01", "s1 ", "\uff531", "sub-s1", "s1"])
def test_names_of_subjects_that_look_alike_are_refused(tmp_path, other):
    with pytest.raises(DataError, match=r"header\.yaml.*`s1`") as caught:
        write_store(tmp_path / "store", contents(12, ("s1", other)), settings("training"))
    assert "\n" not in str(caught.value)


def test_names_in_composed_and_decomposed_form_are_one_and_other_numbers_are_not(tmp_path):
    with pytest.raises(DataError, match="caf"):
        write_store(tmp_path / "a", contents(12, ("caf\u00e9", "cafe\u0301")), settings("training"))
    write_store(tmp_path / "b", contents(12, ("s1", "s10", "s100", "s101")), settings("training"))
    assert open_store(tmp_path / "b").subjects == ("s1", "s10", "s100", "s101")
