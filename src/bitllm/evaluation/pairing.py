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


def other_images(held_out: HeldOut, *, seed: int, within_session: bool = False) -> OtherImages:
    """Exchange the rows of a subject at random, optionally only with rows of the same session."""
    same = held_out.nsd_id[:, None] == held_out.nsd_id[None]
    if within_session:
        sessions = held_out.trials.sessions()
        same |= sessions[:, None] != sessions[None]
    rows = held_out.trials.rows
    adjacent = neighbors(rows, rows, held_out.sessions)
    rng = np.random.default_rng(seed)
    order = exchange(same | adjacent, rng)
    if order is None:
        # With few images every row may be a neighbor of all others: then only the image must differ.
        order = exchange(same, rng)
    if order is None:
        raise DataError(
            f"permuted: expected images that can be exchanged{' within each session' if within_session else ''}, found "
            f"{len(np.unique(held_out.nsd_id))} in {len(held_out.nsd_id)} rows of {held_out.subject}; give more images"
        )
    return OtherImages(order, int(adjacent[np.arange(len(order)), order].sum()))


def neighbors(
    rows: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    sessions: Int[np.ndarray, " trials"],
) -> Bool[np.ndarray, "n m"]:
    """Which items have trials within `ADJACENT_TRIALS` of trials of other items, in the same session.

    Parameters
    ----------
    rows, others
        Trials averaged in each item.
    sessions
        Session of every trial.
    """
    near = np.zeros((len(rows), len(others)), dtype=bool)
    for a in _places(rows, sessions):
        for b in _places(others, sessions):
            near |= np.abs(a[:, None] - b[None]) <= ADJACENT_TRIALS
    return near


def _places(rows: Sequence[Sequence[int]], sessions: Int[np.ndarray, " trials"]) -> Int[np.ndarray, "k n"]:
    """Positions of trials on a line with large gaps between sessions; shorter items repeat their last trial."""
    # An offset larger than any session separates the sessions, so one subtraction compares trial and session.
    longest = max(map(len, rows), default=0)
    padded = [[*item, *[item[-1]] * (longest - len(item))] for item in rows]
    trials = np.array(padded, dtype=np.int64).reshape(len(rows), longest).T
    return trials + _BETWEEN_SESSIONS * sessions[trials]


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
