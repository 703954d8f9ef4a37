"""Stage 1, align: teach the encoder a subject-agnostic embedding space shared with pictures and captions.

    betas → brain tokens → heads → unit vectors;  loss = mean of symmetric InfoNCE (brain, image), (brain, text)

Targets come from a frozen CLIP, once per image; repeats of an image in a batch are positives of each other. Single
trials are the examples. Output: a checkpoint of encoder and heads.

References
----------
The poster, "Stage 1: Multi-Modal Contrastive Pre-training".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field

from bitllm.config import StrictConfig
from bitllm.data.batch import Anatomies, brain_input
from bitllm.data.dataset import TrialSet, sealed_test, select_trials
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store
from bitllm.data.targets import Targets
from bitllm.metrics.retrieval import retrieval
from bitllm.model.aligner import BrainAligner, save_aligner
from bitllm.model.encoder import BrainEncoder
from bitllm.training.callbacks import Choice
from bitllm.training.embed import brain_tokens_of
from bitllm.training.ranks import is_main
from bitllm.training.run import OptimizerConfig, make_trainer, train_to_the_end
from bitllm.training.sharding import whole_state
from bitllm.training.trainer import StageTrainer
from bitllm.training.workspace import Running, workspace


class EncoderConfig(StrictConfig):
    """Sizes of the brain encoder (see `bitllm.model.encoder.BrainEncoder`)."""

    n_queries: int = Field(default=1024, gt=0)
    """Number of pooled values."""
    rank: int = Field(default=128, gt=0)
    """Width of queries and keys."""
    n_brain_tokens: int = Field(default=128, gt=0)
    """Number of brain tokens."""
    token_width: int = Field(default=1024, gt=0)
    """Width of a brain token."""
    n_blocks: int = Field(default=4, ge=0)
    """Number of residual blocks."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the residual blocks."""
    sharpness: float = Field(default=12.0, gt=0)
    """First value of the softmax's sharpness τ."""
    n_frequencies: int = Field(default=96, gt=0)
    """Number of Fourier directions."""
    length_mm: float = Field(default=12.0, gt=0)
    """Distance over which voxels become dissimilar, in mm."""
    label_width: int = Field(default=16, gt=0)
    """Width of a label's embedding."""
    atlases: tuple[str, ...] = (
        "prf-visualrois",
        "floc-faces",
        "floc-places",
        "floc-bodies",
        "floc-words",
        "streams",
    )
    """Atlases whose labels a voxel's key knows."""
    anchored: bool = True
    """Whether the queries start as keys of random training voxels."""

    def arguments(self, store: Store) -> dict[str, Any]:
        """Arguments of `BrainEncoder` for the atlases of ``store``."""
        return self.sizes([max(store.atlases[atlas]) for atlas in self.atlases])

    def sizes(self, n_labels: list[int]) -> dict[str, Any]:
        """Arguments of `BrainEncoder` for atlases whose largest labels are ``n_labels``."""
        return {**self.model_dump(exclude={"atlases", "anchored"}), "n_labels": n_labels}


class AlignConfig(StrictConfig):
    """The align stage."""

    optimizer: OptimizerConfig = OptimizerConfig(
        steps=300, batch_size=224, learning_rate=1e-3, weight_decay=0.05
    )
    """How it learns."""
    mix_epochs: int = Field(default=0, ge=0)
    """First epochs in which each trial is mixed with another of its subject in the batch (MixCo)."""
    validate_every: int = Field(default=50, gt=0)
    """Steps between two retrievals on validation images."""


def make_encoder(store: Store, split: Split, config: EncoderConfig, *, seed: int) -> BrainEncoder:
    """An untrained encoder; its queries are anchored at voxels of a training subject where configured."""
    torch.manual_seed(seed)
    encoder = BrainEncoder(
        **{**config.arguments(store), "n_labels": tuple(config.arguments(store)["n_labels"])}
    )
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.5 * module.embedding_dim**-0.5)
        elif isinstance(module, torch.nn.Linear) and "keys" not in name:
            torch.nn.init.zeros_(module.bias)
    if config.anchored:
        anatomies = Anatomies.of(store, split.train_subjects, config.atlases)
        real = anatomies.voxel_mask
        encoder.anchor_queries(
            anatomies.coords_mm[real], anatomies.atlas_labels[real], torch.Generator().manual_seed(seed)
        )
    return encoder


def train_align(
    store: Store,
    split: Split,
    targets: Targets,
    folder: Path,
    *,
    encoder_config: EncoderConfig,
    config: AlignConfig,
    seed: int,
    running: Running = Running(),  # noqa: B008 - frozen
) -> None:
    """Train encoder and heads on the training trials of ``split``; write the checkpoint whole or not at all.

    Raises
    ------
    SplitError
        If the split leaks.
    """
    check_split(store, split)
    learnt_from = align_learns_from(
        store, split, targets, encoder_config=encoder_config, config=config, seed=seed
    )
    choice = Choice("validation_R@10", True, config.optimizer.keep, config.optimizer.patience)
    about = choice.about(split.train_subjects)
    with sealed_test(), workspace(folder, learnt_from, about=about, settings=running.settings) as work:
        trials = select_trials(store, split, "train", averaged=False)
        anatomies = Anatomies.of(store, trials.subjects, encoder_config.atlases)
        aligner = BrainAligner(
            make_encoder(store, split, encoder_config, seed=seed), embedding_width=targets.image.shape[1]
        )
        trainer = make_trainer(
            StageTrainer,
            aligner,
            config.optimizer,
            work.folder,
            n_examples=len(trials),
            collate=_collate(trials, anatomies, targets, mix_epochs=config.mix_epochs, seed=seed),
            seed=seed,
            what="align",
            progress=running.progress,
            settings=running.settings,
            groups=trials.subject_index,  # pooling maps are those of subjects: a process computes few of them
        )
        validation = select_trials(store, split, "validation", averaged=True)
        train_to_the_end(
            trainer,
            work,
            every=config.validate_every,
            measure=lambda: validate(aligner, validation, anatomies, targets),
            choice=choice,
        )
        state = whole_state(aligner)
        if is_main():
            save_aligner(
                aligner,
                work.folder,
                encoder=encoder_config.arguments(store),
                about={"atlases": list(encoder_config.atlases), "split": split.sha256, "seed": seed},
                state=state,
            )


def align_learns_from(
    store: Store,
    split: Split,
    targets: Targets,
    *,
    encoder_config: EncoderConfig,
    config: AlignConfig,
    seed: int,
) -> dict[str, Any]:
    """Everything that decides what the align stage learns."""
    return {
        "stage": "align",
        "encoder": encoder_config.model_dump(mode="json"),
        "align": config.model_dump(mode="json"),
        "seed": seed,
        "split": split.sha256,
        "store": store.sha256,
        "targets": targets.sha256,
    }


def _collate(
    trials: TrialSet, anatomies: Anatomies, targets: Targets, *, mix_epochs: int = 0, seed: int = 0
) -> Callable[[list[tuple[int, int]]], dict[str, Any]]:
    rows = targets.rows(trials.nsd_id)
    image, text = torch.from_numpy(targets.image[rows]), torch.from_numpy(targets.text[rows])
    nsd_id = torch.from_numpy(trials.nsd_id)

    def collate(pairs: list[tuple[int, int]]) -> dict[str, Any]:
        indices = [index for _, index in pairs]
        batch = {
            **brain_input(trials, anatomies, indices)._asdict(),
            "image": image[indices],
            "text": text[indices],
            "nsd_id": nsd_id[indices],
        }
        return mixed(batch, pairs, seed=seed) if pairs[0][0] < mix_epochs else batch

    return collate


def mixed(batch: dict[str, Any], pairs: list[tuple[int, int]], *, seed: int) -> dict[str, Any]:
    """A batch whose betas are mixtures: each trial with the next one of its subject, by a share of its own.

    Shares are drawn from Beta(.15, .15), as published, by (seed, epoch, index).
    """
    subject, second = batch["subject_index"], torch.arange(len(pairs))
    for row in subject.unique():
        own = (subject == row).nonzero()[:, 0]
        second[own] = own.roll(-1)
    share = torch.tensor(
        [np.random.default_rng([seed, epoch, index, 5]).beta(0.15, 0.15) for epoch, index in pairs]
    ).float()
    betas = share[:, None] * batch["betas"] + (1 - share)[:, None] * batch["betas"][second]
    return batch | {"betas": betas, "mixed_with": batch["nsd_id"][second], "share": share}


def validate(
    aligner: BrainAligner, trials: TrialSet, anatomies: Anatomies, targets: Targets
) -> dict[str, float]:
    """Brain → image retrieval among the validation images, averaged over the training subjects."""
    embeddings = brain_embeddings(aligner, brain_tokens_of(aligner.encoder, trials, anatomies))
    scores = []
    for subject in np.unique(trials.subject_index):
        own = trials.subject_index == subject
        gallery = targets.image[targets.rows(trials.nsd_id[own])]
        scores.append(retrieval(embeddings[own] @ gallery.T, np.arange(own.sum()), np.random.default_rng(0)))
    return {
        "validation_R@10": float(np.mean([score.r_at_10 for score in scores])),
        "validation_chance_R@10": float(np.mean([score.chance_r_at_10 for score in scores])),
    }


@torch.no_grad()
def brain_embeddings(aligner: BrainAligner, brain_tokens: torch.Tensor) -> Float[np.ndarray, "n d"]:
    """Unit embeddings in the picture space, computed where the aligner is."""
    return aligner.embed(brain_tokens.to(aligner.norm.weight.device))[0].cpu().numpy()
