"""Pooling maps are those of the encoder, and are read as they were written."""

import json

import numpy as np
import pytest
import torch

from bitllm.data.batch import Anatomies
from bitllm.data.store import open_store
from bitllm.errors import DataError
from bitllm.evaluation.pooling import MAPS, pooling_maps, read_maps, write_maps
from bitllm.model.aligner import load_aligner


def test_a_pooling_map_is_the_mean_over_queries_as_a_multiple_of_the_mean_weight(demo_folder):
    store = open_store(demo_folder / "store")
    atlases = json.loads((demo_folder / "align" / "aligner.json").read_text())["atlases"]
    encoder = load_aligner(demo_folder / "align").encoder
    maps = pooling_maps(encoder, store, atlases)
    assert list(maps) == list(store.subjects)
    anatomy = Anatomies.of(store, ["subj08"], atlases)
    with torch.no_grad():
        weights = encoder.pooling_map(anatomy.coords_mm[0], anatomy.atlas_labels[0]).numpy()
    np.testing.assert_allclose(maps["subj08"], weights.mean(axis=0) / weights.mean(), rtol=1e-5)


def test_maps_are_read_as_written_and_damage_is_named(tmp_path):
    assert read_maps(tmp_path) == {}
    write_maps(tmp_path, {"subj01": np.array([0.5, 1.5], np.float32)})
    np.testing.assert_array_equal(read_maps(tmp_path)["subj01"], [0.5, 1.5])
    (tmp_path / MAPS).write_bytes((tmp_path / MAPS).read_bytes()[:40])
    with pytest.raises(DataError, match=MAPS):
        read_maps(tmp_path)
