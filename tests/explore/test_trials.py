import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.evaluation.pairing import ADJACENT_TRIALS


def test_the_mean_of_an_image_is_that_of_its_repetitions(session, nsd_id):
    trials = session.trials("subj08")
    each = [trials.betas(nsd_id, number + 1) for number in range(len(trials.rows[nsd_id]))]
    np.testing.assert_allclose(trials.betas(nsd_id, None), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 0.1


def test_an_image_not_seen_and_a_repetition_too_many_are_refused(session, nsd_id):
    trials = session.trials("subj08")
    with pytest.raises(DataError, match="expected an image that was seen, found nsd_id 9999999"):
        trials.betas(9999999, None)
    with pytest.raises(DataError, match=f"expected repetition 1 to . of nsd_id {nsd_id}, found 50"):
        trials.betas(nsd_id, 50)


def test_other_images_are_of_the_same_use_and_no_neighbours(session, nsd_id):
    trials = session.trials("subj08")
    others = trials.others(nsd_id, n=12, single=False, seed=0)
    means = {other: trials.betas(other, None) for other in trials.rows}
    sessions = session.store.subject("subj08").trials["session"].to_numpy()
    for betas in others:
        image = next(other for other, mean in means.items() if np.array_equal(mean, betas))
        assert image != nsd_id
        assert trials.use_of(image) == "test"
        for a in trials.rows[nsd_id]:
            assert all(abs(a - b) > ADJACENT_TRIALS or sessions[a] != sessions[b] for b in trials.rows[image])
    again = trials.others(nsd_id, n=12, single=False, seed=0)
    np.testing.assert_array_equal(others, again)


def test_without_another_image_there_is_no_control(session, nsd_id, monkeypatch):
    trials = session.trials("subj08")
    alone = {nsd_id: trials.rows[nsd_id]}
    monkeypatch.setitem(trials.__dict__, "rows", alone)
    with pytest.raises(DataError, match="subj08: expected another test image"):
        trials.others(nsd_id, n=2, single=False, seed=0)
