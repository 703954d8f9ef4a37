"""One store made of several data sets: everybody's trials, and each photograph of COCO once.

A photograph that is for test in one of them is for test in the joint store. So a model that is trained on it has seen
no test image of any of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm.data.store import Store, open_store
from bitllm.data.store.contents import (
    OBJECT_COLUMNS,
    TRIAL_OPTIONAL,
    StoreContents,
    StoreSettings,
    SubjectContents,
)
from bitllm.data.store.write import Progress, write_store
from bitllm.data.tasks import exchanges, tasks_table
from bitllm.data.transfer import as_trained_on, space_of_training
from bitllm.errors import DataError

_FROM_LAST_TO_FIRST = ("train", "validation", "test")
"""Of several parts of a photograph the last of these counts."""
_AT_ONCE = 256


@dataclass(frozen=True)
class _Rows:
    """Reads a session of a subject from a store; picklable, for worker processes."""

    path: Path
    subject: str

    def __call__(self, session: int) -> np.ndarray:
        data = open_store(self.path).subject(self.subject)
        return np.asarray(data.betas[(data.trials["session"] == session).to_numpy()])


def join_stores(
    paths: Sequence[Path],
    out: Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Store:
    """Write a store with the subjects and images of several.

    Images are joined by COCO id, numbered as in the first store that has them, and taken from it with their captions,
    objects and questions. Coordinates and labels are those of the first store (`bitllm.data.transfer`); betas are
    copied.

    Parameters
    ----------
    paths
        Two or more stores, with different subjects.
    out
        The new store.
    workers
        Number of processes that read sessions in parallel.
    progress
        Called as ``progress(what, done, total)``.
    note
        Called with a line about each peculiarity.

    Raises
    ------
    DataError
        If subjects have equal names, pictures differ in size, or only some of the stores are simulated.
    SplitError
        If coordinates cannot be compared.
    """
    stores = [open_store(path) for path in paths]
    _require_joinable(stores)
    tell = note or (lambda line: None)
    atlases = _atlases(stores)
    card = space_of_training(stores[0], ()) | {
        "atlases": list(atlases),
        "labels": {atlas: {str(n): name for n, name in names.items()} for atlas, names in atlases.items()},
    }
    images = _Images.of(stores)
    subjects = []
    for place, store in enumerate(stores):
        same, notes = as_trained_on(store, card, where=stores[0].path)
        for line in notes:
            tell(line)
        subjects += [_subject(same, name, images.number[place], list(atlases)) for name in store.subjects]
    for line in images.notes(stores):
        tell(line)
    contents = StoreContents(
        subjects=subjects,
        stimuli=images.stimuli,
        captions=images.table(stores, _captions),
        origin=" + ".join(str(store.path) for store in stores),
        objects=images.table(stores, _objects) if all(store.has_objects for store in stores) else None,
        make_tasks=(lambda _: _tasks(stores, images)) if any(store.has_tasks for store in stores) else None,
        pictures=(lambda: _pictures(stores, images)) if all(map(_has_pictures, stores)) else None,
        atlases=atlases,
    )
    write_store(out, contents, _settings(stores), workers=workers, progress=progress, note=note)
    return open_store(out)


def _require_joinable(stores: Sequence[Store]) -> None:
    if len(stores) < 2:
        raise DataError(f"join: expected two or more stores, found {len(stores)}; name them")
    origin: dict[str, Path] = {}
    for store in stores:
        for name in store.subjects:
            if name in origin:
                raise DataError(
                    f"{store.path}: expected other names of subjects than in {origin[name]}, found `{name}` in both; "
                    "prepare one of them with other names"
                )
            origin[name] = store.path
    simulated = [store.manifest.source == "simulated" for store in stores]
    if any(simulated) and not all(simulated):
        raise DataError(
            f"{stores[simulated.index(True)].path}: expected real data, as in "
            f"{stores[simulated.index(False)].path}, found simulated data; results must say which they are"
        )
    sizes = {
        store.path: store.pictures([int(store.stimuli.index[0])]).shape[1:3]
        for store in stores
        if _has_pictures(store)
    }
    if len(set(sizes.values())) > 1:
        (one, size), (other, other_size) = next(
            (first, second) for first in sizes.items() for second in sizes.items() if first[1] != second[1]
        )
        raise DataError(
            f"{other}: expected pictures of {size[0]} × {size[1]} pixels, as in {one}, found {other_size[0]} × "
            f"{other_size[1]}; prepare both with the same size"
        )


def _atlases(stores: Sequence[Store]) -> dict[str, dict[int, str]]:
    """All atlases, each with the labels of the first store that has it."""
    found: dict[str, dict[int, str]] = {}
    for store in stores:
        found |= {atlas: names for atlas, names in store.atlases.items() if atlas not in found}
    return found


@dataclass(frozen=True)
class _Images:
    """The images of the joint store.

    Parameters
    ----------
    stimuli
        Their table.
    number
        For each store, the joint number of each of its images.
    owned
        For each store, its images that no earlier store has.
    """

    stimuli: pd.DataFrame
    number: list[dict[int, int]]
    owned: list[list[int]]

    @classmethod
    def of(cls, stores: Sequence[Store]) -> "_Images":
        of_coco: dict[int, int] = {}
        number: list[dict[int, int]] = []
        owned: list[list[int]] = []
        rows: dict[int, dict[str, Any]] = {}
        for store in stores:
            start = max(rows, default=-1) + 1
            mine: dict[int, int] = {}
            owned.append([])
            for nsd_id, coco_id, shared, part in zip(
                store.stimuli.index.tolist(),
                *(store.stimuli[name].tolist() for name in ("coco_id", "shared", "part")),
                strict=True,
            ):
                known = of_coco.get(coco_id) if coco_id >= 0 else None
                mine[nsd_id] = start + nsd_id if known is None else known
                row = rows.setdefault(
                    mine[nsd_id],
                    {"nsd_id": mine[nsd_id], "coco_id": coco_id, "shared": False, "part": "train"},
                )
                row["shared"] |= bool(shared)
                row["part"] = max(row["part"], part, key=_FROM_LAST_TO_FIRST.index)
                if known is None:
                    owned[-1].append(nsd_id)
            of_coco |= {
                rows[joint]["coco_id"]: joint for joint in mine.values() if rows[joint]["coco_id"] >= 0
            }
            number.append(mine)
        return cls(pd.DataFrame(rows.values()).sort_values("nsd_id", ignore_index=True), number, owned)

    def table(
        self, stores: Sequence[Store], rows: Callable[[Store, list[int]], pd.DataFrame]
    ) -> pd.DataFrame:
        """A table with ``nsd_id``, of each image from its first store."""
        parts = []
        for store, owned, mine in zip(stores, self.owned, self.number, strict=True):
            part = rows(store, owned)
            parts.append(part.assign(nsd_id=part["nsd_id"].map(mine)))
        return pd.concat(parts, ignore_index=True)

    def notes(self, stores: Sequence[Store]) -> Iterator[str]:
        """What became of images that several stores have."""
        n_more = sum(len(mine) - len(owned) for mine, owned in zip(self.number, self.owned, strict=True))
        yield f"{len(self.stimuli)} images; {n_more} of them are in an earlier store too"
        part = self.stimuli.set_index("nsd_id")["part"]
        for store, mine in zip(stores, self.number, strict=True):
            before = store.stimuli["part"]
            moved = [n for n in mine if before[n] != "test" and part[mine[n]] == "test"]
            if moved:
                yield (
                    f"{store.path}: {len(moved)} images for training or validation are now for test, because another "
                    "store has them for test; the statistics of its z-scores may include their trials"
                )


def _captions(store: Store, nsd_ids: list[int]) -> pd.DataFrame:
    rows = [(nsd_id, caption) for nsd_id in nsd_ids for caption in store.captions[nsd_id]]
    return pd.DataFrame(rows, columns=["nsd_id", "caption"])


def _objects(store: Store, nsd_ids: list[int]) -> pd.DataFrame:
    return store.objects[store.objects.index.isin(nsd_ids)].reset_index()[list(OBJECT_COLUMNS)]


def _tasks(stores: Sequence[Store], images: _Images) -> pd.DataFrame:
    """Questions about each image from its first store, and about all trials; two stores may number them alike."""
    rows = zip(stores, images.owned, images.number, strict=True)
    return tasks_table(
        [
            replace(one, nsd_id=mine[one.nsd_id], id=f"{place}:{one.id}")
            for place, (store, owned, mine) in enumerate(rows)
            if store.has_tasks
            for one in (*exchanges(store, nsd_ids=owned), *exchanges(store, of_trials=True))
        ]
    )


def _has_pictures(store: Store) -> bool:
    return "pictures.npy" in store.manifest.sha256


def _pictures(stores: Sequence[Store], images: _Images) -> Iterator[np.ndarray]:
    """The pictures in the order of their joint numbers."""
    first = {
        mine[nsd_id]: (place, nsd_id)
        for place, (owned, mine) in enumerate(zip(images.owned, images.number, strict=True))
        for nsd_id in owned
    }
    places = [first[joint] for joint in images.stimuli["nsd_id"].tolist()]
    for start in range(0, len(places), _AT_ONCE):
        block = places[start : start + _AT_ONCE]
        yield np.stack([stores[place].pictures([nsd_id])[0] for place, nsd_id in block])


def _subject(store: Store, name: str, number: Mapping[int, int], atlases: list[str]) -> SubjectContents:
    data = store.subject(name)
    columns = ["session", "run", "trial", "nsd_id", *(one for one in TRIAL_OPTIONAL if one in data.trials)]
    voxels = data.voxels[[*"ijk", "x_mm", "y_mm", "z_mm", "ncsnr", *atlases]]
    return SubjectContents(
        name=name,
        trials=data.trials[columns].assign(nsd_id=data.trials["nsd_id"].map(number)),
        voxels=voxels,
        read_session=_Rows(store.path, name),
        origin=str(store.path),
        is_z_scored=True,
        fingerprint=store.sha256,
    )


def _settings(stores: Sequence[Store]) -> StoreSettings:
    manifests = [store.manifest for store in stores]

    def joined(name: str, between: str) -> str:
        return between.join(dict.fromkeys(text for one in manifests if (text := str(getattr(one, name)))))

    record = None
    if manifests[0].simulation is not None:
        record = manifests[0].simulation | {"joined_with": [one.simulation for one in manifests[1:]]}
    return StoreSettings(
        source=joined("source", " + "),
        simulation=record,
        beta_version=joined("beta_version", " + "),
        space=manifests[0].space,
        roi=joined("roi", " + "),
        normalization="as-delivered",
        license=joined("license", "; "),
        citation=joined("citation", "; "),
    )
