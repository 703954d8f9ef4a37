"""The held-out trials: those of one subject in one part of a split, with references and a scorer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.errors import SplitError
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer
from bitllm.evaluation.scoring.captions_file import CaptionRecord
from bitllm.model.embed import brain_tokens_of_betas
from bitllm.model.encoder import BrainEncoder


@dataclass(frozen=True)
class HeldOut:
    """Trials of one subject, averaged over repetitions or single, with their references and scorer."""

    store: Store
    subject: str
    trials: TrialSet
    betas: Float[np.ndarray, "n voxels"]
    references: list[tuple[str, ...]]
    scorer: CaptionScorer
    part: str = "test"
    """Part of the split."""

    @property
    def nsd_id(self) -> Int[np.ndarray, " n"]:
        """Image of each row."""
        return self.trials.nsd_id

    @cached_property
    def n_repetitions(self) -> Int[np.ndarray, " n"]:
        """Number of trials averaged in each row."""
        return np.array([self.trials.n_repetitions(row) for row in range(len(self.trials))])

    @cached_property
    def sessions(self) -> Int[np.ndarray, " trials"]:
        """Session of every trial of the subject, in the order of its betas."""
        return self.store.subject(self.subject).trials["session"].to_numpy().astype(np.int64)

    def brain_tokens(
        self,
        encoder: BrainEncoder,
        atlases: Sequence[str],
        betas: Float[np.ndarray, "m voxels"] | None = None,
    ) -> Float[Tensor, "m N width"]:
        """Brain tokens of the trials, or of other betas (such as a control's) at the same voxels."""
        anatomies = Anatomies.of(self.store, [self.subject], atlases)
        return brain_tokens_of_betas(
            encoder, list(self.betas if betas is None else betas), self.subject, anatomies
        )

    def records(self, captions: Sequence[str], *, control: str) -> list[CaptionRecord]:
        """Lines of ``captions.jsonl``."""
        return [
            CaptionRecord(
                nsd_id=int(self.nsd_id[row]),
                subject=self.subject,
                caption=caption,
                references=self.references[row],
                n_repetitions=self.trials.n_repetitions(row),
                control=control,
            )
            for row, caption in enumerate(captions)
        ]


def read_held_out(
    store: Store, split: Split, *, averaged: bool, part: str = "test", subject: str | None = None
) -> HeldOut:
    """The trials of one subject in one part of a split.

    Parameters
    ----------
    part
        ``test``, or ``validation`` to choose settings without opening the test part.
    subject
        Needed if the part has several subjects.
    """
    of_part = split.test_subjects if part == "test" else split.train_subjects
    if subject is None and len(of_part) != 1:
        raise SplitError(
            f"split `{split.name}`: expected one {part} subject, found {', '.join(of_part)}; evaluate them one "
            "at a time, with --subject"
        )
    trials = select_trials(
        store, split, part, averaged=averaged, subjects=None if subject is None else [subject]
    )
    return _of_trials(trials, part)


def first_trials(held_out: HeldOut) -> HeldOut:
    """The first single trial of every image, so that there are as many rows as averages."""
    _, first = np.unique(held_out.nsd_id, return_index=True)
    return _of_trials(held_out.trials[np.sort(first)], held_out.part)


def trials_of(store: Store, subject: str, rows: list[tuple[int, ...]]) -> TrialSet:
    """Trials of one subject with given rows; several rows of an item are averaged."""
    nsd_id = store.subject(subject).trials["nsd_id"].to_numpy()
    first = np.array([item[0] for item in rows])
    return TrialSet(store, (subject,), np.zeros(len(rows), dtype=np.int64), rows, nsd_id[first])


def betas_of(trials: TrialSet) -> Float[np.ndarray, "n voxels"]:
    """All betas of trials of *one* subject."""
    return np.stack([trials.betas(index) for index in range(len(trials))])


def _of_trials(trials: TrialSet, part: str) -> HeldOut:
    references = [trials.store.captions[int(nsd_id)] for nsd_id in trials.nsd_id]
    scorer = CaptionScorer(references, image_ids=trials.nsd_id.tolist())
    return HeldOut(trials.store, trials.subjects[0], trials, betas_of(trials), references, scorer, part)
