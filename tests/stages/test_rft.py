import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitllm.errors import CheckpointError, ConfigError, SealedTestError, SplitError, TrainingError
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.checkpoint.weights import sft_beneath
from bitllm.stages import rft
from bitllm.stages.rft import RftConfig, train_rft
from bitllm.training.loop import OptimizerConfig, RunContext, TrainerSettings

SETTINGS = {
    "n_captions": 4,
    "max_new_tokens": 6,
    "lora_rank": 2,
    "optimizer": {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.0, "warmup_steps": 0}
    | {"log_every": 1},
    "validate_every": 2,
}
FEW_STEPS = RftConfig.parse(SETTINGS)


class WordReward:
    """1 for a caption that says the word, else 0."""

    def __init__(self, word):
        self.word = word

    def __call__(self, answers):
        return {"word": np.array([float(self.word in caption.split()) for caption in answers.captions])}


class NaNReward(WordReward):
    def __call__(self, answers):
        return {"word": np.full(len(answers.captions), np.nan)}


def train(easy, folder, config=FEW_STEPS, *, reward=None, split=None, seed=0, context=None):
    train_rft(
        easy.store,
        split or easy.split,
        folder,
        sft_folder=easy.folder / "sft",
        llm_path=easy.folder / "llm",
        make_reward=lambda trials: reward or WordReward("on"),
        config=config,
        seed=seed,
        context=context or RunContext(),
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def bytes_of(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(easy, tmp_path_factory):
    """Three steps of rft; the sft checkpoint and the LLM folder are untouched by it."""
    folder = tmp_path_factory.mktemp("rft") / "rft"
    before = bytes_of(easy.folder / "sft"), bytes_of(easy.folder / "llm")
    train(easy, folder)
    assert (bytes_of(easy.folder / "sft"), bytes_of(easy.folder / "llm")) == before
    return folder


def test_rft_saves_lora_of_every_linear_layer_of_the_llm_and_nothing_else(trained):
    names = set(load_file(trained / "adapter_model.safetensors"))
    linear = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert names == {
        f"base_model.model.model.language_model.layers.{layer}.{module}.lora_{side}.weight"
        for layer in (0, 1)
        for module in linear
        for side in "AB"
    }
    files = {path.name for path in trained.iterdir()}
    lora = {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert files == lora | {"rft.json", "log.jsonl", "run.json", "runs"}


def test_every_lora_tensor_has_moved(trained):
    """B starts at 0; A has moved where its gradient, which B = 0 holds back for one step, came through."""
    tensors = load_file(trained / "adapter_model.safetensors")
    assert all(bool((tensor != 0).any()) for name, tensor in tensors.items() if ".lora_B." in name)
    card = json.loads((trained / "rft.json").read_text())
    assert card["n_trainable"] == sum(tensor.numel() for tensor in tensors.values())


def test_lora_reaches_the_interface_where_it_is_asked_to(easy, tmp_path):
    train(easy, tmp_path / "rft", RftConfig.parse({**SETTINGS, "lora_targets": "llm_and_interface"}))
    names = load_file(tmp_path / "rft" / "adapter_model.safetensors")
    assert sum(".adapter." in name for name in names) == 2 * 2 * 2  # q and o, two layers, A and B
    assert sum(".interface.memory." in name for name in names) == 2 * 2 * 2
    assert not any(".encoder." in name for name in names)


def test_a_reward_for_one_word_makes_the_word_more_frequent(easy, tmp_path):
    config = RftConfig.parse(
        {
            **SETTINGS,
            "n_captions": 8,
            "lora_rank": 4,
            "kl_weight": 0.0,
            "optimizer": SETTINGS["optimizer"] | {"steps": 16, "batch_size": 8, "learning_rate": 2e-2},
            "validate_every": 1000,
        }
    )
    train(easy, tmp_path / "rft", config)
    rewards = [row["reward"] for row in log_of(tmp_path / "rft") if "reward" in row]
    assert len(rewards) == 16
    # 64 captions a step: the standard error of each mean is below .04
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.25


def test_a_reward_that_is_not_a_number_stops_the_run_after_a_checkpoint(easy, tmp_path):
    with pytest.raises(TrainingError, match=r"reward: .*found nan"):
        train(easy, tmp_path / "rft", reward=NaNReward("on"))
    assert [path.name for path in tmp_path.iterdir()] == ["rft.training"]
    assert [path.name for path in (tmp_path / "rft.training" / "checkpoints").iterdir()] == ["step-00000000"]


def test_the_log_holds_each_part_of_the_reward_and_the_validation_with_its_control(trained):
    rows = log_of(trained)
    sampled = [row for row in rows if "reward" in row]
    parts = {"reward", "reward_word", "spread_word", "flat_groups", "length", "distinct", "kl", "ended"}
    assert [row["step"] for row in sampled] == [1, 2, 3]
    assert all(parts <= set(row) for row in sampled)
    assert sampled[0]["kl"] == pytest.approx(0, abs=1e-6)  # the policy starts as its reference
    watched = [row for row in rows if "validation_cider" in row]
    assert [row["step"] for row in watched] == [2, 3]
    assert all("validation_real_minus_permuted" in row for row in watched)


def test_the_same_seed_gives_the_same_lora_and_another_seed_another(easy, trained, tmp_path):
    train(easy, tmp_path / "again")
    train(easy, tmp_path / "other", seed=1)
    first = (trained / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == first
    assert (tmp_path / "other" / "adapter_model.safetensors").read_bytes() != first


def test_a_loaded_rft_system_has_the_sft_weights_and_speaks_otherwise(easy, tmp_path):
    config = RftConfig.parse({**SETTINGS, "optimizer": SETTINGS["optimizer"] | {"learning_rate": 0.1}})
    folder = tmp_path / "strong rft"
    train(easy, folder, config)
    base = load_llm(easy.folder / "llm")
    sft = load_captioner(easy.folder / "sft", base)
    after = load_captioner(folder, base)
    moved = after.model.state_dict()
    for name, tensor in sft.model.state_dict().items():
        place = name if name in moved else name.replace("_proj.weight", "_proj.base_layer.weight")
        assert torch.equal(moved[place], tensor), name
    brain_tokens = torch.randn(2, 4, 32)
    one, other = (
        s.model(input_ids=torch.tensor([[5, 6]] * 2), brain_tokens=brain_tokens).logits for s in (sft, after)
    )
    assert not torch.allclose(one, other, atol=1e-3)
    assert len(after.greedy(brain_tokens, max_new_tokens=4)) == 2
    assert (after.split_sha256, after.atlases) == (easy.split.sha256, easy.encoder.atlases)


def test_an_rft_is_loaded_on_the_sft_that_it_was_trained_on_and_on_no_other(easy, trained, tmp_path):
    card = json.loads((trained / "rft.json").read_text())
    assert trained.parent / card["sft"] != trained.parent / "sft"
    assert (trained.parent / card["sft"]).resolve() == (easy.folder / "sft").resolve()
    assert sft_beneath(trained).samefile(easy.folder / "sft")
    moved = tmp_path / "rft"
    shutil.copytree(trained, moved)
    (moved / "rft.json").write_text(json.dumps(card | {"sft": "sft"}))
    with pytest.raises(CheckpointError, match=r"expected the sft checkpoint .*, found none"):
        load_captioner(moved, load_llm(easy.folder / "llm"))
    shutil.copytree(easy.folder / "sft", tmp_path / "sft")
    weights = load_file(tmp_path / "sft" / "model.safetensors")
    save_file(
        {name: tensor + 0.01 for name, tensor in weights.items()}, tmp_path / "sft" / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="found other weights"):
        load_captioner(moved, load_llm(easy.folder / "llm"))


def test_dapo_is_refused_in_micro_batches(easy, tmp_path):
    config = RftConfig.parse({**SETTINGS, "loss_type": "dapo"})
    with pytest.raises(ConfigError, match=r"micro_batch 2"):
        train(easy, tmp_path / "rft", config, context=RunContext(TrainerSettings(micro_batch=2)))
    assert not list(tmp_path.iterdir())
    train(easy, tmp_path / "rft", config)
    assert len([row for row in log_of(tmp_path / "rft") if "reward" in row]) == 3


def test_bf16_policies_sample_and_learn(easy, tmp_path):
    train(easy, tmp_path / "rft", RftConfig.parse({**SETTINGS, "precision": "bf16"}))
    saved = load_file(tmp_path / "rft" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_the_test_part_is_sealed_while_rft_is_fitted(easy, tmp_path, monkeypatch):
    original = rft.select_trials
    monkeypatch.setattr(
        rft, "select_trials", lambda store, split, part, **more: original(store, split, "test", **more)
    )
    with pytest.raises(SealedTestError, match="no use of the test part"):
        train(easy, tmp_path / "rft")
    assert list(tmp_path.iterdir()) == []


def test_a_split_with_a_test_image_in_training_is_refused(easy, resealed, tmp_path):
    leak = resealed(easy.split, train_images=easy.split.train_images | {min(easy.split.test_images)})
    with pytest.raises(SplitError, match="expected train_images and test_images to be disjoint"):
        train(easy, tmp_path / "rft", split=leak)


def test_the_reward_is_built_from_training_images_alone(easy, tmp_path):
    asked = []
    train_rft(
        easy.store,
        easy.split,
        tmp_path / "rft",
        sft_folder=easy.folder / "sft",
        llm_path=easy.folder / "llm",
        make_reward=lambda trials: asked.append(trials.nsd_id) or WordReward("on"),
        config=FEW_STEPS.model_copy(
            update={"optimizer": OptimizerConfig(steps=1, batch_size=1, learning_rate=1e-3, warmup_steps=0)}
        ),
        seed=0,
    )
    assert set(asked[0].tolist()) == easy.split.train_images
