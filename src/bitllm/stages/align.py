"""Stage 1, align: train the encoder to embed betas of any subject in a space shared with images and captions.

    betas → brain tokens → heads → unit vectors;  loss = mean of symmetric InfoNCE (brain, image), (brain, text)

The targets are embeddings of a frozen CLIP, computed once per image. The examples are single trials; repetitions of
an image in a batch are positives of each other. The result is a checkpoint of encoder and heads.

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
from bitllm.data.batch import Anatomies, TrialBetas
from bitllm.data.dataset import TrialSet, sealed_test, select_trials
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store
from bitllm.data.targets import Targets
from bitllm.errors import TrainingError
from bitllm.metrics.retrieval import retrieval
from bitllm.model.aligner import BrainAligner, save_aligner
from bitllm.model.encoder import BrainEncoder
from bitllm.model.precision import has_tf32, tf32
from bitllm.stages.examples import checked_anatomies, frozen_brain_tokens, pooled_betas
from bitllm.stages.workspace import workspace
from bitllm.training.distributed import device, full_state, is_main
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainingData, Validation

METRIC = "validation_R@10"
_BATCH = 512


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
    """Initial inverse temperature τ of the softmax."""
    n_frequencies: int = Field(default=96, gt=0)
    """Number of Fourier directions."""
    length_mm: float = Field(default=12.0, gt=0)
    """Standard deviation of the Gaussian kernel of the Fourier features, in mm."""
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
    """Atlases whose labels are part of a voxel's key."""
    anchored: bool = True
    """Whether the queries are initialized with keys of random training voxels."""

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
    """Steps, batch size and learning rate."""
    mix_epochs: int = Field(default=0, ge=0)
    """Number of first epochs in which each trial is mixed with another one of its subject in the batch (MixCo)."""
    validate_every: int = Field(default=50, gt=0)
    """Steps between two validations (retrieval of validation images)."""


def make_encoder(store: Store, split: Split, config: EncoderConfig, *, seed: int) -> BrainEncoder:
    """An untrained encoder; if configured, its queries are initialized with keys of the training subjects' voxels."""
    torch.manual_seed(seed)
    encoder = BrainEncoder(
        **{**config.arguments(store), "n_labels": tuple(config.arguments(store)["n_labels"])}
    )
    # Label embeddings start with norm 0.5, half that of the Fourier features. The projection in the keys has no bias.
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
    context: RunContext = RunContext(),  # noqa: B008 - frozen
) -> None:
    """Train encoder and heads on the training trials of ``split``; the checkpoint appears only when it is complete.

    Raises
    ------
    SplitError
        If the split leaks.
    """
    check_split(store, split)
    fingerprint = align_fingerprint(
        store, split, targets, encoder_config=encoder_config, config=config, seed=seed
    )
    about = config.optimizer.selection(METRIC, split.train_subjects) | {"tf32": has_tf32()}
    with sealed_test(), workspace(folder, fingerprint, about=about, settings=context.settings) as work:
        encoder = make_encoder(store, split, encoder_config, seed=seed)
        aligner = BrainAligner(encoder, embedding_width=targets.image.shape[1])
        trials = select_trials(store, split, "train", averaged=False)
        _require_several_images(trials, config.optimizer.batch_size)
        anatomies = checked_anatomies(encoder, trials, encoder_config.atlases)
        betas = TrialBetas(trials, anatomies, device())
        data = TrainingData(
            len(trials),
            collate_align(betas, targets, mix_epochs=config.mix_epochs, seed=seed),
            groups=trials.subject_index,  # a process then computes the pooling maps of few subjects
        )
        validation = TrialBetas(select_trials(store, split, "validation", averaged=True), anatomies, device())
        loop = Loop(
            aligner,
            data,
            config.optimizer,
            work.folder,
            seed,
            name="align",
            context=context,
            validation=Validation(
                config.validate_every, lambda: validate(aligner, validation, targets), METRIC
            ),
        )
        with tf32():
            loop.fit()
        state = full_state(aligner)
        if is_main():
            save_aligner(
                aligner,
                work.folder,
                encoder=encoder_config.arguments(store),
                about={"atlases": list(encoder_config.atlases), "split": split.sha256, "seed": seed},
                state=state,
            )


def align_fingerprint(
    store: Store,
    split: Split,
    targets: Targets,
    *,
    encoder_config: EncoderConfig,
    config: AlignConfig,
    seed: int,
) -> dict[str, Any]:
    """Everything that determines the result of the align stage."""
    return {
        "stage": "align",
        "encoder": encoder_config.model_dump(mode="json"),
        "align": config.model_dump(mode="json"),
        "seed": seed,
        "split": split.sha256,
        "store": store.sha256,
        "targets": targets.sha256,
    }


def _require_several_images(trials: TrialSet, batch_size: int) -> None:
    n_images = len(np.unique(trials.nsd_id))
    if min(n_images, batch_size) < 2:
        raise TrainingError(
            f"align: expected several images in a batch, as the contrastive loss needs, found {n_images} training "
            f"images and batches of {batch_size} trials; increase align.optimizer.batch_size"
        )


def collate_align(
    betas: TrialBetas, targets: Targets, *, mix_epochs: int = 0, seed: int = 0
) -> Callable[[list[tuple[int, int]]], dict[str, Any]]:
    """A function from (epoch, index) pairs to a batch of betas and targets on the device of ``betas``."""
    nsd_ids = betas.trials.nsd_id
    rows = targets.rows(nsd_ids)
    image, text, nsd_id = (
        torch.from_numpy(table).to(betas.device) for table in (targets.image, targets.text, nsd_ids)
    )

    def collate(pairs: list[tuple[int, int]]) -> dict[str, Any]:
        indices = [index for _, index in pairs]
        # Both index tables in one transfer to the device.
        row = torch.from_numpy(np.stack([rows[indices], indices])).to(betas.device)
        batch = {
            **betas.batch(indices),
            "image": image[row[0]],
            "text": text[row[0]],
            "nsd_id": nsd_id[row[1]],
        }
        return mixco(batch, pairs, seed=seed) if pairs[0][0] < mix_epochs else batch

    return collate


def mixco(batch: dict[str, Any], pairs: list[tuple[int, int]], *, seed: int) -> dict[str, Any]:
    """MixCo: mix the betas of each trial with those of the next trial of the same subject in the batch.

    The share of each trial is drawn from Beta(.15, .15), as published, and is a function of (seed, epoch, index).
    """
    subject, second = batch["subject_index"], torch.arange(len(pairs))
    for row in subject.unique():
        own = (subject == row).nonzero()[:, 0]
        # Only within a subject: betas of two subjects are of different voxels.
        second[own] = own.roll(-1)
    share = torch.tensor(
        [np.random.default_rng([seed, epoch, index, 5]).beta(0.15, 0.15) for epoch, index in pairs]
    ).float()
    device = batch["betas"].device
    share, second = share.to(device), second.to(device)
    betas = share[:, None] * batch["betas"] + (1 - share)[:, None] * batch["betas"][second]
    return batch | {"betas": betas, "mixed_with": batch["nsd_id"][second], "share": share}


def validate(aligner: BrainAligner, betas: TrialBetas, targets: Targets) -> dict[str, float]:
    """Brain → image retrieval among the validation images, averaged over the training subjects."""
    trials, embeddings = betas.trials, brain_embeddings(aligner, betas)
    scores = []
    for subject in np.unique(trials.subject_index):
        own = trials.subject_index == subject
        gallery = targets.image[targets.rows(trials.nsd_id[own])]
        scores.append(retrieval(embeddings[own] @ gallery.T, np.arange(own.sum()), np.random.default_rng(0)))
    return {
        METRIC: float(np.mean([score.r_at_10 for score in scores])),
        "validation_chance_R@10": float(np.mean([score.chance_r_at_10 for score in scores])),
    }


def brain_embeddings(aligner: BrainAligner, betas: TrialBetas) -> Float[np.ndarray, "n d"]:
    """Unit embeddings of trials in the space of images, computed without dropout on the device of the aligner."""
    return _embeddings(aligner, betas)[0]


def text_embeddings(aligner: BrainAligner, betas: TrialBetas) -> Float[np.ndarray, "n d"]:
    """The same in the space of captions."""
    return _embeddings(aligner, betas)[1]


@torch.no_grad()
def _embeddings(
    aligner: BrainAligner, betas: TrialBetas
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    pooled = pooled_betas(aligner.encoder, betas)
    rows = [aligner.embed(frozen_brain_tokens(aligner.encoder, part)) for part in pooled.split(_BATCH)]
    image, text = (torch.cat(parts).cpu().numpy() for parts in zip(*rows, strict=True))
    return image, text
