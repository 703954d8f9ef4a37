import json
import shutil
from pathlib import Path

import pytest

from bitllm.data.splits import save_split
from bitllm.data.store import open_store
from bitllm.errors import BitLlmError, CheckpointError, ConfigError, SplitError
from bitllm.evaluation.options import EvaluateOptions
from bitllm.evaluation.runs import checkpoint_folder, find_llm, find_split, open_checkpoints
from bitllm.model.checkpoint.base import load_llm


def test_a_run_finds_its_llm_split_aligner_and_says_what_is_missing(easy):
    run = open_checkpoints({"sft": easy.folder / "sft"}, easy.store)
    assert (Path(run.llm).name, run.split.sha256) == ("llm", easy.split.sha256)
    assert run.aligner is not None
    assert run.targets is None
    assert "name them with --targets" in run.not_run["similarity_to_training"]


def test_a_folder_that_is_not_there_or_holds_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nothing: expected the folder of a run, found none"):
        checkpoint_folder(tmp_path / "nothing", None)
    with pytest.raises(
        CheckpointError, match=r"expected a checkpoint of sft .* found neither; train the stage"
    ):
        checkpoint_folder(tmp_path, None)


def test_a_demo_folder_asks_which_system(easy):
    with pytest.raises(
        CheckpointError, match="expected one checkpoint, found the systems sft; name one with"
    ):
        checkpoint_folder(easy.folder, None)
    with pytest.raises(
        CheckpointError, match="expected a system of the run, found `stf`; did you mean `sft`"
    ):
        checkpoint_folder(easy.folder, "stf")
    assert checkpoint_folder(easy.folder, "sft") == easy.folder / "sft"


def test_a_model_path_that_does_not_exist_is_refused(easy, tmp_path):
    with pytest.raises(CheckpointError, match="gone: expected the folder of a base LLM, found none"):
        find_llm(easy.folder / "sft", given=str(tmp_path / "gone"))
    shutil.copytree(easy.folder / "sft", tmp_path / "sft")
    with pytest.raises(CheckpointError, match=r"base LLM `llm` .* --llm PATH"):
        find_llm(tmp_path / "sft", given=None)
    assert find_llm(tmp_path / "sft", given="meta-llama/Llama-3.2-3B-Instruct").startswith("meta")


def test_a_folder_without_a_model_is_refused(easy, tmp_path):
    with pytest.raises(ConfigError, match="expected a folder or hub id of a Llama"):
        open_checkpoints({"sft": easy.folder / "sft"}, easy.store, EvaluateOptions(llm=str(tmp_path)))


def test_a_checkpoint_of_another_base_llm_is_refused(easy, tmp_path):
    base = load_llm(easy.folder / "llm")
    base.llm.model.embed_tokens.weight.data += 1
    base.llm.save_pretrained(tmp_path / "other")
    base.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"base LLM .*llm .* found other "):
        open_checkpoints(
            {"sft": easy.folder / "sft"}, easy.store, EvaluateOptions(llm=str(tmp_path / "other"))
        )


def test_a_run_of_another_split_is_refused(easy, tmp_path, resealed):
    fewer = resealed(easy.split, test_images=frozenset(sorted(easy.split.test_images)[2:]))
    with pytest.raises(SplitError, match=f"{fewer.sha256[:12]}.*, found others"):
        find_split(easy.folder / "sft", easy.store, fewer.sha256, given=None)
    named = resealed(fewer, name="own")
    save_split(named, tmp_path / "own.json")
    found = find_split(easy.folder / "sft", easy.store, named.sha256, given=tmp_path / "own.json")
    assert found == named


def test_a_split_that_is_named_is_never_ignored(easy, tmp_path, resealed):
    """Not even where the split of the run is a preset of the store."""
    run = easy.folder / "sft"
    save_split(easy.split, tmp_path / "own.json")
    assert find_split(run, easy.store, easy.split.sha256, given=tmp_path / "own.json") == easy.split
    other = resealed(easy.split, name="other", test_images=frozenset(sorted(easy.split.test_images)[2:]))
    save_split(other, tmp_path / "other.json")
    with pytest.raises(SplitError, match=rf"other\.json.*{easy.split.sha256[:12]}.*{other.sha256[:12]}"):
        find_split(run, easy.store, easy.split.sha256, given=tmp_path / "other.json")
    with pytest.raises(BitLlmError, match=r"nothing\.json"):
        find_split(run, easy.store, easy.split.sha256, given=tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="--judge-on"):
        open_checkpoints(
            {"sft": run}, easy.store, EvaluateOptions(split=tmp_path / "own.json", judge_on="poster")
        )


@pytest.fixture(scope="module")
def other_store(easy, tmp_path_factory):
    """The easy brain's store as another normalization would give it: the same split, other betas."""
    place = tmp_path_factory.mktemp("other") / "store"
    shutil.copytree(easy.store.path, place)
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | {"normalisation": "another"}))
    return open_store(place)


def test_a_store_that_the_run_was_not_trained_on_is_refused_though_its_split_is_the_same(easy, other_store):
    with pytest.raises(SplitError, match=r"expected the store that .*sft was trained on .* --judge-on SPLIT"):
        open_checkpoints({"sft": easy.folder / "sft"}, other_store)
    with pytest.raises(
        SplitError, match="--judge-on: expected one of poster, develop or the file of a split"
    ):
        open_checkpoints({"sft": easy.folder / "sft"}, other_store, EvaluateOptions(judge_on="postre"))


def test_a_store_in_the_subjects_own_space_is_refused_and_one_on_fsaverage_is_converted(
    easy, other_store, tmp_path
):
    place = tmp_path / "store"
    shutil.copytree(other_store.path, place)
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | {"space": "fsaverage"}))
    options = EvaluateOptions(judge_on="poster")
    run = open_checkpoints({"sft": easy.folder / "sft"}, open_store(place), options)
    assert "are converted from `fsaverage` to that of the run, `func1pt8mm`" in run.notes[0]
    subject = easy.store.subjects[0]
    moved = run.store.subject(subject).voxels["z_mm"] - easy.store.subject(subject).voxels["z_mm"]
    assert moved.abs().max() > 0.5
    for name in ("sft", "llm"):
        shutil.copytree(easy.folder / name, tmp_path / name)
    card = json.loads((tmp_path / "sft/bitllm.json").read_text())
    (tmp_path / "sft/bitllm.json").write_text(json.dumps(card | {"space": "T1w"}))
    with pytest.raises(SplitError, match=r"trained in .`T1w`.*a subject's own space"):
        open_checkpoints({"sft": tmp_path / "sft"}, other_store, options)


def test_of_a_model_that_went_on_from_another_it_is_not_said_whom_it_never_saw(easy, tmp_path):
    own = open_checkpoints({"sft": easy.folder / "sft"}, easy.store)
    tested, trained_on = easy.split.test_subjects[0], easy.split.train_subjects[0]
    assert [own.was_trained_on(subject) for subject in (tested, trained_on)] == [False, True]
    for name in ("sft", "llm"):
        shutil.copytree(easy.folder / name, tmp_path / name)
    place = tmp_path / "sft" / "run.json"
    record = json.loads(place.read_text())
    record["learnt_from"]["sft to start from"] = "0" * 64
    place.write_text(json.dumps(record))
    went_on = open_checkpoints({"sft": tmp_path / "sft"}, easy.store)
    assert [went_on.was_trained_on(subject) for subject in (tested, trained_on)] == [None, True]
