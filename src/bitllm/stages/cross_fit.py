"""Cross-fitted embeddings of the training trials: each from an encoder that was trained without the trial's image.

The training images are divided into folds. For each fold an encoder is aligned on the images of the other folds, and
then embeds the trials of its own fold. None of these encoders provides brain tokens to the LLM, so a reward based on
them (`bitllm.stages.rewards.neural_rank`) does not measure what a policy has memorized.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from bitllm.data.batch import TrialBetas
from bitllm.data.dataset import select_trials
from bitllm.data.io.models import read_tensors
from bitllm.data.splits import Split, with_checksum
from bitllm.data.store import Store
from bitllm.files import file_written_whole
from bitllm.model.aligner import load_aligner
from bitllm.stages.align import text_embeddings
from bitllm.stages.examples import checked_anatomies
from bitllm.training.distributed import device

N_FOLDS = 2
EMBEDDINGS = "trial_embeddings.safetensors"


def without_fold(split: Split, fold: int, *, seed: int) -> Split:
    """The split with the training images of the other folds."""
    order = np.random.default_rng([seed, 13]).permutation(sorted(split.train_images))
    own = order[fold::N_FOLDS]
    name = f"{split.name} without fold {fold + 1} of {N_FOLDS}"
    return with_checksum(replace(split, name=name, train_images=split.train_images - frozenset(own.tolist())))


def save_trial_embeddings(
    store: Store, split: Split, folder: Path, folds: list[Path], *, atlases: tuple[str, ...], seed: int
) -> None:
    """Embed every training trial with the encoder that was trained without its image.

    Parameters
    ----------
    folder
        Run folder to write into.
    folds
        Folders of the aligned encoders, in the order of the folds.
    """
    trials = select_trials(store, split, "train", averaged=False)
    found: Float[np.ndarray, "n d"] | None = None
    for fold, place in enumerate(folds):
        aligner = load_aligner(place).eval().to(device())
        seen = without_fold(split, fold, seed=seed).train_images
        rows = np.flatnonzero([int(nsd_id) not in seen for nsd_id in trials.nsd_id])
        own = trials[rows]
        anatomies = checked_anatomies(aligner.encoder, own, atlases)
        embeddings = text_embeddings(aligner, TrialBetas(own, anatomies, device()))
        if found is None:
            found = np.zeros((len(trials), embeddings.shape[1]), dtype=np.float32)
        found[rows] = embeddings
    assert found is not None
    with file_written_whole(folder / EMBEDDINGS) as unfinished:
        save_file({"embeddings": found}, unfinished)


def load_trial_embeddings(folder: Path) -> Float[np.ndarray, "n d"]:
    """Embeddings of the training trials of a run.

    Raises
    ------
    DataError
        If the run has none.
    """
    what = "embeddings of the training trials (rft.rewards.neural_rank)"
    return np.asarray(read_tensors(folder / EMBEDDINGS, what, framework="numpy")["embeddings"])
