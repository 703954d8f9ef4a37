"""Regions of interest: their voxels, and what the model loses without a region or gets from it alone.

silenced
    The betas of the region are 0, the mean of every voxel's z-scores. Lost: log2 p(reference | all betas) − log2
    p(reference | without the region), and the same difference in CIDEr.
same size
    As many random voxels outside the region are 0 instead: the loss from that many voxels anywhere.
alone
    All other betas are 0. Gained: log2 p(reference | region of its image) − log2 p(reference | region of another
    image). Both inputs are equally out of distribution, so this cancels.

Silencing shows what the *model* takes from a region given all others: information that other regions carry too is
not lost. Losses and gains are therefore not shares of a total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from bitllm.config import nearest
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.evaluation.bits import bits_per_word
from bitllm.evaluation.outcomes import Outcomes, Progress
from bitllm.evaluation.results import RegionResult
from bitllm.evaluation.words import WordCategories
from bitllm.metrics.intervals import Estimate, paired_difference
from bitllm.model.captioner import Captioner


class Roi(NamedTuple):
    """The voxels of one region."""

    name: str
    """``floc-faces:FFA-1``, or ``floc-faces`` for all labels of the atlas together."""
    atlas: str
    voxels: Bool[np.ndarray, " voxels"]


def find_rois(store: Store, subject: str, wanted: Sequence[str]) -> list[Roi]:
    """The requested regions, without those that have no voxel in this subject.

    Parameters
    ----------
    wanted
        ``ATLAS`` selects the atlas as a whole and each of its labels, ``ATLAS:LABEL`` a single label.
    """
    rois: dict[str, Roi] = {}
    for word in wanted:
        atlas, _, label = word.strip().partition(":")
        if atlas not in store.atlases:
            raise DataError(
                f"{store.path}: expected an atlas of the store, found `{atlas}`; "
                f"{nearest(atlas, list(store.atlases))}"
            )
        for roi in _of_atlas(store, subject, atlas, label):
            rois[roi.name] = roi
    found = [roi for roi in rois.values() if roi.voxels.any()]
    if wanted and not found:
        raise DataError(
            f"{store.path}: expected voxels of {subject} in {', '.join(wanted)}, found none; name another region"
        )
    return found


def _of_atlas(store: Store, subject: str, atlas: str, label: str) -> list[Roi]:
    numbers = {name: number for number, name in store.atlases[atlas].items() if number > 0}
    values = store.subject(subject).voxels[atlas].to_numpy()
    if label:
        if label not in numbers:
            raise DataError(
                f"{store.path}: expected a label of {atlas}, found `{label}`; {nearest(label, list(numbers))}"
            )
        return [Roi(f"{atlas}:{label}", atlas, values == numbers[label])]
    each = [Roi(f"{atlas}:{name}", atlas, values == number) for name, number in numbers.items()]
    return [Roi(atlas, atlas, values > 0), *(each if len(each) > 1 else [])]


def silenced(
    betas: Float[np.ndarray, "*n voxels"], voxels: Bool[np.ndarray, " voxels"]
) -> Float[np.ndarray, "*n voxels"]:
    """Betas with those of some voxels set to 0, the mean of every voxel's z-scores."""
    return np.where(voxels, 0.0, betas).astype(betas.dtype)


def evaluate_regions(
    system: Captioner,
    found: Outcomes,
    rois: list[Roi],
    categories: WordCategories | None,
    *,
    seed: int,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> list[RegionResult]:
    """Losses without, and gains from, every region: bits per word (also by category of words) and CIDEr.

    Parameters
    ----------
    found
        Answers to the real betas, with the log-probabilities of the references.
    rois
        Regions of the subject.
    categories
        Words by category, or None.
    progress
        Called as ``progress(what, done, total)``.
    """
    regions = _Regions(system, found, categories, seed, max_new_tokens)
    results = []
    for number, roi in enumerate(rois):
        if progress is not None:
            progress(f"ROI {roi.name}", number, len(rois))
        results.append(regions.result(roi))
    return results


@dataclass(frozen=True)
class _Regions:
    """The same measurements for each region."""

    system: Captioner
    found: Outcomes
    categories: WordCategories | None
    seed: int
    max_new_tokens: int

    @cached_property
    def cider(self) -> Float[np.ndarray, " n"]:
        return self._cider(self.found.captions["real"])

    @cached_property
    def masks(self) -> dict[str, Bool[np.ndarray, "R L"]]:
        """The tokens of the words of each category."""
        known = self.categories
        return {} if known is None else {one: known.tokens_of(one, self.found.tokens) for one in known.words}

    def result(self, roi: Roi) -> RegionResult:
        """All results of one region."""
        betas, real = self.found.held_out.betas, self.found.log2_probs["real"]
        without, alone = silenced(betas, roi.voxels), silenced(betas, ~roi.voxels)
        outside = silenced(betas, self._random_voxels_outside(roi))
        log2_without, log2_outside = self._log2_probs(without), self._log2_probs(outside)
        log2_alone, log2_other = self._log2_probs(alone), self._log2_probs(alone[self.found.order])
        captions = self._captions(alone)
        of_other = self._cider([captions[row] for row in self.found.order])
        return RegionResult(
            name=roi.name,
            n_voxels=int(roi.voxels.sum()),
            bits_lost=self._bits(real, log2_without),
            bits_lost_same_size=self._bits(real, log2_outside),
            bits_alone=self._bits(log2_alone, log2_other),
            cider_lost=self._minus(self.cider, self._cider(self._captions(without))),
            cider_alone=self._minus(self._cider(captions), of_other),
            bits_lost_by_category=self._by_category(real, log2_without),
            bits_alone_by_category=self._by_category(log2_alone, log2_other),
        )

    def _minus(self, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Estimate:
        return paired_difference(a, b, seed=self.seed)

    def _bits(self, a: Float[np.ndarray, "R L"], b: Float[np.ndarray, "R L"]) -> Estimate:
        images = self.found.held_out.nsd_id.tolist()
        found = bits_per_word(a, b, self.found.tokens, images, seed=self.seed)
        assert found is not None  # held-out trials are of two images or more
        return found

    def _by_category(self, a: Float[np.ndarray, "R L"], b: Float[np.ndarray, "R L"]) -> dict[str, Estimate]:
        images = self.found.held_out.nsd_id.tolist()
        found = {
            name: bits_per_word(a, b, self.found.tokens, images, seed=self.seed, chosen=mask)
            for name, mask in self.masks.items()
        }
        return {name: one for name, one in found.items() if one is not None}

    def _brain_tokens(self, betas: Float[np.ndarray, "n voxels"]) -> Float[Tensor, "n N width"]:
        return self.found.held_out.brain_tokens(self.system.encoder, self.system.atlases, betas)

    def _log2_probs(self, betas: Float[np.ndarray, "n voxels"]) -> Float[np.ndarray, "R L"]:
        tokens = self.found.tokens
        return self.system.log2_probs(tokens.answers, tokens.row, self._brain_tokens(betas))

    def _captions(self, betas: Float[np.ndarray, "n voxels"]) -> list[str]:
        return self.system.greedy(self._brain_tokens(betas), n=len(betas), max_new_tokens=self.max_new_tokens)

    def _cider(self, captions: list[str]) -> Float[np.ndarray, " n"]:
        return self.found.held_out.scorer.per_caption(captions).cider

    def _random_voxels_outside(self, roi: Roi) -> np.ndarray:
        """As many random voxels outside the region as it has (or all, if there are fewer)."""
        candidates = np.flatnonzero(~roi.voxels)
        # Seeded by the size, so that the draw does not depend on which other regions are evaluated.
        rng = np.random.default_rng([self.seed, int(roi.voxels.sum())])
        chosen = rng.permutation(candidates)[: int(roi.voxels.sum())]
        return np.isin(np.arange(len(roi.voxels)), chosen)
