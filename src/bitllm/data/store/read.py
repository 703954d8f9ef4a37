"""Read a store: its manifest, tables, betas and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float16, Int, UInt8
from pyarrow.lib import ArrowException
from pydantic import ConfigDict, Field

from bitllm.config import StrictConfig, nearest
from bitllm.errors import ConfigError, DataError
from bitllm.files import read_json, require_plain_name, sha256_of_json

STORE_VERSION = 3

SUBJECT_FILES = ("betas.npy", "trials.parquet", "voxels.parquet")
TASKS = "tasks.parquet"
SHARED_FILES = ("stimuli.parquet", "captions.parquet", "pictures.npy", "objects.parquet", TASKS)
"""The last three are optional."""


class SubjectRecord(StrictConfig):
    """Entry of the manifest for one subject."""

    n_trials: int
    n_voxels: int
    n_sessions: int
    sha256: dict[str, str]
    """Checksums of the subject's files."""


class StoreManifest(StrictConfig):
    """Contents of a store and their origin."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    version: int
    source: str
    """``nsd``, ``simulated`` or the name of another format."""
    simulation: dict[str, Any] | None
    """The simulator's own record, if the data are simulated."""
    beta_version: str
    space: str
    roi: str
    statistics: Literal["training", "not-shared", "session", "across-sessions", "none", "as-delivered"]
    """Which trials are in the statistics of the z-scores."""
    normalization: str = Field(alias="normalisation")
    """The same in words, in the spelling of the first release, so that old stores open."""
    validation_fraction: float
    seed: int
    """Seed of the choice of validation images."""
    # the next two are recorded only if they are known, so that the checksums of other stores remain valid
    license: str = Field(default="", exclude_if=lambda text: not text)
    """License of the data."""
    citation: str = Field(default="", exclude_if=lambda text: not text)
    """Publication to cite."""
    subjects: dict[str, SubjectRecord]
    atlases: dict[str, dict[str, str]]
    """Label number → name, for each atlas; 0 is unlabeled."""
    sha256: dict[str, str]
    """Checksums of the files that the subjects share."""


@dataclass(frozen=True)
class SubjectData:
    """One subject's betas with tables of their rows and columns."""

    subject: str
    betas: Float16[np.ndarray, "trials voxels"]
    trials: pd.DataFrame
    voxels: pd.DataFrame


def sessions_of_zeros(data: SubjectData) -> list[int]:
    """Sessions in which all betas are 0; earlier versions wrote them for sessions with one training trial."""
    # The first trial with another value ends the search, so a whole store is read in one trial a session.
    sessions = data.trials.groupby("session").indices
    return [
        int(str(session)) for session, rows in sessions.items() if not any(data.betas[n].any() for n in rows)
    ]


class Store:
    """An open store; betas and images are memory-mapped."""

    def __init__(
        self,
        path: Path,
        manifest: StoreManifest,
        change: Callable[[SubjectData], SubjectData] | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._change = change
        self.subjects: tuple[str, ...] = tuple(sorted(manifest.subjects))
        self.atlases: dict[str, dict[int, str]] = {
            atlas: {int(number): name for number, name in names.items()}
            for atlas, names in manifest.atlases.items()
        }
        self._opened: dict[str, SubjectData] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process opens the files itself: a pickled memory map would carry the whole array.
        return _reopened, (self.path, self._change)

    def with_voxels(self, change: Callable[[SubjectData], SubjectData]) -> "Store":
        """The same store with other tables of voxels; ``change`` is picklable."""
        return Store(self.path, self.manifest, change)

    @cached_property
    def sha256(self) -> str:
        """Checksum of the manifest, which contains those of all files except the tasks, which may be added later."""
        content = self.manifest.model_dump(mode="json")
        content["sha256"].pop(TASKS, None)
        return sha256_of_json(content)

    @property
    def tasks_sha256(self) -> str:
        """Checksum of the tasks."""
        self._require_tasks()
        return self.manifest.sha256[TASKS]

    @cached_property
    def stimuli(self) -> pd.DataFrame:
        """``coco_id``, ``shared`` and ``part`` of every image that a subject saw, indexed by ``nsd_id``."""
        return _read_table(self.path / "stimuli.parquet").set_index("nsd_id")

    @cached_property
    def captions(self) -> dict[int, tuple[str, ...]]:
        """The human captions of every image, by ``nsd_id``."""
        table = _read_table(self.path / "captions.parquet")
        captions: dict[int, list[str]] = {}
        for nsd_id, caption in zip(table["nsd_id"].tolist(), table["caption"].tolist(), strict=True):
            captions.setdefault(nsd_id, []).append(caption)
        return {nsd_id: tuple(of_image) for nsd_id, of_image in captions.items()}

    @property
    def has_objects(self) -> bool:
        """Whether the store has the objects in its images."""
        return "objects.parquet" in self.manifest.sha256

    @cached_property
    def objects(self) -> pd.DataFrame:
        """``category``, ``supercategory``, ``is_crowd`` and box of every object, indexed by ``nsd_id``.

        ``x``, ``y``, ``w``, ``h`` are fractions of the image's sides, ``area`` of its area. An image without rows
        shows none of the categories. Leave rows with ``is_crowd`` out of counts: they are regions with many objects.
        """
        if not self.has_objects:
            raise DataError(
                f"{self.path}: expected the objects of the images (objects.parquet), found a store without; add "
                "COCO's instances_train2017.json and instances_val2017.json to the folder of the captions (or simulate "
                "again), then prepare the store again"
            )
        return _read_table(self.path / "objects.parquet").set_index("nsd_id")

    @property
    def has_tasks(self) -> bool:
        """Whether the store has questions about its images."""
        return TASKS in self.manifest.sha256

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """The questions about the images, one row per exchange, indexed by ``nsd_id``; see `bitllm.data.tasks`."""
        self._require_tasks()
        return _read_table(self.path / TASKS).set_index("nsd_id")

    def _require_tasks(self) -> None:
        if not self.has_tasks:
            raise DataError(
                f"{self.path}: expected questions about the images ({TASKS}), found a store without; add them with "
                f"`bitllm tasks {self.path} --derive`"
            )

    def subject(self, name: str) -> SubjectData:
        """Betas, trials and voxels of one subject."""
        if name not in self.subjects:
            raise DataError(
                f"{self.path}: expected a subject of the store, found `{name}`; "
                f"{nearest(name, list(self.subjects))}"
            )
        if name not in self._opened:
            found = self._open_subject(name)
            self._opened[name] = found if self._change is None else self._change(found)
        return self._opened[name]

    def pictures(self, nsd_ids: Sequence[int] | Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """The images with these ids, in the given order."""
        if "pictures.npy" not in self.manifest.sha256:
            raise DataError(
                f"{self.path}: expected pictures, found a store without; its format ({self.manifest.source}) "
                "has none, prepare it from one that has"
            )
        rows = self.stimuli.index.get_indexer(pd.Index(np.asarray(nsd_ids, dtype=np.int64)))
        if (rows < 0).any():
            unknown = np.asarray(nsd_ids)[rows < 0]
            raise DataError(
                f"{self.path}: expected images that a subject of the store saw, found nsd_id {unknown[0]} "
                f"({len(unknown)} in all); check that the store is of the same release"
            )
        return self._pictures[rows]

    @cached_property
    def _pictures(self) -> np.ndarray:
        return _memory_map(self.path / "pictures.npy")

    def _open_subject(self, name: str) -> SubjectData:
        folder = self.path / "subjects" / name
        betas = _memory_map(folder / "betas.npy")
        trials, voxels = (_read_table(folder / f"{table}.parquet") for table in ("trials", "voxels"))
        record = self.manifest.subjects[name]
        expected = (record.n_trials, record.n_voxels)
        for what, found in (
            ("betas.npy", betas.shape),
            ("trials × voxels tables", (len(trials), len(voxels))),
        ):
            if found != expected:
                raise DataError(
                    f"{folder}: expected {expected[0]} trials × {expected[1]} voxels (manifest.json), found "
                    f"{found[0]} × {found[1]} in {what}; make the store again with `bitllm prepare nsd`"
                )
        return SubjectData(name, betas, trials, voxels)


def open_store(path: Path | str) -> Store:
    """Open a store that `prepare` wrote.

    Raises
    ------
    DataError
        If there is no store, or it has another version or is incomplete.
    """
    path = Path(path)
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise DataError(
            f"{path}: expected a store (a folder with manifest.json), found none; make it with `bitllm "
            "prepare nsd`"
        )
    content = read_json(manifest_path)
    version = content.get("version") if isinstance(content, dict) else None
    if version != STORE_VERSION:
        raise DataError(
            f"{manifest_path}: expected a store of version {STORE_VERSION}, found version {version}; make "
            "the store again with `bitllm prepare` of this release (the input files are unchanged)"
        )
    try:
        manifest = StoreManifest.parse(content, source=str(manifest_path))
    except ConfigError as error:
        raise DataError(f"{error}; the manifest was changed or damaged, make the store again") from None
    for what, names in (("a subject", manifest.subjects), ("a file of the store", manifest.sha256)):
        for name in names:
            require_plain_name(name, manifest_path, what)
    folders = [path / "subjects" / subject for subject in manifest.subjects]
    needed = [folder / file for folder in folders for file in SUBJECT_FILES]
    for file in [*(path / file for file in manifest.sha256), *needed]:
        if not file.is_file():
            raise DataError(f"{file}: expected a file of the store, found none; make the store again")
    return Store(path, manifest)


def _reopened(path: Path, change: Callable[[SubjectData], SubjectData] | None) -> Store:
    store = open_store(path)
    return store if change is None else store.with_voxels(change)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: expected a whole table, found a damaged file ({reason}); make the store again"
        ) from None


def _memory_map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path}: expected a whole array, found a damaged file ({error}); make the store again"
        ) from None
