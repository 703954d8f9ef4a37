import numpy as np
import pandas as pd
import pytest

from bitllm.experiments.encoders import fit_head, recall_at_10


def test_the_linear_head_is_ridge_regression_written_as_least_squares(rng):
    """The oracle appends the penalty as rows of data to ordinary least squares."""
    x, y = rng.standard_normal((50, 6)) * [1, 2, 3, 1, 1, 1], rng.standard_normal((50, 4))
    centred = x - x.mean(axis=0)
    strength = 7.0 * centred.var(axis=0).mean()
    padded_x = np.vstack([centred, np.sqrt(strength) * np.eye(6)])
    padded_y = np.vstack([y - y.mean(axis=0), np.zeros((6, 4))])
    weight = np.linalg.lstsq(padded_x, padded_y, rcond=None)[0]
    head = fit_head(x, y, 7.0)
    np.testing.assert_allclose(head.weight, weight, atol=1e-10)
    raw = (x - x.mean(axis=0)) @ weight + y.mean(axis=0)
    np.testing.assert_allclose(head(x), raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-10)


def test_a_head_fitted_on_a_linear_code_retrieves_and_one_on_shuffled_pairs_does_not(rng):
    gallery = rng.standard_normal((100, 16))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    code = rng.standard_normal((16, 24))
    training = rng.standard_normal((300, 16))
    tokens = training @ code + 0.1 * rng.standard_normal((300, 24))
    queries = gallery @ code
    target = np.arange(100)
    good, bad = fit_head(tokens, training, 1.0), fit_head(tokens, rng.permutation(training), 1.0)
    assert recall_at_10(good(queries), gallery, target, seed=0).mean() > 0.95
    assert recall_at_10(bad(queries), gallery, target, seed=0).mean() < 0.3


def test_equal_similarities_retrieve_at_chance():
    """All queries and all pictures alike: ties in random order give ten of a hundred."""
    same = np.ones((100, 4)) / 2
    found = [recall_at_10(same, same, np.arange(100), seed=seed).mean() for seed in range(20)]
    assert np.mean(found) == pytest.approx(0.1, abs=0.02)


def test_the_measures_of_an_encoder_are_columns_of_its_rows(quick):
    rows = pd.read_parquet(quick.out / "encoder" / "results.parquet")
    measured = rows[rows["recall_at_10_linear"].notna()]
    assert set(measured["control"]) == {"real", "permuted", "zero", "shuffle"}
    assert set(measured["system"]) == {"aligned", "trained", "random"}
    n_images = rows["nsd_id"].nunique()
    zero = measured[(measured["control"] == "zero") & (measured["system"] == "aligned")]
    assert zero["recall_at_10"].sum() == 10, f"one embedding for all: its ten first of {n_images} pictures"
    real = measured[measured["control"] == "real"]
    assert real["cosine_zero"].between(-1.0001, 1.0001).all()
    assert (real["cosine_zero_embedding"].notna() == (real["system"] == "aligned")).all()
    linear = real["system"] != "aligned"
    assert (real.loc[linear, "recall_at_10"] == real.loc[linear, "recall_at_10_linear"]).all()
