"""What an inspection says of the miniature store, counted by hand."""

import json

import numpy as np
import pytest

from bitllm.data.inspect import inspect_store, inspect_text, noise_ceiling_percent, render_inspection
from bitllm.files import sha256_of_file


def test_an_inspection_counts_what_is_there(store, written_release):
    inspection = inspect_store(store)
    subject = inspection["subjects"]["subj03"]
    assert (subject["n_sessions"], subject["n_trials"]) == (2, 24)
    assert subject["n_voxels"] == int(written_release.mask["subj03"].sum())
    seen = set(written_release.nsd_id["subj03"][:24].tolist())
    assert subject["images"]["test"] == len(seen & set(written_release.shared.tolist()))
    assert sum(subject["images"].values()) == len(seen)
    labels = written_release.labels["subj03", "streams"][written_release.mask["subj03"]]
    assert subject["labels"]["streams"] == {
        "early": int((labels == 1).sum()),
        "ventral": int((labels == 2).sum()),
    }
    betas = store.path / "subjects/subj03/betas.npy"
    assert subject["sha256"]["betas.npy"] == sha256_of_file(betas)
    assert inspection["images"]["test"] == 4
    assert inspection["captions"]["fewest"] == 5
    assert inspection["captions"]["most"] == 6
    assert inspection["bytes"]["pictures.npy"] == (store.path / "pictures.npy").stat().st_size


def test_voxels_out_of_view_in_a_session_are_counted_and_0_in_it(store, written_release):
    for subject, n_sessions in (("subj01", 3), ("subj03", 2)):
        data = store.subject(subject)
        # the miniature writes 0 for all trials of session 1 at the mask's last voxel
        out_of_view = np.flatnonzero(data.voxels["valid"] < 1)
        assert out_of_view.tolist() == [len(data.voxels) - 1]
        assert data.voxels["valid"].iloc[-1] == pytest.approx((n_sessions - 1) / n_sessions)
        assert (data.betas[(data.trials["session"] == 1).to_numpy(), -1] == 0).all()
        assert data.betas[(data.trials["session"] == 2).to_numpy(), -1].std() > 0
        assert inspect_store(store)["subjects"][subject]["n_voxels_out_of_view"] == 1
        assert written_release.mask[subject].sum() == len(data.voxels)
    assert "unseen" in inspect_text(inspect_store(store))


def test_an_inspection_is_json(store):
    inspection = inspect_store(store)
    assert json.loads(json.dumps(inspection)) == inspection


def test_the_noise_ceiling_follows_the_manual():
    # ncsnr 1: half of a single trial's variance is signal; of the mean of three, 1 / (1 + 1/3)
    assert noise_ceiling_percent(np.array([1.0, 0.0]), 1).tolist() == [50.0, 0.0]
    assert noise_ceiling_percent(np.array([1.0]), 3).tolist() == pytest.approx([75.0])


def test_the_text_shows_every_subject_and_label(store):
    inspection = inspect_store(store)
    text = inspect_text(inspection)
    assert "betas b3 in func1pt8mm, nsdgeneral" in " ".join(text.split())
    words = ["subj01", "subj02", "subj03", "V1v", "ventral", "per image", str(store.path)[:20]]
    assert all(word in text for word in words)
    assert inspection["subjects"]["subj01"]["sha256"]["betas.npy"][:8] in text
    assert render_inspection(inspection) is not None
