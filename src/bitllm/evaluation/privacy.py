"""What a model gives away about its training data: membership, identity of subjects, contents of its files.

Membership inference by loss: the loss of a caption is lower if the model was trained on it. The area under the curve
(AUC) is the probability that a training item has a lower loss than one that was not used; 0.5 is chance.

    trial    single trials of training and of validation images, by how much the betas lower the loss of the captions
    image    the same images, averaged over repetitions, by the loss itself
    text     the same captions, by the loss of the language model without betas
    subject  test images seen by training subjects and by others, by how much the betas lower the loss
    size     the trials of ``trial`` by the size of their betas, without a model

Z-scores with the statistics of the training trials make all other trials slightly larger. A stored beta therefore
tells whether it was used in preparation, whatever the model (``size``). For ``trial`` and ``image`` the others are
multiplied by one factor, after which both groups have the same mean square: what is left is what the model tells.

An attacker with other signals, or with models trained on known data, may do better: a value of 0.5 is no proof.

References
----------
Yeom et al. 2018, "Privacy risk in machine learning" (the attack by loss). Ours has no threshold: the AUC needs none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int
from safetensors import safe_open
from torch import Tensor

from bitllm.data.dataset import TrialSet, rows_of_images, select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.evaluation.bits import reference_tokens
from bitllm.evaluation.held_out import trials_of
from bitllm.metrics.intervals import Estimate, bootstrap_mean, bootstrap_of_sums
from bitllm.model.captioner import Captioner

_N_REFERENCES = 2
"""References of each item that are scored; training used all of them in turn."""
_OF_TRIALS, _OF_IMAGES = {"trial": "by_betas"}, {"image": "with_betas", "text": "text"}
"""Loss of each measure."""
_TEXTS = frozenset({".json", ".jsonl", ".yaml", ".md", ".txt", ".jinja"})
_ARRAYS = frozenset({".npy", ".npz", ".parquet", ".h5", ".hdf5", ".pkl", ".pt", ".nii", ".gz"})


@dataclass(frozen=True)
class _Scaled(TrialSet):
    """Trials with betas multiplied by a factor."""

    factor: float = 1.0

    def betas(self, index: int) -> Float32[np.ndarray, " voxels"]:
        return np.float32(self.factor) * super().betas(index)


@dataclass(frozen=True)
class Losses:
    """Loss of the references of each item, in bits per token."""

    nsd_id: Int[np.ndarray, " n"]
    with_betas: Float[np.ndarray, " n"]
    text: Float[np.ndarray, " n"]
    """Without betas."""

    @property
    def by_betas(self) -> Float[np.ndarray, " n"]:
        """How much the betas change the loss; it does not depend on how likely the text itself is."""
        return self.with_betas - self.text


def losses(system: Captioner, trials: TrialSet, brain_tokens: Tensor) -> Losses:
    """Losses of the references of trials, with their betas and without any."""
    references = [trials.store.captions[int(nsd_id)][:_N_REFERENCES] for nsd_id in trials.nsd_id]
    tokens = reference_tokens(system.prompter, references)
    n_tokens = tokens.by_row(tokens.n_tokens.astype(np.float64), len(trials))
    found = [
        -tokens.by_row(system.log2_probs(tokens.answers, tokens.row, given).sum(axis=1), len(trials))
        / n_tokens
        for given in (brain_tokens, None)
    ]
    return Losses(trials.nsd_id, *found)


def membership_auc(
    members: Float[np.ndarray, " n"],
    others: Float[np.ndarray, " m"],
    images: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]],
    *,
    seed: int = 0,
) -> Estimate:
    """Probability that a member has a lower loss than another item, with its bootstrap interval over images.

    Ties count one half. All items of an image are drawn together; members and others may be of the same images.

    Parameters
    ----------
    members, others
        Losses of items that were, and were not, used for training.
    images
        Image of each item.
    """
    every = np.unique(np.concatenate(images))
    rows, columns = (np.searchsorted(every, one) for one in images)
    lower = np.sign(others[None] - members[:, None]) / 2 + 0.5
    wins = np.zeros((len(every), len(every)))
    np.add.at(wins, (rows[:, None], columns[None]), lower)
    n_of = [np.bincount(place, minlength=len(every)).astype(np.float64) for place in (rows, columns)]

    def auc(times_drawn: np.ndarray) -> float:
        pairs = (times_drawn @ n_of[0]) * (times_drawn @ n_of[1])
        return float(times_drawn @ wins @ times_drawn / pairs) if pairs else 0.5

    return bootstrap_of_sums(np.eye(len(every)), auc, seed=seed)


def subject_identity(
    brain_tokens: Float[np.ndarray, "n d"],
    subjects: Int[np.ndarray, " n"],
    images: Int[np.ndarray, " n"],
    *,
    seed: int = 0,
) -> Estimate:
    """Share of trials of which the nearest centroid of brain tokens names the subject.

    Centroids are fitted on half of the images and tested on the other half, so that what is recognized is the subject.
    """
    order = np.random.default_rng(seed).permutation(np.unique(images))
    is_fit = np.isin(images, order[: len(order) // 2])
    spread = brain_tokens[is_fit].std(axis=0)
    scaled = (brain_tokens - brain_tokens[is_fit].mean(axis=0)) / np.where(spread > 0, spread, 1)
    names = np.unique(subjects)
    centroids = np.stack([scaled[is_fit & (subjects == name)].mean(axis=0) for name in names])
    tested = scaled[~is_fit]
    distance = (centroids**2).sum(axis=1) - 2 * tested @ centroids.T
    is_right = names[distance.argmin(axis=1)] == subjects[~is_fit]
    by_image = [is_right[images[~is_fit] == image].mean() for image in np.unique(images[~is_fit])]
    return bootstrap_mean(np.array(by_image), seed=seed)


def what_model_gives_away(
    system: Captioner, store: Store, split: Split, *, n_items: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Membership and identity, from a system, its store and the split that it was trained on.

    Parameters
    ----------
    n_items
        Largest number of trials of each kind, drawn with ``seed``.

    Returns
    -------
    dict
        ``membership`` (trial, image, text, subject, size) and ``identity``, each with value, interval and numbers, and
        ``not_run`` with reasons.
    """
    found: dict[str, Any] = {"membership": {}, "not_run": {}}
    for is_averaged, kinds in ((False, _OF_TRIALS), (True, _OF_IMAGES)):
        inside, outside = (
            _drawn(select_trials(store, split, part, averaged=is_averaged), n_items, seed)
            for part in ("train", "validation")
        )
        sizes = size_of_betas(inside), size_of_betas(outside)
        outside = _Scaled(**vars(outside), factor=float(np.sqrt(sizes[0].mean() / sizes[1].mean())))
        members, others = (
            losses(system, trials, system.brain_tokens(trials)) for trials in (inside, outside)
        )
        for name, kind in kinds.items():
            values = getattr(members, kind), getattr(others, kind)
            found["membership"][name] = _membership(values, (members.nsd_id, others.nsd_id), seed=seed)
        if not is_averaged:
            found["membership"]["size"] = _membership(sizes, (inside.nsd_id, outside.nsd_id), seed=seed)
    _add_subjects(found, system, store, split, n_items=n_items, seed=seed)
    return found


def _add_subjects(
    found: dict[str, Any], system: Captioner, store: Store, split: Split, *, n_items: int, seed: int
) -> None:
    everyone = tuple(sorted({*split.train_subjects, *split.test_subjects}))
    seen = {name: _of_subject(store, split, name) for name in everyone}
    sets = {name: _drawn(trials, n_items, seed) for name, trials in seen.items() if trials is not None}
    tokens = {name: system.brain_tokens(trials) for name, trials in sets.items()}
    inside = [name for name in sets if name in split.train_subjects]
    outside = [name for name in sets if name not in split.train_subjects]
    if inside and outside:
        members, others = (
            _joined([losses(system, sets[name], tokens[name]) for name in names])
            for names in (inside, outside)
        )
        values = members.by_betas, others.by_betas
        found["membership"]["subject"] = _membership(values, (members.nsd_id, others.nsd_id), seed=seed)
    else:
        found["not_run"]["subject"] = "no test images seen by both training subjects and others"
    if len(sets) < 2 or min(len(trials) for trials in sets.values()) < 4:
        found["not_run"]["identity"] = "fewer than two subjects with four test images"
        return
    flat = np.concatenate([one.flatten(1).cpu().numpy() for one in tokens.values()])
    number = np.repeat(np.arange(len(sets)), [len(trials) for trials in sets.values()])
    images = np.concatenate([trials.nsd_id for trials in sets.values()])
    estimate = subject_identity(flat.astype(np.float64), number, images, seed=seed)
    found["identity"] = _as_record(estimate) | {
        "chance": 1 / len(sets),
        "n_subjects": len(sets),
        "n": len(flat),
    }


def size_of_betas(trials: TrialSet) -> Float[np.ndarray, " n"]:
    """Mean square of the betas of each item."""
    return np.array([np.square(trials.betas(index)).mean(dtype=np.float64) for index in range(len(trials))])


def what_files_hold(folders: Sequence[Path], store: Store) -> dict[str, Any]:
    """Names of participants, arrays that may be data, and other data files in the folders of a model.

    Returns
    -------
    dict
        ``files`` (number of files read), ``participants`` (files with the name of a subject), ``data`` (files of
        arrays or tables, and tensors with an axis as long as a subject's trials or voxels).
    """
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    word = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, store.subjects))})(?![A-Za-z0-9])")
    lengths = {n for one in store.manifest.subjects.values() for n in (one.n_trials, one.n_voxels)}
    participants, data = [], []
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        if path.suffix in _TEXTS and word.search(path.read_text(encoding="utf-8", errors="replace")):
            participants.append(name)
        elif path.suffix == ".safetensors":
            data += [f"{name}: {tensor}" for tensor in _tensors_as_long_as(path, lengths)]
        elif path.suffix in _ARRAYS:
            data.append(name)
    return {"files": len(paths), "participants": participants, "data": data}


def _tensors_as_long_as(path: Path, lengths: set[int]) -> Iterator[str]:
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            shape = file.get_slice(name).get_shape()
            if len(shape) > 1 and lengths & set(shape):
                yield f"{name} {list(shape)}"


def _joined(parts: list[Losses]) -> Losses:
    return Losses(
        np.concatenate([part.nsd_id for part in parts]),
        np.concatenate([part.with_betas for part in parts]),
        np.concatenate([part.text for part in parts]),
    )


def _membership(
    values: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]],
    images: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]],
    *,
    seed: int,
) -> dict[str, Any]:
    estimate = membership_auc(*values, images, seed=seed)
    return _as_record(estimate) | {"n_members": len(values[0]), "n_others": len(values[1])}


def _as_record(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _of_subject(store: Store, split: Split, name: str) -> TrialSet | None:
    """The test images that a subject saw, averaged over repetitions; none of them was used for training."""
    images = np.array(sorted(split.test_images - split.train_images), dtype=np.int64)
    rows = rows_of_images(store.subject(name).trials["nsd_id"].to_numpy(), images, averaged=True)
    return trials_of(store, name, rows) if rows else None


def _drawn(trials: TrialSet, n_items: int, seed: int) -> TrialSet:
    order = np.random.default_rng(seed).permutation(len(trials))
    return trials[np.sort(order[:n_items])]
