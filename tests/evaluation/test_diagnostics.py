import numpy as np
import pytest

from bitllm.evaluation.diagnostics import cosine_real_zero, image_retrieval, nearest_rows


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def embeddings():
    """30 trials of 12 images with 12 pictures, in a space of 5."""
    rng = np.random.default_rng(0)
    nsd_id = rng.permutation(np.concatenate([np.arange(12), rng.integers(0, 12, 18)])) * 7 + 100
    gallery_id = np.arange(12) * 7 + 100
    return unit(rng.normal(size=(30, 5))), nsd_id, unit(rng.normal(size=(12, 5))), gallery_id


def test_cosines_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    real, zero = unit(rng.normal(size=(8, 4))), unit(rng.normal(size=(8, 4)))
    cosines = [sum(a * b for a, b in zip(x, y, strict=True)) for x, y in zip(real, zero, strict=True)]
    mean = sum(cosines) / 8
    sd = (sum((value - mean) ** 2 for value in cosines) / 7) ** 0.5
    assert cosine_real_zero(real, zero) == {"mean": pytest.approx(mean), "sd": pytest.approx(sd), "N": 8}


def test_an_encoder_that_ignores_its_input_has_cosine_one():
    rows = np.tile(unit(np.ones((1, 4))), (5, 1))
    assert cosine_real_zero(rows, rows) == {"mean": pytest.approx(1), "sd": pytest.approx(0), "N": 5}


def test_retrieval_is_that_of_a_loop_over_trials_and_pictures(embeddings):
    brain, nsd_id, gallery, gallery_id = embeddings
    ranks = []
    for row, image in zip(brain, nsd_id, strict=True):
        own = row @ gallery[gallery_id.tolist().index(image)]
        ranks.append(1 + sum(row @ picture > own + 1e-12 for picture in gallery))
    found = image_retrieval(brain, nsd_id, gallery, gallery_id, seed=0)
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    assert found["MedR"] == np.median(ranks)
    assert (found["N"], found["n_queries"]) == (12, 30)
    assert found["chance_R@10"] == pytest.approx(10 / 12)
    assert found["chance_MedR"] == 6.5
    assert found["low"] <= found["R@10"] <= found["high"]


def test_the_order_of_the_gallery_changes_nothing(embeddings):
    brain, nsd_id, gallery, gallery_id = embeddings
    order = np.random.default_rng(2).permutation(12)
    one = image_retrieval(brain, nsd_id, gallery, gallery_id, seed=0)
    other = image_retrieval(brain, nsd_id, gallery[order], gallery_id[order], seed=0)
    assert {key: one[key] for key in ("R@1", "R@10", "MedR")} == {
        key: other[key] for key in ("R@1", "R@10", "MedR")
    }


def test_perfect_embeddings_are_found_first_and_equal_ones_at_chance(embeddings):
    _, nsd_id, gallery, gallery_id = embeddings
    perfect = gallery[np.searchsorted(gallery_id, nsd_id)]
    assert image_retrieval(perfect, nsd_id, gallery, gallery_id, seed=0)["R@1"] == 1
    equal = np.tile(gallery[:1], (400, 1))
    same = np.tile(gallery[:1], (12, 1))
    found = image_retrieval(equal, np.tile(gallery_id, 34)[:400], same, gallery_id, seed=0)
    assert abs(found["R@1"] - 1 / 12) < 4 * (1 / 12 * 11 / 12 / 400) ** 0.5


def test_the_nearest_row_is_that_of_a_loop():
    rng = np.random.default_rng(3)
    queries, candidates = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    expected = [max(range(9), key=lambda row, q=query: q @ candidates[row]) for query in queries]
    assert nearest_rows(queries, candidates).tolist() == expected
