"""What a training step on a GPU waits for, counted on a pretend device."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from bitllm.data.batch import TrialBetas
from bitllm.data.dataset import select_trials
from bitllm.model.aligner import BrainAligner
from bitllm.model.build import build_bit_llm, load_trained, train_interface
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import load_llm, placeholder_token_id
from bitllm.stages.align import collate_align, make_encoder
from bitllm.stages.examples import InstructedTrials, checked_anatomies, pooled_betas
from bitllm.stages.rft import RftConfig, RftObjective, collate_rft, with_lora
from bitllm.stages.sft import SftObjective, n_answer_tokens
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainerSettings, TrainingData
from pretend_cuda import CUDA, Counts, pretend_cuda, pretend_gpu

SETTINGS = TrainerSettings(save_minutes=None, report_to=())
STEPS = OptimizerConfig(steps=3, batch_size=32, learning_rate=1e-3, log_every=1)


@pytest.fixture
def gpu():
    """A pretend device that the stages take for theirs."""
    with pretend_gpu() as counts:
        yield counts


def count_a_step(counts: Counts, module: Any, data: TrainingData, folder: Any) -> Counts:
    """The counts of one step of a loop that logs every step: the log of a step, and the step after it."""
    found = []

    def progress(what: str, done: int, total: int) -> None:
        found.append(copy.deepcopy(counts))
        counts.reset()

    Loop(module, data, STEPS, folder, 0, context=RunContext(SETTINGS, progress)).fit()
    print(found[-1].describe())
    return found[-1]


def test_a_step_of_align_waits_at_most_twice(easy, gpu, tmp_path):
    encoder = make_encoder(easy.store, easy.split, easy.encoder, seed=0)
    trials = select_trials(easy.store, easy.split, "train", averaged=False)
    betas = TrialBetas(trials, checked_anatomies(encoder, trials, easy.encoder.atlases), CUDA)
    aligner = BrainAligner(encoder, embedding_width=easy.targets.image.shape[1])
    data = TrainingData(len(trials), collate_align(betas, easy.targets))
    found = count_a_step(gpu, aligner, data, tmp_path)
    assert not found.mixtures
    assert found.syncs <= 2
    assert found.kernels <= 255


@pytest.mark.parametrize(
    ("interface", "train_encoder"),
    [("cross_attention", False), ("cross_attention", True), ("prefix", False)],
)
def test_a_step_of_sft_waits_at_most_twice(easy, gpu, tmp_path, interface, train_encoder):
    base = load_llm(easy.folder / "llm")
    settings = {
        "encoder": easy.encoder.arguments(easy.store),
        "brain_token_id": placeholder_token_id(base.tokenizer),
    }
    model = build_bit_llm(base.llm, interface=interface, adapter_layers=[0], **settings)
    train_interface(model, with_encoder=train_encoder)
    model.to(CUDA)
    trials = select_trials(easy.store, easy.split, "train", averaged=False)
    how = {"atlases": easy.encoder.atlases, "seed": 0, "train_encoder": train_encoder}
    examples = InstructedTrials.of(trials, model, base.tokenizer, **how)
    data = TrainingData(len(trials), examples.batch, n_targets=n_answer_tokens)
    found = count_a_step(gpu, SftObjective(model), data, tmp_path)
    assert not found.mixtures
    assert found.syncs <= 2


def test_pooled_betas_of_the_posters_size_take_less_than_a_gigabyte(easy):
    """Measured at 1 % of 174,000 trials; nothing is cached on disk."""
    sizes = {"n_queries": 1024, "token_width": 8, "n_brain_tokens": 2, "n_blocks": 0}
    encoder = make_encoder(easy.store, easy.split, easy.encoder.model_copy(update=sizes), seed=0)
    trials = select_trials(easy.store, easy.split, "train", averaged=False)
    trials = trials[np.resize(np.arange(len(trials)), 1740)]
    betas = TrialBetas(trials, checked_anatomies(encoder, trials, easy.encoder.atlases), torch.device("cpu"))
    before = {path: path.stat().st_size for path in easy.folder.rglob("*")}
    pooled = pooled_betas(encoder, betas)
    assert pooled.shape == (1740, 1024)
    assert 100 * pooled.nbytes < 1e9
    assert before == {path: path.stat().st_size for path in easy.folder.rglob("*")}


def test_a_step_of_rft_waits_once_for_each_new_token(easy, gpu, tmp_path):
    base = load_llm(easy.folder / "llm")
    model = load_trained(easy.folder / "sft", base)
    config = RftConfig(n_captions=4, max_new_tokens=8)
    policy = with_lora(model, config)
    policy.to(CUDA)
    trials = select_trials(easy.store, easy.split, "train", averaged=False)
    betas = TrialBetas(trials, checked_anatomies(model.model.encoder, trials, easy.encoder.atlases), CUDA)
    pooled = pooled_betas(model.model.encoder, betas)

    def reward(answers):
        return {"length": np.array([float(len(caption)) for caption in answers.captions])}

    captioner = Captioner.of(policy.get_base_model(), base.tokenizer)
    objective = RftObjective(policy, captioner, reward, config, seed=0)
    found = count_a_step(gpu, objective, TrainingData(len(trials), collate_rft(trials, pooled)), tmp_path)
    assert not found.mixtures
    # one for all tokens at once, one for the log, 2 are transformers' look for packed sequences in both passes
    assert found.syncs <= config.max_new_tokens + 3


def test_greedy_decoding_waits_once_for_each_token(easy, gpu):
    captioner = load_captioner(easy.folder / "sft", load_llm(easy.folder / "llm"))
    captioner.model.to(CUDA)
    tokens = torch.randn(6, 4, 32).to(CUDA)
    counted = []
    for n in (4, 8):
        gpu.reset()
        captioner.greedy(tokens, max_new_tokens=n)
        counted.append(gpu.syncs)
    assert not gpu.mixtures
    assert counted[1] - counted[0] == 4
    assert counted[0] <= 4 + 1


def test_the_pretend_device_refuses_mixtures_and_counts_what_waits():
    with pretend_cuda() as counts:
        here, there = torch.ones(3), torch.ones(3).to("cuda:0")
        here + there
        assert counts.mixtures.total() == 1
        counts.reset()
        float(there.sum())
        there[there > 0]
        there.cpu()
        assert (counts.syncs, counts.mixtures.total()) == (3, 0)
