"""The trials of a subject by image: which were seen how often, and whose betas are another image's."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.evaluation.pairing import ADJACENT_TRIALS


@dataclass(frozen=True)
class SubjectTrials:
    """All trials of one subject in a store.

    Parameters
    ----------
    store, split
        The data, and what the run was trained and tested on.
    subject
        Whose trials.
    """

    store: Store
    split: Split
    subject: str

    @cached_property
    def rows(self) -> dict[int, tuple[int, ...]]:
        """Image → its rows of the betas, in the order in which they were seen."""
        found: dict[int, list[int]] = {}
        for row, nsd_id in enumerate(self.store.subject(self.subject).trials["nsd_id"].tolist()):
            found.setdefault(int(nsd_id), []).append(row)
        return {nsd_id: tuple(found[nsd_id]) for nsd_id in sorted(found)}

    def use_of(self, nsd_id: int) -> str:
        """What the run did with an image: ``test``, ``validation``, ``train`` or ``unused``."""
        parts = {"test": self.split.test_images, "validation": self.split.validation_images}
        parts["train"] = self.split.train_images
        return next((use for use, images in parts.items() if nsd_id in images), "unused")

    def betas(self, nsd_id: int, repetition: int | None) -> Float[np.ndarray, " voxels"]:
        """The mean over all repetitions of an image, or one of them, counted from 1.

        Raises
        ------
        DataError
            If the subject has not seen the image, or not that often.
        """
        if nsd_id not in self.rows:
            raise DataError(f"{self.subject}: expected an image that was seen, found nsd_id {nsd_id}")
        rows = self.rows[nsd_id]
        if repetition is not None:
            if repetition > len(rows):
                raise DataError(
                    f"{self.subject}: expected repetition 1 to {len(rows)} of nsd_id {nsd_id}, found {repetition}"
                )
            rows = (rows[repetition - 1],)
        return self._mean(rows)

    def others(self, nsd_id: int, *, n: int, single: bool, seed: int) -> Float[np.ndarray, "n voxels"]:
        """Betas of ``n`` other images of the same use, averaged or single like the trial they are compared with.

        None has a trial within `ADJACENT_TRIALS` of one of the image's own in the same session: the slow response of
        the brain mixes neighbours. With fewer images than ``n``, some come more than once.

        Raises
        ------
        DataError
            If there is no such image.
        """
        use, own = self.use_of(nsd_id), self._places(self.rows[nsd_id])
        candidates = [
            other
            for other, rows in self.rows.items()
            if other != nsd_id and self.use_of(other) == use and not _are_near(own, self._places(rows))
        ]
        if not candidates:
            raise DataError(f"{self.subject}: expected another {use} image to compare with, found none")
        rng = np.random.default_rng([seed, nsd_id])
        order = [candidates[place] for place in rng.permutation(len(candidates))]
        chosen = [order[place % len(order)] for place in range(n)]
        return np.stack([self._mean(self.rows[one][:1] if single else self.rows[one]) for one in chosen])

    def _mean(self, rows: tuple[int, ...]) -> Float[np.ndarray, " voxels"]:
        return self.store.subject(self.subject).betas[list(rows)].astype(np.float32).mean(axis=0)

    @cached_property
    def _sessions(self) -> Int[np.ndarray, " trials"]:
        return self.store.subject(self.subject).trials["session"].to_numpy().astype(np.int64)

    def _places(self, rows: tuple[int, ...]) -> list[tuple[int, int]]:
        return [(int(self._sessions[row]), row) for row in rows]


def _are_near(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> bool:
    return any(a[0] == b[0] and abs(a[1] - b[1]) <= ADJACENT_TRIALS for a in one for b in other)
