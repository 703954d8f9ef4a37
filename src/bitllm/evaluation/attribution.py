"""Which voxels influenced the model on which trial: gradient × input, with a check against a randomized model.

    attribution[voxel] = beta[voxel] · ∂ log2 p(references | betas) / ∂ beta[voxel]

This is a first-order estimate of the bits that the references lose if the voxel is set to 0. The check: a model
whose trained weights are replaced by random ones of the same mean and standard deviation must give other maps,
otherwise the map shows the input instead of what was learned. Absolute values of gradient × input cannot pass it
completely, because both maps contain the factor |beta| and are correlated by it alone. Absolute gradients, without
this factor, are therefore compared too.

References
----------
Adebayo et al. (2018), "Sanity checks for saliency maps", NeurIPS: the model parameter randomization test.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from bitllm.data.batch import Anatomies
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.outcomes import Outcomes, Progress
from bitllm.evaluation.pooling import pooling_map
from bitllm.evaluation.rois import Roi
from bitllm.files import folder_written_whole, write_json
from bitllm.model.captioner import Captioner
from bitllm.model.checkpoint.weights import is_ours

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Attribution:
    """Gradient × input of every row and voxel, in bits per reference, for the model and for a randomized one."""

    betas: Float[np.ndarray, "n voxels"]
    gradient: Float[np.ndarray, "n voxels"]
    """Gradient of the mean log2 p of a row's references with respect to its betas."""
    gradient_randomised: Float[np.ndarray, "n voxels"]
    """The same for the randomized model."""

    @property
    def trained(self) -> Float[np.ndarray, "n voxels"]:
        """Attribution of the model."""
        return self.betas * self.gradient

    @property
    def randomised(self) -> Float[np.ndarray, "n voxels"]:
        """Attribution of the randomized model."""
        return self.betas * self.gradient_randomised

    def summary(self, rois: list[Roi]) -> dict[str, Any]:
        """Rank correlations of both models' maps over voxels, and the share of each ROI in the absolute attribution."""
        size, size_randomised = np.abs(self.trained), np.abs(self.randomised)
        total = size.sum()
        shares = {
            roi.name: {
                "share": float(size[:, roi.voxels].sum() / total) if total > 0 else 0.0,
                "share_of_voxels": float(roi.voxels.mean()),
            }
            for roi in rois
        }
        return {
            "method": "gradient × input of log2 p(references | betas)",
            "randomised": "encoder and interface redrawn at random with each tensor's own mean and spread",
            "rank_correlation_with_randomised": {
                "signed": _over_rows(self.trained, self.randomised),
                "absolute": _over_rows(size, size_randomised),
                "absolute_gradient": _over_rows(np.abs(self.gradient), np.abs(self.gradient_randomised)),
            },
            "rois": shares,
        }


def attribution(
    system: Captioner, found: Outcomes, *, seed: int, progress: Progress | None = None
) -> Attribution:
    """Attribution of every row under the system, and under the system with random weights.

    Parameters
    ----------
    found
        Outcomes for the real betas; the log-probabilities of their references are attributed.
    seed
        Seed of the random weights.
    """
    trained = gradients(system, found, what="attribution", progress=progress)
    with random_weights(system.model, seed=seed):
        random = gradients(system, found, what="attribution, randomized", progress=progress)
    return Attribution(found.held_out.betas, trained, random)


def gradients(
    system: Captioner, found: Outcomes, *, what: str = "attribution", progress: Progress | None = None
) -> Float[np.ndarray, "n voxels"]:
    """Gradient of the mean log2 p of each row's references with respect to its betas."""
    held_out, tokens = found.held_out, found.tokens
    anatomies = Anatomies.of(held_out.store, [held_out.subject], system.atlases)
    device = system.model.device
    rows = []
    for start in range(0, len(held_out.betas), _ROWS_AT_ONCE):
        betas = held_out.betas[start : start + _ROWS_AT_ONCE]
        chosen = np.flatnonzero((tokens.row >= start) & (tokens.row < start + len(betas)))
        answers = [tokens.answers[place] for place in chosen]
        brain = anatomies.brain_input(list(betas), [0] * len(betas))
        brain = brain._replace(betas=brain.betas.requires_grad_())
        memory = system.model.model.brain_memory(**{k: v.to(device) for k, v in brain._asdict().items()})
        owner = torch.from_numpy(tokens.row[chosen] - start).to(device)
        log_probs = system.log_probs(answers, memory[owner])
        n_references = torch.bincount(owner)[owner]
        bits = (log_probs.sum(-1) / np.log(2) / n_references).sum()
        # Rows are independent, so the gradient of their sum contains the gradient of each row.
        (gradient,) = torch.autograd.grad(bits, brain.betas)
        rows.append(gradient.numpy()[:, : betas.shape[1]])
        if progress is not None:
            progress(what, start + len(betas), len(held_out.betas))
    return np.concatenate(rows)


@contextmanager
def random_weights(model: Any, *, seed: int) -> Iterator[None]:
    """Within the block, replace trained weights by random ones with each tensor's mean and standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    trained = {
        parameter: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        # Gates and temperatures (one number each) have no spread to draw from; they are not changed.
        if (is_ours(name) or "lora_" in name) and parameter.numel() > 1
    }
    try:
        with torch.no_grad():
            for parameter, values in trained.items():
                drawn = torch.randn(parameter.shape, generator=generator).to(values)
                parameter.copy_(drawn * values.std() + values.mean())
        yield
    finally:
        with torch.no_grad():
            for parameter, values in trained.items():
                parameter.copy_(values)


def _over_rows(a: Float[np.ndarray, "n voxels"], b: Float[np.ndarray, "n voxels"]) -> dict[str, float]:
    """Rank correlation between a and b over the voxels of each row: mean and standard deviation over rows."""
    ranks = [rankdata(values, axis=1) for values in (a, b)]
    x, y = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    spread = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    rows = (x * y).sum(axis=1) / np.where(spread > 0, spread, 1.0)
    return {"mean": float(rows.mean()), "sd": float(rows.std(ddof=1)), "N": len(rows)}


_ABOUT = {
    "pooling_map.npy": "queries x voxels: the encoder's pooling weights, each row sums to 1. A fixed map of this "
    "subject: it does not depend on the betas and explains no trial.",
    "voxels.parquet": "voxels in the order of the store: place, atlas labels, pooling (mean weight over queries), "
    "attribution (gradient x input, mean over images, bits), attribution_absolute, and both for a randomized model.",
}


def write_maps(system: Captioner, held_out: HeldOut, found: Attribution, folder: Path) -> None:
    """Write ``pooling_map.npy``, ``voxels.parquet`` and ``about.json`` into a new folder."""
    weights = pooling_map(system.encoder, held_out.store, held_out.subject, system.atlases)
    table = held_out.store.subject(held_out.subject).voxels.copy()
    table["pooling"] = weights.mean(axis=0)
    for name, values in (("", found.trained), ("_of_randomised_model", found.randomised)):
        table[f"attribution{name}"] = values.mean(axis=0)
        table[f"attribution_absolute{name}"] = np.abs(values).mean(axis=0)
    with folder_written_whole(folder) as unfinished:
        np.save(unfinished / "pooling_map.npy", weights)
        table.to_parquet(unfinished / "voxels.parquet")
        write_json(unfinished / "about.json", {"subject": held_out.subject, **_ABOUT})
