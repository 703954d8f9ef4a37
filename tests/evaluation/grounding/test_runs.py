import shutil

import pytest

from bitllm.data.splits import save_split
from bitllm.errors import CheckpointError, ConfigError, SplitError
from bitllm.evaluation.grounding.runs import checkpoint_folder, find_llm, find_split, open_run
from bitllm.model.checkpoint.base import load_llm


def test_a_run_finds_its_llm_split_aligner_and_says_what_is_missing(easy):
    run = open_run(easy.folder / "sft", easy.store)
    assert (run.llm, run.split.sha256) == ("llm", easy.split.sha256)
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
    with pytest.raises(CheckpointError, match=r"expected its base LLM `llm` beside it, .* with --llm PATH"):
        find_llm(tmp_path / "sft", given=None)
    assert find_llm(tmp_path / "sft", given="meta-llama/Llama-3.2-3B-Instruct").startswith("meta")


def test_a_folder_without_a_model_is_refused(easy, tmp_path):
    with pytest.raises(ConfigError, match="expected a folder or hub id of a Llama"):
        open_run(easy.folder / "sft", easy.store, llm=str(tmp_path))


def test_a_checkpoint_of_another_base_llm_is_refused(easy, tmp_path):
    base = load_llm(easy.folder / "llm")
    base.llm.model.embed_tokens.weight.data += 1
    base.llm.save_pretrained(tmp_path / "other")
    base.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=r"trained on the base LLM llm .* found other .*; load that LLM"
    ):
        open_run(easy.folder / "sft", easy.store, llm=str(tmp_path / "other"))


def test_a_run_of_another_split_is_refused(easy, tmp_path, resealed):
    fewer = resealed(easy.split, test_images=frozenset(sorted(easy.split.test_images)[2:]))
    with pytest.raises(SplitError, match=f"trained on a split with the checksum {fewer.sha256[:12]}, found"):
        find_split(easy.folder / "sft", easy.store, fewer.sha256, given=None)
    named = resealed(fewer, name="own")
    save_split(named, tmp_path / "own.json")
    found = find_split(easy.folder / "sft", easy.store, named.sha256, given=tmp_path / "own.json")
    assert found == named
