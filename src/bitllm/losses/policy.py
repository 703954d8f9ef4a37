"""The objective of rft: GRPO on the log-probabilities of sampled captions.

References
----------
Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), equations 3 and 4: group-relative advantages, clipped ratio and
the unbiased KL estimate ("k3"). Departures are options with the names of TRL, the oracle of the tests: ``bnpo`` (mean
over all tokens of a micro-batch, so it depends on its size), ``dr_grpo`` (Liu et al. 2025: sum divided by a constant
length) and ``dapo`` (Yu et al. 2025: mean over all tokens of the step in all processes).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
Baseline = Literal["grpo", "rloo"]
RewardScale = Literal["raw", "group"]

_EPSILON = 1e-4  # as in TRL: a group of equal rewards gets advantages of 0, not NaN


class PolicyLoss(NamedTuple):
    """The loss, with values for the log."""

    loss: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    """KL estimate per token to the reference policy, as a mean of captions; 0 without one."""
    clipped: Float[Tensor, ""]
    """Share of tokens whose ratio was clipped, as a mean of captions."""


def weighted_parts(
    parts: Mapping[str, Float[Tensor, "groups G"]],
    weights: Mapping[str, float],
    *,
    scale: RewardScale = "raw",
) -> dict[str, Float[Tensor, "groups G"]]:
    """Parts of a reward multiplied by their weights; their sum is the reward.

    Parameters
    ----------
    parts
        Rewards of G captions of each input, by name.
    weights
        Weight of each part.
    scale
        ``raw``: each part in its own units. ``group``: each part minus its mean in the group, divided by its standard
        deviation in the group, so that weights apply to parts of equal range; a part that is constant in a group is 0.
    """
    return {
        name: weights[name] * (part if scale == "raw" else group_advantages(part))
        for name, part in parts.items()
    }


def group_advantages(
    rewards: Float[Tensor, "groups G"], *, baseline: Baseline = "grpo"
) -> Float[Tensor, "groups G"]:
    """Rewards relative to the other captions of their group.

    Parameters
    ----------
    rewards
        Rewards of G captions of each input.
    baseline
        ``grpo``: minus the group's mean, divided by its standard deviation (+1e-4). ``rloo``: minus the mean of the
        *other* captions, not divided.

    References
    ----------
    ``rloo``: Ahmadian et al. 2024, "Back to Basics" (arXiv 2402.14740).
    """
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    if baseline == "rloo":
        n = rewards.shape[1]
        return centered * n / (n - 1)
    return centered / (rewards.std(dim=1, keepdim=True) + _EPSILON)


def is_flat(rewards: Float[Tensor, "groups G"]) -> Bool[Tensor, " groups"]:
    """Which groups have the same reward for all captions, and so no preference."""
    return rewards.amax(dim=1) == rewards.amin(dim=1)


def policy_loss(  # noqa: PLR0913 - the terms of one equation
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    label_mask: Bool[Tensor, "B T"],
    *,
    ref_log_probs: Float[Tensor, "B T"] | None = None,
    kl_weight: float = 0.0,
    clip: float = 0.2,
    loss_type: LossType = "grpo",
    max_length: int | None = None,
    n_tokens: Float[Tensor, ""] | None = None,
) -> PolicyLoss:
    """Clipped policy gradient with a KL penalty.

    Parameters
    ----------
    log_probs, old_log_probs, ref_log_probs
        Log-probability of each sampled token under the trained policy, the policy that sampled, and the reference.
    advantages
        Advantage of each caption.
    label_mask
        Which tokens belong to the caption, including its end token.
    kl_weight, clip
        β and ε of the paper.
    loss_type
        How token losses are averaged.
    max_length
        The constant length of ``dr_grpo``.
    n_tokens
        Divisor of ``dapo``: the mean number of tokens per process; by default the tokens of this batch.
    """
    ratio = (log_probs - old_log_probs).exp()
    gain = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages[:, None])
    per_token = -gain
    mask = label_mask.to(log_probs.dtype)
    own_tokens = mask.sum().clamp(min=1.0)

    def mean_of_captions(values: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        return ((values * mask).sum(1) / mask.sum(1).clamp(min=1.0)).mean()

    kl = torch.zeros_like(log_probs)
    if ref_log_probs is not None:
        # k3 = r − log r − 1 with r = p_ref / p: never negative, and of lower variance than −log r.
        kl = (ref_log_probs - log_probs).exp() - (ref_log_probs - log_probs) - 1
        per_token = per_token + kl_weight * kl
    if loss_type == "grpo":
        loss = mean_of_captions(per_token)
    elif loss_type == "bnpo":
        loss = (per_token * mask).sum() / own_tokens
    elif loss_type == "dapo":
        loss = (per_token * mask).sum() / (own_tokens if n_tokens is None else n_tokens)
    else:
        loss = (per_token * mask).sum() / (mask.shape[0] * (max_length or mask.shape[1]))
    clipped = ((ratio < 1 - clip) & (advantages[:, None] < 0)) | (
        (ratio > 1 + clip) & (advantages[:, None] > 0)
    )
    # all processes have as many captions, so the mean over processes is that of one
    return PolicyLoss(loss, mean_of_captions(kl).detach(), mean_of_captions(clipped.to(mask.dtype)).detach())
