"""The second simulated data set: read by the reader of the real one, with the truth that it was made from."""

import json

import numpy as np
import pytest

from bitllm.data.shared_images import audit_two_stores
from bitllm.data.store import open_store
from bitllm.errors import DataError
from bitllm.simulation.bold5000 import simulate_bold5000
from bitllm.simulation.cortex import make_cortex
from bitllm.simulation.parameters import SimulationConfig


def test_it_is_read_as_bold5000_with_places_in_mni(made, easy_release):
    root, store = made
    record = json.loads((root / "BOLD5000/simulation.json").read_text())
    assert (store.manifest.source, store.manifest.space) == ("simulated", "MNI152NLin2009cAsym")
    assert store.manifest.simulation == record
    assert store.subjects == ("CSI1", "CSI2", "CSI3", "CSI4")
    assert set(store.atlases["bold5000"].values()) == {"EarlyVis", "LOC", "OPA", "PPA", "RSC"}
    nsd = json.loads((easy_release / "nsd/simulation.json").read_text())
    config = SimulationConfig.parse(record["parameters"])
    for person, name in enumerate(store.subjects):
        cortex = make_cortex(config, 100 + 4 * record["seed"] + person, seed=nsd["seed"])
        mm = store.subject(name).voxels[["x_mm", "y_mm", "z_mm"]].to_numpy()
        np.testing.assert_allclose(mm, cortex.mni_mm[cortex.brain], atol=0.1)
    of_nsd = open_store(easy_release / "store")
    assert len(store.subject("CSI1").voxels) != len(of_nsd.subject("subj01").voxels)
    assert len(store.subject("CSI4").trials) < len(store.subject("CSI3").trials)


def test_repeats_agree_where_the_brain_responds(made):
    _, store = made
    data = store.subject("CSI1")
    is_visual = (data.voxels["bold5000"] > 0).to_numpy()
    trials = data.trials
    first, second = (
        np.asarray(data.betas)[trials.index[trials["shared"] & (trials["repetition"] == n)]].astype(
            np.float32
        )
        for n in (0, 1)
    )
    order = [trials["nsd_id"][trials["shared"] & (trials["repetition"] == n)].to_numpy() for n in (0, 1)]
    first, second = first[np.argsort(order[0])], second[np.argsort(order[1])]
    same = np.mean(first[:, is_visual] * second[:, is_visual])
    other = np.mean(first[:, is_visual] * np.roll(second, 1, axis=0)[:, is_visual])
    assert same > other + 0.1


def test_the_photographs_that_it_shares_with_nsd_are_found_by_the_audit(made, easy_release):
    _, store = made
    of_nsd = open_store(easy_release / "store")
    one, two = (s.stimuli.set_index("coco_id")["part"].to_dict() for s in (of_nsd, store))
    shared = sorted(one.keys() & two.keys())
    assert 0.4 * len(two) < len(shared) <= 0.5 * len(two)  # a few planned images were never shown in NSD
    leaked = {
        side: [n for n in shared if parts[0][n] == "test" != parts[1][n]]
        for side, parts in (("nsd", (one, two)), ("bold5000", (two, one)))
    }
    assert all(leaked.values())
    found = audit_two_stores(of_nsd, store)
    between = [line for line in found["leaks"] if line.startswith("one photograph in two stores")]
    assert [
        f"({len(of_side)} in all)" in line for of_side, line in zip(leaked.values(), between, strict=True)
    ] == [
        True,
        True,
    ]
    same = [n for n in shared if one[n] == two[n]]
    of_one, of_two = (s.stimuli.reset_index().set_index("coco_id")["nsd_id"] for s in (of_nsd, store))
    assert all(of_nsd.captions[of_one[n]] == store.captions[of_two[n]] for n in same)


def test_a_release_that_is_not_simulated_is_refused(tmp_path):
    (tmp_path / "nsd").mkdir()
    with pytest.raises(DataError, match=r"nsd: expected a simulated NSD release"):
        simulate_bold5000(tmp_path / "out", tmp_path / "nsd", seed=0)
