import json

import numpy as np
import pandas as pd
import pytest
import torch

from bitllm.data.batch import Anatomies
from bitllm.errors import DataError, OutputError
from bitllm.evaluation.attribution import Attribution, attribution, random_weights, write_maps
from bitllm.evaluation.pooling import pooling_map
from bitllm.evaluation.rois import Roi, evaluate_regions, find_rois
from bitllm.evaluation.words import simulated_words


@pytest.fixture(scope="module")
def maps(system, found):
    """Attribution of the test trials."""
    return attribution(system, found, seed=0)


def test_an_atlas_stands_for_all_its_labels_and_for_each(easy):
    rois = {roi.name: roi.voxels for roi in find_rois(easy.store, "subj08", ["floc-places"])}
    labels = easy.store.subject("subj08").voxels["floc-places"].to_numpy()
    assert np.array_equal(rois["floc-places"], labels > 0)
    assert sum(voxels.sum() for name, voxels in rois.items() if ":" in name) == rois["floc-places"].sum()
    (one,) = find_rois(easy.store, "subj08", ["floc-places:PPA"])
    assert np.array_equal(one.voxels, rois["floc-places:PPA"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("floc-place", "expected an atlas of the store, found `floc-place`; did you mean `floc-places`"),
        ("floc-places:PPB", "expected a label of floc-places, found `PPB`; did you mean `PPA`"),
    ],
)
def test_an_unknown_atlas_or_label_is_refused_with_the_nearest_name(easy, wanted, message):
    with pytest.raises(DataError, match=message):
        find_rois(easy.store, "subj08", [wanted])


def test_silencing_everything_is_the_zero_control_and_nothing_loses_nothing(system, found):
    n = found.held_out.betas.shape[1]
    rois = [Roi("all", "", np.ones(n, dtype=bool)), Roi("none", "", np.zeros(n, dtype=bool))]
    everything, nothing = evaluate_regions(system, found, rois, simulated_words(), seed=0, max_new_tokens=12)
    n_words = found.tokens.n_words.sum()
    lost = (found.log2_probs["real"] - found.log2_probs["zero"]).sum() / n_words
    assert everything.bits_lost.value == pytest.approx(lost, abs=1e-4)
    gained = (found.log2_probs["real"] - found.log2_probs["permuted"]).sum() / n_words
    assert everything.bits_alone.value == pytest.approx(gained, abs=1e-4)
    assert nothing.bits_lost.value == pytest.approx(0, abs=1e-5)
    assert nothing.bits_alone.value == pytest.approx(0, abs=1e-5)
    assert nothing.cider_lost.value == 0
    assert {"animals", "colours", "settings"} <= set(everything.bits_lost_by_category)


def test_attribution_is_beta_times_the_slope_of_the_bits(system, found, maps):
    held_out = found.held_out
    voxel = int(np.abs(maps.trained[0]).argmax())
    betas = np.repeat(held_out.betas[:1], len(held_out.betas), axis=0)
    step = 0.05
    log2 = []
    for sign in (1, -1):
        moved = betas.copy()
        moved[0, voxel] += sign * step
        log2.append(log2_of_first_row(system, found, moved))
    slope = (log2[0] - log2[1]) / (2 * step)
    assert maps.trained[0, voxel] == pytest.approx(slope * held_out.betas[0, voxel], rel=0.05, abs=1e-4)


def log2_of_first_row(system, found, betas):
    """Mean log2 p of the first row's references under other betas."""
    tokens = found.held_out.brain_tokens(system.encoder, system.atlases, betas)
    log2 = system.log2_probs(found.tokens.answers, found.tokens.row, tokens)
    return log2[found.tokens.row == 0].sum(axis=1).mean()


def test_the_randomised_model_gives_another_map_and_leaves_the_trained_one_as_it_was(system, maps):
    before = {name: tensor.clone() for name, tensor in system.model.state_dict().items()}
    with random_weights(system.model, seed=0):
        assert not torch.equal(system.encoder.queries, before["model.encoder.queries"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in system.model.state_dict().items())
    signed = maps.summary([])["rank_correlation_with_randomised"]["signed"]
    assert abs(signed["mean"]) < 0.2
    assert signed["N"] == len(maps.trained)


def test_sizes_of_two_maps_correlate_by_their_betas_alone_and_gradients_do_not(rng):
    """Two models with nothing in common."""
    betas, gradient, other = rng.standard_normal((3, 20, 400))
    found = Attribution(betas, gradient, other).summary([])["rank_correlation_with_randomised"]
    assert found["absolute"]["mean"] > 0.3
    assert abs(found["absolute_gradient"]["mean"]) < 0.05
    assert abs(found["signed"]["mean"]) < 0.05


def test_the_pooling_map_is_what_the_encoder_pools_with(system, held_out, maps, tmp_path):
    weights = pooling_map(system.encoder, held_out.store, "subj08", system.atlases)
    anatomies = Anatomies.of(held_out.store, ["subj08"], system.atlases)
    pooled = system.encoder.pool(
        torch.from_numpy(held_out.betas), anatomies.coords_mm[0], anatomies.atlas_labels[0]
    )
    assert np.allclose(held_out.betas @ weights.T, pooled.detach().numpy(), atol=1e-4)
    write_maps(system, held_out, maps, tmp_path / "maps")
    assert np.array_equal(np.load(tmp_path / "maps" / "pooling_map.npy"), weights)
    table = pd.read_parquet(tmp_path / "maps" / "voxels.parquet")
    assert np.allclose(table["attribution"], maps.trained.mean(axis=0))
    assert "fixed map" in json.loads((tmp_path / "maps" / "about.json").read_text())["pooling_map.npy"]
    with pytest.raises(OutputError, match="expected an empty or a new folder"):
        write_maps(system, held_out, maps, tmp_path / "maps")
