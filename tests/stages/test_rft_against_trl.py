"""A whole step of GRPO against TRL's trainer: its rollouts, its rewards, its loss and its gradients."""

import numpy as np
import pytest
import torch

from bitllm.losses.policy import group_advantages, policy_loss
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.rollout import Rollout
from bitllm.stages.rft import RftConfig, with_lora

pytest.importorskip("trl", reason="TRL is a development dependency")

import trl_grpo  # of benchmarks/; not there is an error, not a skip

INPUTS, G = 3, 4
CONFIG = RftConfig(n_captions=G, max_new_tokens=8, lora_rank=2)


@pytest.fixture(scope="module")
def stepped(easy, tmp_path_factory):
    """TRL's trainer after it sampled and scored, with LoRA that has moved away from the reference."""
    system = load_captioner(easy.folder / "sft", load_llm(easy.folder / "llm"))
    torch.manual_seed(0)
    policy = with_lora(system.model, CONFIG)
    brain_tokens = torch.randn(INPUTS, 4, 32)
    trainer = trl_grpo.make_trainer(
        policy,
        system.prompter.tokenizer,
        tmp_path_factory.mktemp("trl"),
        prompt_ids=system.prompter.prompt_ids("describe the image ."),
        brain={"brain_tokens": brain_tokens},
        reward=lambda rows, captions: [float(len(set(caption))) for caption in captions],
        n_examples=INPUTS,
        per_device_train_batch_size=INPUTS * G,
        num_generations=G,
        max_completion_length=CONFIG.max_new_tokens,
    )
    with torch.no_grad():  # only now: TRL keeps a copy of the LoRA that it is given as its reference
        for name, parameter in policy.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(std=0.05)
    examples = [{"prompt": "what ?", "row": row} for row in range(INPUTS) for _ in range(G)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return system, policy, trainer, trainer._generate_and_score_completions(examples)


def our_rollout(system, trainer, out):
    """TRL's captions as a rollout of ours."""
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : out["prompt_ids"].shape[1]] = -100
    is_end = out["completion_ids"] == system.prompter.tokenizer.eos_token_id
    captions = system.prompter.tokenizer.batch_decode(out["completion_ids"], skip_special_tokens=True)
    return Rollout(ids, labels, trainer.brain["brain_tokens"], captions, is_end.any(1))


def test_advantages_are_those_of_the_groups(stepped):
    system, _, trainer, out = stepped
    captions = our_rollout(system, trainer, out).captions
    rewards = torch.tensor([float(len(set(caption))) for caption in captions]).view(INPUTS, G)
    assert rewards.std(1).min() > 0
    assert group_advantages(rewards).flatten().tolist() == pytest.approx(out["advantages"].tolist(), abs=1e-5)


@pytest.mark.parametrize("kl_weight", [0.0, 0.02])
def test_loss_and_gradients_of_a_step_are_those_of_trl(stepped, kl_weight):
    system, policy, trainer, out = stepped
    learning = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    trainer.beta = kl_weight
    policy.zero_grad()
    their_loss = trainer._compute_loss(policy, out)
    their_loss.backward()
    theirs = {name: parameter.grad.clone() for name, parameter in learning.items()}

    rollout = our_rollout(system, trainer, out)
    policy.zero_grad()
    log_probs, label_mask = rollout.log_probs(system.model)
    with torch.no_grad(), policy.disable_adapter():
        ref_log_probs = rollout.log_probs(system.model).log_probs
    our_loss = policy_loss(
        log_probs,
        log_probs.detach(),
        out["advantages"],
        label_mask,
        ref_log_probs=ref_log_probs if kl_weight else None,
        kl_weight=kl_weight,
        loss_type="grpo",
    ).loss
    our_loss.backward()
    assert float(our_loss.detach()) == pytest.approx(float(their_loss.detach()), abs=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 1e-4
    for name, parameter in learning.items():
        assert np.abs(parameter.grad - theirs[name]).max() <= 1e-5 * largest, name
