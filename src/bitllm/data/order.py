"""The order of training examples: a function of (seed, epoch, index), the same however a run is split or resumed."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset

_POOL = 16  # number of batches that are sorted by length together


class EpochOrder(Dataset):
    """Item k is the (epoch, index) of the k-th example of a run.

    Parameters
    ----------
    n_examples
        Size of the training set.
    n_items
        Number of examples that the run sees in all: steps × batch size.
    seed
        Seed of the order; each epoch has its own permutation.
    batch_size, lengths
        If ``lengths`` gives the length of each example in an epoch, batches hold examples of similar length: they are
        sorted within pools of 16 batches, and the batches of a pool come in random order.
    groups
        Group (subject) of each example. Within a batch, examples are sorted by group, so that a process that gets a
        part of the batch sees few groups and computes little that they do not share.
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
