import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bitllm.data.store import open_store
from bitllm.data.targets import load_clip
from bitllm.errors import BitLlmError, DataError
from bitllm.evaluation.scoring import score_file
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer, score_estimates
from bitllm.evaluation.scoring.floors import human_ceiling
from bitllm.evaluation.scoring.score_file import (
    _of_store,
    bertscore_metric,
    clip_metrics,
    model_place,
    spice_metric,
)
from bitllm.metrics.bertscore import load_bert_scorer
from bitllm.metrics.clipscore import clip_score, ref_clip_score

CAPTIONS = ["a dog on grass", "", "a red bus"]
REFERENCES = [["a dog", "dogs on the grass"], ["two boats", "a boat"], ["a bus", "the red bus"]]


def test_bertscore_is_the_mean_over_captions_and_held_out_references(small_clip_folder):
    scorer = CaptionScorer(REFERENCES, extras=[bertscore_metric(str(small_clip_folder))])
    numbers = scorer.per_caption(CAPTIONS)
    plain = load_bert_scorer(small_clip_folder)
    value, low, high, _ = score_estimates(numbers, n_bootstrap=10)["BERTScore"]
    assert value == pytest.approx(plain.score(CAPTIONS, REFERENCES).mean(), rel=1e-5)
    assert low <= value <= high
    assert numbers.of_each()["BERTScore"][1] == 0
    swapped = [plain.score([r[k] for r in REFERENCES], [[r[1 - k]] for r in REFERENCES]) for k in (0, 1)]
    assert human_ceiling(scorer)["BERTScore"] == pytest.approx(np.mean(swapped), rel=1e-5)


def test_clip_scores_are_those_of_the_pictures_in_a_folder_or_a_store(
    small_clip_folder, easy_release, tmp_path
):
    store = open_store(easy_release / "store")
    nsd_ids = sorted(store.captions)[:3]
    ids = [str(i) for i in nsd_ids]
    pictures = store.pictures(nsd_ids)
    for name, picture in zip(ids, pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    embedder = load_clip(small_clip_folder)
    rows, texts = embedder.pictures(pictures), embedder.captions([f"A photo depicts {c}" for c in CAPTIONS])
    sets = [embedder.captions([f"A photo depicts {text}" for text in group]) for group in REFERENCES]
    for folder in (tmp_path, easy_release / "store"):
        extras = clip_metrics(str(small_clip_folder), folder, ids)
        metrics = CaptionScorer(REFERENCES, extras=extras).metrics(CAPTIONS)
        assert metrics["CLIP-S"] == pytest.approx(clip_score(rows, texts).mean(), rel=1e-4)
        assert metrics["RefCLIP-S"] == pytest.approx(ref_clip_score(rows, texts, sets).mean(), rel=1e-4)
    with pytest.raises(DataError, match=r"found a \(3 of 3\)"):
        clip_metrics(str(small_clip_folder), easy_release / "store", ["a", "b", "c"])


def test_pictures_of_a_store_are_found_by_the_names_of_its_images(easy_release, tmp_path):
    folder = shutil.copytree(easy_release / "store", tmp_path / "store")
    stimuli = pd.read_parquet(folder / "stimuli.parquet")
    names = [f"{n:04d}" if n % 2 else f"image {n}" for n in range(len(stimuli), 0, -1)]
    stimuli.assign(stimulus_name=names).to_parquet(folder / "stimuli.parquet")
    expected = open_store(folder).pictures(stimuli["nsd_id"].to_numpy()[[2, 5]])
    for ids in ([names[2], names[5]], [str(n) for n in stimuli["nsd_id"].to_numpy()[[2, 5]]]):
        np.testing.assert_array_equal(_of_store(lambda pictures: pictures, folder, ids), expected)
    with pytest.raises(DataError, match=r"found nobody \(1 of 2\)"):
        _of_store(lambda pictures: pictures, folder, [names[2], "nobody"])


def test_missing_and_damaged_pictures_are_named(small_clip_folder, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        clip_metrics(str(small_clip_folder), tmp_path / "nowhere", ["1"])
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(DataError, match=r"`2`.*4 of 5"):
        clip_metrics(str(small_clip_folder), tmp_path, list("12345"))
    with pytest.raises(DataError, match=r"1\.png"):
        clip_metrics(str(small_clip_folder), tmp_path, ["1"])


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere", "a/b/c", "no folder"])
def test_a_path_without_a_model_is_refused_before_any_network(name):
    with pytest.raises(DataError, match="expected a folder with a model, found none; check the path"):
        model_place(name)


def test_a_hub_id_stays_one_unless_the_hub_has_kept_it_here(tmp_path, monkeypatch):
    import huggingface_hub

    assert model_place(str(tmp_path)) == str(tmp_path)
    assert model_place("someone/model") == "someone/model"
    kept = tmp_path / "snapshot"
    kept.mkdir()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(kept / "config.json"))
    assert model_place("someone/model") == "someone/model"
    (kept / "model.safetensors").write_text("")
    assert model_place("someone/model") == str(kept)


def test_a_hub_id_that_cannot_be_had_is_an_error_of_one_line():
    with pytest.raises(BitLlmError, match="someone/model: expected a folder or hub id of an encoder"):
        bertscore_metric("someone/model")


def test_spice_is_the_mean_and_is_not_computed_for_floors(monkeypatch):
    monkeypatch.setattr(score_file, "spice", lambda words, _: np.arange(len(words)) * 10.0)
    scorer = CaptionScorer(REFERENCES, extras=[spice_metric()])
    assert scorer.per_caption(CAPTIONS, is_floor=False).total()["SPICE"] == 10
    assert "SPICE" not in scorer.metrics(CAPTIONS)
