import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bitllm.data.splits import save_split
from bitllm.data.store import open_store
from bitllm.errors import BitLlmError
from bitllm.evaluation.held_out import read_held_out
from bitllm.evaluation.options import EvaluateOptions
from bitllm.evaluation.results import Results, from_json
from bitllm.evaluation.table import read_evaluation
from bitllm.pipeline.evaluate import evaluate, place_name

OPTIONS = EvaluateOptions(max_new_tokens=4, seed=1, inputs=("zero", "other_subject", "constant"))


@pytest.fixture
def checkpoint(easy, tmp_path):
    """A checkpoint with its LLM, outside of a run's folder."""
    for name in ("sft", "llm"):
        shutil.copytree(easy.folder / name, tmp_path / "run" / name)
    return tmp_path / "run" / "sft"


@pytest.fixture
def other_store(easy, tmp_path):
    """The easy brain's store with other betas and without an atlas: the same split."""
    shutil.copytree(easy.store.path, tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text()) | {"normalisation": "another"}
    del manifest["atlases"]["streams"]
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    for path in (tmp_path / "store" / "subjects").glob("*/voxels.parquet"):
        pd.read_parquet(path).drop(columns="streams").to_parquet(path, index=False)
    return open_store(tmp_path / "store")


def test_a_checkpoint_alone_is_evaluated_once_with_its_regions(easy, checkpoint):
    said: list[str] = []
    options = replace(OPTIONS, rois="floc-places:PPA", tasks=("presence", "count"), questions_per_task=5)
    results = evaluate(checkpoint, easy.store.path, options, log=said.append)
    steps = ["evaluate encoder", "evaluate sft", "evaluate sft-questions", "evaluate regions"]
    assert [line.split("  ")[0] for line in said] == steps
    assert list(results.systems["sft"].averaged) == ["real", "permuted", "zero", "other_subject", "constant"]
    assert list(results.systems["sft"].single) == ["real", "permuted"]
    assert [region.name for region in results.regions] == ["floc-places:PPA"]
    asked = results.systems["sft"].questions.tasks["presence"]
    assert (asked.n_questions, asked.source, list(asked.inputs)) == (
        5,
        "derived",
        ["real", "permuted", "zero", "other_subject", "most_frequent"],
    )
    assert "--align" in results.about.not_run["retrieval"]
    saved = from_json(Results, json.loads((checkpoint / "results.json").read_text()), "results.json")
    assert saved == results
    again = evaluate(checkpoint, easy.store.path, options, log=said.append)
    assert all("kept from an earlier run" in line for line in said[4:])
    assert again.systems == results.systems


def test_another_store_has_a_place_of_its_own_and_says_so(easy, checkpoint, other_store, tmp_path):
    save_split(easy.split, tmp_path / "split.json")
    options = replace(OPTIONS, judge_on=str(tmp_path / "split.json"), likelihood="none")
    about = evaluate(checkpoint, other_store.path, options).about
    assert (about.is_store_of_training, about.is_subject_trained_on) == (False, None)
    assert about.store_sha256 == other_store.sha256
    assert any("has no atlas `streams`" in note for note in about.notes)
    place = checkpoint / f"evaluated.store-{other_store.sha256[:8]}.test.{about.subject}"
    found = read_evaluation(place)
    assert set(found.rows["nsd_id"]) == set(easy.split.test_images)
    assert found.rows["log2_p"].isna().all()
    assert not (checkpoint / "results.json").exists()


def test_validation_does_not_take_the_place_of_the_test(easy):
    held_out = read_held_out(easy.store, easy.split, averaged=True)
    assert place_name(held_out, is_own_store=True) == "."
    validation = replace(held_out, part="validation")
    assert place_name(validation, is_own_store=True) == f"evaluated.validation.{held_out.subject}"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"out": Path(__file__)}, "test_evaluate"),
        ({"seed": -1}, "--seed.*-1"),
        ({"max_new_tokens": 0}, "--max-new-tokens.*0"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_computed(easy, wrong, said):
    with pytest.raises(BitLlmError, match=said):
        evaluate(easy.folder / "sft", easy.store.path, EvaluateOptions(**wrong), progress=pytest.fail)
