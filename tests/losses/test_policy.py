"""GRPO against TRL, the oracle: the same log-probabilities give the same loss and the same gradient."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.losses.policy import (
    group_advantages,
    is_flat,
    policy_loss,
    weighted_parts,
)

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")


def trl_loss(
    log_probs: torch.Tensor, inputs: dict, *, loss_type: str, beta: float, max_length: int
) -> torch.Tensor:
    """TRL's own loss on injected log-probabilities."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=beta,
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        loss_type=loss_type,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        current_gradient_accumulation_steps=1,
        max_completion_length=max_length,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        _metrics={"train": defaultdict(list)},
    )
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("kl_weight", [0.0, 0.04])
@pytest.mark.parametrize("off_policy", [False, True])
def test_loss_and_gradient_equal_trl(loss_type: str, kl_weight: float, off_policy: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    shape, lengths = (6, 9), torch.tensor([9, 4, 1, 7, 2, 9])
    log_probs = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    ref = log_probs + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    old = log_probs + (
        0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) if off_policy else 0.0
    )
    mask = torch.arange(9)[None] < lengths[:, None]
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    inputs = {
        "prompt_ids": torch.zeros(6, 2, dtype=torch.long),
        "prompt_mask": torch.ones(6, 2, dtype=torch.long),
        "completion_ids": torch.zeros(shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    theirs, ours = (log_probs.clone().requires_grad_() for _ in range(2))
    their_loss = trl_loss(theirs, inputs, loss_type=loss_type, beta=kl_weight, max_length=9)
    our_loss = policy_loss(
        ours,
        old,
        advantages,
        mask,
        ref_log_probs=ref if kl_weight else None,
        kl_weight=kl_weight,
        loss_type=loss_type,
        max_length=9,
    ).loss
    their_loss.backward()
    our_loss.backward()
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-10)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.floats(-5, 5), st.integers(2, 8))
def test_a_constant_added_to_a_group_leaves_its_advantages(constant: float, n_captions: int) -> None:
    rewards = torch.randn(3, n_captions, dtype=torch.float64)
    shifted = rewards + constant
    assert torch.allclose(group_advantages(rewards), group_advantages(shifted), atol=1e-9)


def test_equal_rewards_give_no_advantage() -> None:
    assert torch.equal(group_advantages(torch.full((2, 4), 0.7)), torch.zeros(2, 4))


def test_rloo_compares_each_caption_with_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    expected = [
        [own - sum(others) / 2 for own, others in ((group[i], group[:i] + group[i + 1 :]) for i in range(3))]
        for group in rewards.tolist()
    ]
    assert torch.allclose(
        group_advantages(rewards, baseline="rloo"), torch.tensor(expected, dtype=torch.float64)
    )


def test_parts_of_any_unit_weigh_the_same_within_a_group() -> None:
    generator = torch.Generator().manual_seed(4)
    parts = {name: torch.randn(3, 5, generator=generator, dtype=torch.float64) for name in ("one", "other")}
    weights = {"one": 1.0, "other": 2.0}
    scaled = parts | {"other": 1000 * parts["other"] + 7}
    plain, large = (weighted_parts(some, weights, scale="group") for some in (parts, scaled))
    assert torch.allclose(plain["other"], large["other"], atol=1e-3)
    assert torch.allclose(plain["one"].std(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(plain["other"].std(dim=1), 2 * torch.ones(3, dtype=torch.float64), atol=1e-3)
    raw = weighted_parts(parts, weights)
    assert torch.equal(raw["one"] + raw["other"], parts["one"] + 2 * parts["other"])


def test_groups_with_equal_rewards_are_found_and_have_no_advantage() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 3.0]], dtype=torch.float64)
    assert is_flat(rewards).tolist() == [False, True, False]
    for baseline in ("grpo", "rloo"):
        assert (group_advantages(rewards, baseline=baseline) == 0).all(dim=1).tolist() == [False, True, False]


def test_clipped_share_counts_only_ratios_that_the_clip_stops() -> None:
    old = torch.zeros(2, 1)
    result = policy_loss(
        torch.tensor([[1.0], [1.0]]), old, torch.tensor([1.0, -1.0]), torch.ones(2, 1).bool()
    )
    assert float(result.clipped) == 0.5


def test_the_kl_of_two_processes_is_that_of_one() -> None:
    """The mean of what the processes log, although their captions are not equally long."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(7)[None] < torch.tensor([7, 1, 2, 5])[:, None]
    log_probs, reference = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)

    def kl(rows: slice) -> float:
        given = (log_probs[rows], log_probs[rows], torch.ones(4)[rows], mask[rows])
        return float(policy_loss(*given, ref_log_probs=reference[rows]).kl)

    assert (kl(slice(0, 2)) + kl(slice(2, 4))) / 2 == pytest.approx(kl(slice(0, 4)), rel=1e-12)
    ratio = (reference - log_probs).exp()
    expected = [(row - row.log() - 1)[kept].mean() for row, kept in zip(ratio, mask, strict=True)]
    assert kl(slice(0, 4)) == pytest.approx(float(sum(expected)) / 4, rel=1e-12)


def test_dapo_of_two_processes_is_dapo_of_all_their_captions() -> None:
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(7)[None] < torch.tensor([7, 1, 2, 5])[:, None]
    values = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.0, -0.5, 0.3, -2.0], dtype=torch.float64)

    def gradient(rows: slice, n_tokens: torch.Tensor | None) -> torch.Tensor:
        log_probs = values.clone().requires_grad_()
        own = log_probs[rows]
        policy_loss(
            own, own.detach(), advantages[rows], mask[rows], loss_type="dapo", n_tokens=n_tokens
        ).loss.backward()
        assert log_probs.grad is not None
        return log_probs.grad

    whole = gradient(slice(None), None)
    per_process = mask.sum() / 2
    shares = [gradient(rows, per_process) for rows in (slice(0, 2), slice(2, 4))]
    assert torch.allclose((shares[0] + shares[1]) / 2, whole, atol=1e-12)
    own_means = [gradient(rows, None) for rows in (slice(0, 2), slice(2, 4))]
    assert not torch.allclose((own_means[0] + own_means[1]) / 2, whole, atol=1e-3)
