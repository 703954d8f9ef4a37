"""rft on a mixture of captions and questions: each input is rewarded for what it was asked."""

import numpy as np
import pytest
import torch

from bitllm.data.dataset import select_trials
from bitllm.data.prompt import INSTRUCTIONS
from bitllm.data.tasks.mixture import TaskMixture
from bitllm.errors import ConfigError
from bitllm.metrics.answers import exact_match
from bitllm.model.build import load_trained
from bitllm.model.captioner import Captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.stages.rewards import Answers, CompositeReward, RewardConfig, RewardModels
from bitllm.stages.rft import RftConfig, RftObjective, rft_fingerprint, train_rft, with_lora

MIXTURE = {"caption": 1.0, "presence": 1.0, "count": 2.0}
ALONE = RewardConfig(bertscore=0, ip=0)


@pytest.fixture(scope="module")
def trials(easy):
    return select_trials(easy.store, easy.split, "train", averaged=False)


@pytest.fixture(scope="module")
def objective(easy, trials):
    """The objective with a reward for words: it differs among the answers of an untrained policy."""
    base = load_llm(easy.folder / "llm")
    policy = with_lora(load_trained(easy.folder / "sft", base), RftConfig())
    torch.manual_seed(0)
    for name, value in policy.named_parameters():  # else LoRA adds nothing, and the KL is 0
        if ".lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    captioner = Captioner.of(policy.get_base_model(), base.tokenizer)
    mixture = TaskMixture.of(easy.store, MIXTURE, trials.nsd_id.tolist())

    def make(loss_type="grpo"):
        config = RftConfig(n_captions=4, max_new_tokens=6, kl_weight=0.1, loss_type=loss_type)
        return RftObjective(policy, captioner, _letters, config, seed=5, mixture=mixture)

    return make


def _letters(answers):
    """Many letters are good for every second trial, and bad for the others."""
    sign = np.where(np.array(answers.trial) % 2, 1.0, -1.0)
    return {"letters": sign * [len(set(text)) for text in answers.captions]}


def _inputs(trials, rows):
    pooled = torch.randn(60, 64, generator=torch.Generator().manual_seed(1))
    return {
        "pooled": pooled[rows],
        "nsd_id": trials.nsd_id[rows],
        "example": np.array([(0, row) for row in rows]),
    }


def _stepped(step, inputs):
    """Values for the log, and the gradient of the loss."""
    step.zero_grad()
    found = step(**inputs)
    found.pop("loss").backward()
    trained = [one.grad.flatten() for one in step.parameters() if one.grad is not None]
    return {name: float(value) for name, value in found.items()}, torch.cat(trained).numpy().copy()


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_a_step_with_prompts_of_several_lengths_is_the_mean_of_its_inputs_alone(objective, trials, loss_type):
    """In the gradient, too: at a ratio of 1 the loss itself says nothing about the advantages."""
    step, rows = objective(loss_type), list(range(0, 60, 5))
    together, gradient = _stepped(step, _inputs(trials, rows))
    alone = [_stepped(step, _inputs(trials, [row])) for row in rows]
    asked = step._questions(**{name: _inputs(trials, rows)[name] for name in ("nsd_id", "example")})
    prompts = {INSTRUCTIONS[0] if one is None else one.prompt.instruction for one in asked}
    assert len({len(prompt.split()) for prompt in prompts}) > 1
    for name in ("length", "reward", "ended"):
        assert together[name] == pytest.approx(np.mean([found[name] for found, _ in alone]))
    expected = np.mean([of_one for _, of_one in alone], axis=0)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


def test_answers_are_rewarded_by_their_accuracy_and_captions_by_the_other_parts(easy, trials):
    mixture = TaskMixture.of(easy.store, MIXTURE, trials.nsd_id.tolist())
    rows = list(range(40))
    images = trials.nsd_id[rows].tolist()
    questions = [mixture.question(image, seed=0, epoch=0, index=n) for n, image in enumerate(images)]
    texts = [
        easy.store.captions[image][0] if one is None else one.target
        for image, one in zip(images, questions, strict=True)
    ]
    asked = [row for row in rows if questions[row] is not None]
    captioned = [row for row in rows if questions[row] is None]
    texts[asked[0]] = "wrong"
    has_ended = [row != asked[1] for row in rows]
    reward = CompositeReward(easy.store, trials, RewardModels(), ALONE)
    parts = reward(Answers(rows, images, texts, has_ended, questions))
    right = [exact_match(texts[row], questions[row].accepted) if has_ended[row] else 0.0 for row in asked]
    assert parts["answers"][asked].tolist() == right
    assert right[:2] == [0.0, 0.0] and sum(right) == len(asked) - 2
    plain = reward(
        Answers(
            captioned, [images[n] for n in captioned], [texts[n] for n in captioned], [True] * len(captioned)
        )
    )
    assert "answers" not in plain
    assert parts["cider"][captioned] == pytest.approx(plain["cider"])
    assert not parts["cider"][asked].any() and not parts["answers"][captioned].any()
    only = reward(
        Answers(
            asked,
            [images[n] for n in asked],
            [texts[n] for n in asked],
            [True] * len(asked),
            [questions[n] for n in asked],
        )
    )
    assert set(only) == {"cider", "answers"}


def _train(easy, folder, tasks):
    few = {"steps": 2, "batch_size": 6, "learning_rate": 1e-2, "warmup_steps": 0, "log_every": 1}
    values = {"n_captions": 4, "max_new_tokens": 6, "lora_rank": 2, "validate_every": 2, "tasks": tasks}
    config = RftConfig.parse(values | {"optimizer": few, "rewards": ALONE.model_dump()})
    train_rft(
        easy.store,
        easy.split,
        folder,
        sft_folder=easy.folder / "sft",
        llm_path=easy.folder / "llm",
        make_reward=lambda trials: CompositeReward(easy.store, trials, RewardModels(), config.rewards),
        config=config,
        seed=0,
    )
    return (folder / "log.jsonl").read_text()


def test_rft_trains_on_questions_and_logs_their_reward(easy, tmp_path):
    assert "reward_answers" in _train(easy, tmp_path / "rft", MIXTURE)


def test_sentences_have_no_accuracy_to_reward(easy, tmp_path):
    with pytest.raises(ConfigError, match=r"rft.tasks.visdial: expected short answers"):
        _train(easy, tmp_path / "rft", {"visdial": 1.0})
    assert not (tmp_path / "rft").exists()


def test_checks_of_the_reward_are_for_captions_alone():
    with pytest.raises(ConfigError, match="reward_references"):
        RftConfig.parse({"tasks": MIXTURE, "reward_references": "permuted"})


def test_only_rft_with_questions_depends_on_the_questions_of_the_store(easy):
    plain, alone, mixed = (
        rft_fingerprint(easy.store, easy.split, sft=easy.folder / "sft", config=RftConfig(**how), seed=0)
        for how in ({}, {"tasks": {"caption": 1.0}}, {"tasks": MIXTURE})
    )
    assert plain == alone and "tasks" not in plain and "tasks" not in plain["rft"]
    assert mixed["tasks"] == easy.store.tasks_sha256
