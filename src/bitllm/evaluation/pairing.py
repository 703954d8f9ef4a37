"""Which other image's betas each row gets under *permuted*: a random exchange between unrelated rows.

Two rows are not exchanged if they are of the same image, or if they have trials within a few trials of each other in
one session: the slow hemodynamic response mixes neighboring trials.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from bitllm.errors import DataError
from bitllm.evaluation.held_out import HeldOut

ADJACENT_TRIALS = 3
"""Trials up to this distance are neighbors (NSD has a trial every 4 s, so 12 s)."""

_ROUNDS = 300
_BETWEEN_SESSIONS = 1_000_000


class OtherImages(NamedTuple):
    """For each row, the row of another image."""

    order: Int[np.ndarray, " n"]
    n_adjacent: int
    """Number of rows that got a neighbor's betas because there was no alternative (few images)."""


def other_images(held_out: HeldOut, *, seed: int) -> OtherImages:
    """Exchange the rows of a subject at random."""
    same = held_out.nsd_id[:, None] == held_out.nsd_id[None]
    adjacent = neighbours(held_out.trials.rows, held_out.sessions)
    rng = np.random.default_rng(seed)
    order = exchange(same | adjacent, rng)
    if order is None:
        # With few images every row may be a neighbor of all others: then only the image must differ.
        order = exchange(same, rng)
    if order is None:
        raise DataError(
            f"permuted: expected images that can be exchanged, found {len(np.unique(held_out.nsd_id))} in "
            f"{len(held_out.nsd_id)} rows of {held_out.subject}; give more images"
        )
    return OtherImages(order, int(adjacent[np.arange(len(order)), order].sum()))


def neighbours(
    rows: Sequence[Sequence[int]], sessions: Int[np.ndarray, " trials"]
) -> Bool[np.ndarray, "n n"]:
    """Which items have trials within `ADJACENT_TRIALS` of each other in one session.

    Parameters
    ----------
    rows
        Trials averaged in each item.
    sessions
        Session of every trial.
    """
    # An offset larger than any session separates the sessions, so one subtraction compares trial and session.
    places = [[row + _BETWEEN_SESSIONS * int(sessions[row]) for row in item] for item in rows]
    near = np.zeros((len(rows), len(rows)), dtype=bool)
    for one in range(max(map(len, places))):
        a = np.array([item[min(one, len(item) - 1)] for item in places])
        for other in range(max(map(len, places))):
            b = np.array([item[min(other, len(item) - 1)] for item in places])
            near |= np.abs(a[:, None] - b[None]) <= ADJACENT_TRIALS
    return near


def exchange(forbidden: Bool[np.ndarray, "n n"], rng: np.random.Generator) -> Int[np.ndarray, " n"] | None:
    """A random order in which no row gets a forbidden one; None if none is found."""
    n = len(forbidden)
    order = rng.permutation(n)
    for _ in range(_ROUNDS):
        wrong = np.flatnonzero(forbidden[np.arange(n), order])
        if not len(wrong):
            return order.astype(np.int64)
        for place in wrong:
            # Swap with a row for which both results are allowed; if there is none, swap at random to leave the
            # dead end.
            fits = np.flatnonzero(~forbidden[place, order] & ~forbidden[np.arange(n), order[place]])
            other = rng.choice(fits) if len(fits) else rng.integers(n)
            order[place], order[other] = order[other], order[place]
    return None
