"""The align stage's objective: symmetric InfoNCE with several positives.

References
----------
The poster, stage 1; Radford et al. 2021 (CLIP) for the symmetric loss; Khosla et al. 2020, equation 2
(L_out), for several positives. Trials that saw the same image are positives of each other, not negatives.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def same_image(nsd_id: Int[Tensor, " B"]) -> Bool[Tensor, "B B"]:
    """Which pairs of a batch show the same image."""
    return nsd_id[:, None] == nsd_id[None, :]


def mixed_images(
    first: Int[Tensor, " B"], second: Int[Tensor, " B"], share: Float[Tensor, " B"]
) -> Float[Tensor, "B B"]:
    """Soft positives for mixed betas: how much of brain i's mixture is the image of target j.

    Target j is the first image of trial j. ``share`` is the share of a trial's first image; its second image has the
    rest.

    References
    ----------
    Kim et al. 2020 (MixCo); as used for fMRI by Scotti et al. 2023 (MindEye), section 3.2.
    """
    of_first = (first[:, None] == first[None, :]).to(share.dtype)
    of_second = (second[:, None] == first[None, :]).to(share.dtype)
    return share[:, None] * of_first + (1 - share)[:, None] * of_second


def info_nce(
    brain: Float[Tensor, "B d"],
    target: Float[Tensor, "B d"],
    *,
    scale: Float[Tensor, ""],
    positives: Bool[Tensor, "B B"] | Float[Tensor, "B B"],
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE between brain embeddings and targets.

    Parameters
    ----------
    brain, target
        Unit vectors; row i of each belongs to trial i.
    scale
        Inverse temperature.
    positives
        ``positives[i, j]``: whether brain i and target j are of the same image; for mixtures, the share of image j in
        brain i (`mixed_images`). The diagonal is not 0.

    Returns
    -------
    Tensor
        The mean over both directions of −log p, averaged over the positives of each row. For mixtures, a target is
        weighted by the sum of its shares in all brains.
    """
    logits = scale * brain @ target.T
    weights = positives.to(logits.dtype)
    brain_to_target = -(weights * logits.log_softmax(dim=1)).sum(1) / weights.sum(1)
    if positives.dtype is torch.bool:
        target_to_brain = -(weights * logits.log_softmax(dim=0)).sum(0) / weights.sum(0)
    else:
        # Normalizing each target by its own sum would give full weight to a target with a tiny share in one mixture.
        # Normalized by brain, the weights of a repeated image still average over its repeats.
        shares = weights / weights.sum(1, keepdim=True)
        target_to_brain = -(shares * logits.log_softmax(dim=0)).sum(0)
    return torch.cat([brain_to_target, target_to_brain]).mean()
