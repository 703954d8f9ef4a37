"""The trials of a split: which rows of betas belong to which image, single or averaged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int, Int64
from torch.utils.data import Dataset

from bitllm.config import nearest
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store, SubjectData
from bitllm.errors import DataError, SealedTestError, SplitError

PARTS = ("train", "validation", "test")

_IS_SEALED: ContextVar[bool] = ContextVar("is_sealed", default=False)


@dataclass(frozen=True)
class TrialSet:
    """Trials of several subjects. Each item is a single trial, or the mean over the repetitions of an image.

    Parameters
    ----------
    store
        Store with the betas.
    subjects
        Names of the subjects.
    subject_index
        Index of each item's subject in ``subjects``.
    rows
        Rows of each item in the subject's betas: one for a single trial, several to be averaged.
    nsd_id
        Image of each item.
    """

    store: Store
    subjects: tuple[str, ...]
    subject_index: Int[np.ndarray, " n"]
    rows: list[tuple[int, ...]]
    nsd_id: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice | int | Sequence[int] | np.ndarray) -> "TrialSet":
        """Some of the items, as ``trials[:8]``, ``trials[3]`` or ``trials[trials.nsd_id == 42]``."""
        order = np.atleast_1d(np.arange(len(self))[chosen])
        return replace(
            self,
            subject_index=self.subject_index[order],
            rows=[self.rows[item] for item in order],
            nsd_id=self.nsd_id[order],
        )

    def subject_of(self, index: int) -> str:
        """The subject of an item."""
        return self.subjects[self.subject_index[index]]

    def betas(self, index: int) -> Float32[np.ndarray, " voxels"]:
        """Betas of an item: the mean over its rows, as z-scores."""
        stored = self.store.subject(self.subject_of(index)).betas
        return stored[list(self.rows[index])].astype(np.float32).mean(axis=0)

    def sessions(self) -> Int[np.ndarray, " n"]:
        """The session of each item (of its first row)."""
        of_subject = [self.store.subject(subject).trials["session"].to_numpy() for subject in self.subjects]
        pairs = zip(self.subject_index.tolist(), self.rows, strict=True)
        return np.array([of_subject[index][rows[0]] for index, rows in pairs])

    @property
    def is_single(self) -> bool:
        """Whether every item is a single trial, so that its betas are exactly the float16 values of the store."""
        return all(len(rows) == 1 for rows in self.rows)

    def n_repetitions(self, index: int) -> int:
        """Number of trials averaged in an item."""
        return len(self.rows[index])


def select_trials(
    store: Store, split: Split, part: str, *, averaged: bool, subjects: Sequence[str] | None = None
) -> TrialSet:
    """The trials of one part of a split, sorted by subject, then by the first row.

    Parameters
    ----------
    store
        An open store.
    split
        A split of that store; it is first checked for leaks.
    part
        ``train`` or ``validation`` (those images, training subjects), or ``test`` (test images, test subjects).
    averaged
        Whether to average the repetitions of an image within a subject.
    subjects
        Subjects to select; by default all of the part.
    """
    if part not in PARTS:
        raise SplitError(
            f"split `{split.name}`: expected a part, found `{part}`; {nearest(part, list(PARTS))}"
        )
    if part == "test" and _IS_SEALED.get():
        raise SealedTestError(
            f"split `{split.name}`: expected no use of the test part during training, found a request for its trials; "
            "select them after training"
        )
    check_split(store, split)
    chosen = _subjects_of_part(split, part, subjects)
    images = np.array(sorted(getattr(split, f"{part}_images")), dtype=np.int64)
    subject_index: list[int] = []
    rows: list[tuple[int, ...]] = []
    shown: list[np.ndarray] = []
    for index, subject in enumerate(chosen):
        of_subject = store.subject(subject).trials["nsd_id"].to_numpy()
        found = rows_of_images(of_subject, images, averaged=averaged)
        rows.extend(found)
        subject_index.extend([index] * len(found))
        shown.append(of_subject[[row[0] for row in found]])
    if not rows:
        raise SplitError(
            f"split `{split.name}`: expected {part} trials of {', '.join(chosen)} in {store.path}, found "
            "none; make the split again for this store"
        )
    nsd_id = np.concatenate(shown)
    if split.permute_labels is not None and part != "test":
        first = [(chosen[index], row[0]) for index, row in zip(subject_index, rows, strict=True)]
        nsd_id = _permuted_within_runs(store, first, nsd_id, seed=split.permute_labels)
    return TrialSet(store, chosen, np.array(subject_index), rows, nsd_id)


def _permuted_within_runs(
    store: Store, first: list[tuple[str, int]], nsd_id: Int[np.ndarray, " n"], *, seed: int
) -> Int[np.ndarray, " n"]:
    """The images of trials (subject, row), permuted among the trials of each run."""
    runs: dict[tuple[str, int, int], list[int]] = {}
    for place, (subject, row) in enumerate(first):
        trial = store.subject(subject).trials.iloc[row]
        runs.setdefault((subject, int(trial["session"]), int(trial["run"])), []).append(place)
    permuted = nsd_id.copy()
    for (subject, session, run), places in runs.items():
        order = np.random.default_rng([seed, store.subjects.index(subject), session, run]).permutation(places)
        permuted[places] = nsd_id[order]
    return permuted


@contextmanager
def sealed_test() -> Iterator[None]:
    """Make the test part inaccessible within the block, which contains everything that is fitted."""
    token = _IS_SEALED.set(True)
    try:
        yield
    finally:
        _IS_SEALED.reset(token)


def anatomy(
    data: SubjectData, atlases: Sequence[str]
) -> tuple[Float32[np.ndarray, "voxels 3"], Int64[np.ndarray, "voxels atlases"]]:
    """Coordinates in mm and labels of a subject's voxels, with ``atlases`` in the given order."""
    valid = [
        name for name in data.voxels.columns if name not in ("i", "j", "k", "x_mm", "y_mm", "z_mm", "ncsnr")
    ]
    for atlas in atlases:
        _require_atlas(atlas, valid, data.subject)
    coords_mm = data.voxels[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float32)
    return coords_mm, data.voxels[list(atlases)].to_numpy(np.int64)


def n_labels(store: Store, atlases: Sequence[str]) -> tuple[int, ...]:
    """The largest label of each atlas, with ``atlases`` in the given order; label 0 (unknown) is not counted."""
    for atlas in atlases:
        _require_atlas(atlas, list(store.atlases), str(store.path))
    return tuple(max(store.atlases[atlas], default=0) for atlas in atlases)


def _subjects_of_part(split: Split, part: str, subjects: Sequence[str] | None) -> tuple[str, ...]:
    of_part = split.test_subjects if part == "test" else split.train_subjects
    for subject in subjects or ():
        if subject not in of_part:
            raise SplitError(
                f"split `{split.name}`: expected {part} subjects ({', '.join(of_part)}), found `{subject}`; "
                "choose among them"
            )
    return tuple(subject for subject in of_part if subjects is None or subject in subjects)


def rows_of_images(nsd_id: np.ndarray, images: np.ndarray, *, averaged: bool) -> list[tuple[int, ...]]:
    """Rows of a subject's trials of some images: all repetitions of an image together, or each trial alone."""
    rows = np.flatnonzero(np.isin(nsd_id, images)).tolist()
    if not averaged:
        return [(row,) for row in rows]
    of_image: dict[int, list[int]] = {}
    for row in rows:
        of_image.setdefault(int(nsd_id[row]), []).append(row)
    return [tuple(repetitions) for repetitions in of_image.values()]


def _require_atlas(atlas: str, valid: list[str], where: str) -> None:
    if atlas not in valid:
        raise DataError(f"{where}: expected an atlas of the store, found `{atlas}`; {nearest(atlas, valid)}")


_POOL = 16  # number of batches that are sorted by length together


class EpochOrder(Dataset):
    """The order of examples: item k is the (epoch, index) of the k-th example of a run.

    Parameters
    ----------
    n_examples
        Size of the training set.
    n_items
        Number of examples of the whole run: steps × batch size.
    seed
        Seed of the order; each epoch has another permutation.
    batch_size, lengths
        With ``lengths`` (of the examples in an epoch), batches contain examples of similar length: examples are
        sorted within pools of 16 batches, and the batches of a pool are in random order.
    groups
        Group (subject) of each example. Examples of a batch are sorted by group, so that each process gets few
        subjects and computes few pooling maps.
    """

    def __init__(
        self,
        n_examples: int,
        n_items: int,
        *,
        seed: int,
        batch_size: int = 1,
        lengths: Callable[[int], Int[np.ndarray, " n"]] | None = None,
        groups: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        self.n_examples, self.n_items, self.seed = n_examples, n_items, seed
        self.batch_size, self.lengths, self.groups = batch_size, lengths, groups
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._batch, self._pairs = -1, [(0, 0)]

    def __len__(self) -> int:
        return self.n_items

    def __getitem__(self, item: int) -> tuple[int, int]:
        if self.groups is None:
            return self._at(item)
        batch, place = divmod(item, self.batch_size)
        if batch != self._batch:
            pairs = [self._at(batch * self.batch_size + other) for other in range(self.batch_size)]
            order = np.argsort([self.groups[index] for _, index in pairs], kind="stable")
            self._batch, self._pairs = batch, [pairs[int(place)] for place in order]
        return self._pairs[place]

    def _at(self, item: int) -> tuple[int, int]:
        epoch, position = divmod(item, self.n_examples)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return epoch, int(self._order[position])

    def _order_of(self, epoch: int) -> Int[np.ndarray, " n"]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.n_examples)
        if self.lengths is None:
            return order
        lengths, grouped = self.lengths(epoch), []
        for start in range(0, len(order), _POOL * self.batch_size):
            pool = order[start : start + _POOL * self.batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches = np.split(pool, range(self.batch_size, len(pool), self.batch_size))
            grouped += [batches[number] for number in rng.permutation(len(batches))]
        return np.concatenate(grouped)
