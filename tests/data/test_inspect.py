"""What an inspection says of the miniature store, counted by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from bitllm.data.inspect import inspect_store, inspect_text, noise_ceiling_percent, render_inspection
from bitllm.data.store import open_store
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


def in_nsd_sizes(inspection: dict) -> dict:
    """The same inspection with eight subjects and the counts of NSD."""
    of_nsd = {"n_sessions": 40, "n_trials": 30_000, "n_voxels": 15_724, "n_voxels_out_of_view": 1_234}
    images = {"train": 8_280, "validation": 720, "test": 1_000}
    subject = inspection["subjects"]["subj01"] | of_nsd | {"images": images}
    subject["noise_ceiling_percent"] = {"1": 12.3, "3": 33.1}
    subject["labels"] = {
        "prf-visualrois": {"V1v": 1_111},
        "a long name of an atlas": {"and of a label": 15_723},
    }
    subjects = {f"subj{n:02d}": subject for n in range(1, 9)}
    return inspection | {"subjects": subjects}


def test_the_counts_of_nsd_are_whole_in_80_columns(store):
    lines = inspect_text(in_nsd_sizes(inspect_store(store)), width=80).splitlines()
    assert "\u2026" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.split()[:1] == ["subj03"])
    assert row.split()[1:-1] == ["40", "30,000", "15,724", "8,280", "720", "1,000", "1,234", "12.3", "33.1"]
    assert sum(line.count("15,723") for line in lines) == 8
    heading = next(line for line in lines if "sess." in line).split()
    assert heading[1:10] == ["sess.", "trials", "voxels", "train", "valid.", "test", "unseen", "NC1", "%"]


def test_long_names_of_subjects_are_folded_and_numbers_are_not(store):
    inspection = in_nsd_sizes(inspect_store(store))
    subject = inspection["subjects"]["subj01"] | {"n_trials": 300_000, "n_voxels": 327_684}
    named = {f"sub-control{n:02d}": subject for n in range(1, 9)}
    text = inspect_text(inspection | {"subjects": named}, width=80)
    assert "\u2026" not in text
    assert text.count("300,000") == text.count("327,684") == text.count("15,723") == 8


def test_a_noise_ceiling_that_nobody_measured_is_no_zero(copied_store):
    path = copied_store / "subjects/subj02/voxels.parquet"
    pd.read_parquet(path).assign(ncsnr=np.float32(0)).to_parquet(path)
    inspection = inspect_store(open_store(copied_store))
    assert inspection["subjects"]["subj02"]["noise_ceiling_percent"] == {"1": None, "3": None}
    assert all(v > 0 for v in inspection["subjects"]["subj01"]["noise_ceiling_percent"].values())
    lines = inspect_text(inspection).splitlines()
    assert next(line for line in lines if line.strip().startswith("subj02")).split()[-3:-1] == ["–", "–"]
    assert "– where it is not known" in " ".join(" ".join(lines).split())


def test_names_of_sessions_are_shown_beside_their_numbers(copied_store):
    path = copied_store / "subjects/subj03/trials.parquet"
    trials = pd.read_parquet(path)
    trials.assign(session_name=trials["session"].map({1: "pre", 2: "post"})).to_parquet(path)
    inspection = inspect_store(open_store(copied_store))
    assert inspection["subjects"]["subj03"]["session_names"] == {"1": "pre", "2": "post"}
    assert inspection["subjects"]["subj01"]["session_names"] == {}
    line = next(line for line in inspect_text(inspection).splitlines() if line.startswith("sessions"))
    assert line.split()[1:] == ["subj03:", "1", "=", "pre,", "2", "=", "post"]
