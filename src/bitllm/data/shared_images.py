"""Photographs of COCO that two stores have in common, such as NSD and BOLD5000."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bitllm.data.audit import audit
from bitllm.data.splits import Split
from bitllm.data.store import Store


def audit_two_stores(store: Store, other: Store, *, split: Split | None = None) -> dict[str, Any]:
    """Audit a store, and look for photographs that are for test in one of two stores and not in the other.

    A model that is trained on one store, or on both, has seen such a test image. Images are joined by COCO id.

    Parameters
    ----------
    store
        The store to audit.
    other
        The other store.
    split
        A split of the first store to audit with it.

    Returns
    -------
    dict
        As `bitllm.data.audit.audit`; ``n_shared`` is the number of photographs in both stores.
    """
    found = audit(store, split=split)
    one, two = _parts(store), _parts(other)
    shared = one.index.intersection(two.index)
    leaks = [*found["leaks"], *_on_two_sides(store, one[shared], other, two[shared])]
    notes = [*found["notes"], f"{len(shared)} photographs of COCO are in both stores"]
    for each, parts in ((store, one), (other, two)):
        n_without = len(each.stimuli) - len(parts)
        if n_without:
            notes.append(
                f"{each.path}: {n_without} images have no COCO id and cannot be compared between the stores"
            )
    return found | {"leaks": leaks, "notes": notes, "n_shared": len(shared), "is_clean": not leaks}


def _parts(store: Store) -> pd.Series:
    """Part of each COCO image; ``test`` if it is one under any of its numbers."""
    stimuli = store.stimuli[store.stimuli["coco_id"] >= 0]
    is_test = (stimuli["part"] == "test").groupby(stimuli["coco_id"]).max()
    first = stimuli.groupby("coco_id")["part"].first()
    return first.mask(is_test, "test")


def _on_two_sides(store: Store, one: pd.Series, other: Store, two: pd.Series) -> Iterator[str]:
    for tested, trained, test, train in ((store, other, one, two), (other, store, two, one)):
        leaked = one.index[(test == "test") & (train != "test")]
        if len(leaked):
            yield (
                f"one photograph in two stores: COCO image {leaked[0]} ({len(leaked)} in all) is for test in "
                f"{tested.path} and for {train[leaked[0]]} in {trained.path}"
            )
