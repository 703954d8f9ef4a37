import json
import shutil

import pytest
import torch

from bitllm.errors import CheckpointError
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm


@pytest.fixture(scope="module")
def base(easy):
    """The easy brain's LLM."""
    return load_llm(easy.folder / "llm")


def test_a_system_is_in_evaluation_mode_and_knows_its_split_and_atlases(easy, base):
    system = load_captioner(easy.folder / "sft", base)
    assert not system.model.training
    assert system.split_sha256 == easy.split.sha256
    assert system.atlases == easy.encoder.atlases
    assert system.encoder.n_brain_tokens == 4
    assert system.prompter.n_placeholders == 0


def test_a_prefix_system_asks_with_a_placeholder_for_each_brain_token(demo_folder):
    base = load_llm(demo_folder / "llm")
    system = load_captioner(demo_folder / "prefix", base)
    token = system.model.config.brain_token_id
    assert system.prompter.prompt_ids("what ?").count(token) == system.encoder.n_brain_tokens == 4


def test_a_folder_that_holds_neither_stage_is_refused(tmp_path, base):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of sft \(bitllm.json\) or rft"):
        load_captioner(tmp_path, base)


def test_an_rft_checkpoint_without_its_sft_checkpoint_is_refused(demo_folder, tmp_path):
    shutil.copytree(demo_folder / "rft", tmp_path / "rft")
    with pytest.raises(CheckpointError, match=r"rft: expected the sft checkpoint .*sft, found none"):
        load_captioner(tmp_path / "rft", load_llm(demo_folder / "llm"))


def test_a_system_of_another_llm_is_refused(demo_folder, base):
    with pytest.raises(CheckpointError, match=r"base LLM .* found llm "):
        load_captioner(demo_folder / "sft", base)


def test_precision_is_that_of_the_llm_alone(easy, base):
    system = load_captioner(easy.folder / "sft", base, precision="bf16")
    kinds = {name: tensor.dtype for name, tensor in system.model.state_dict().items()}
    assert kinds["model.language_model.layers.0.self_attn.q_proj.weight"] is torch.bfloat16
    assert kinds["model.language_model.layers.0.adapter.q_proj.weight"] is torch.float32
    assert kinds["model.encoder.queries"] is torch.float32


def test_the_card_of_rft_names_its_sft_checkpoint(demo_folder):
    card = json.loads((demo_folder / "rft" / "rft.json").read_text())
    assert card["stage"] == "rft"
    assert card["sft"].endswith("sft")
