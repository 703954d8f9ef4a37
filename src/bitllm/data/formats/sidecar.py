"""Sidecar files for what a betas format lacks: coordinates, captions, images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bitllm.data.io.captions import captions_by_nsd_id
from bitllm.data.io.tables import read_table
from bitllm.data.nsd.anatomy import read_voxel_mask, read_voxels
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.store.contents import StoreContents, StoreSettings
from bitllm.errors import DataError

COORDINATES = ("x_mm", "y_mm", "z_mm")
_BLOCK = 64

Blocks = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Sidecar:
    """Files that the user names in addition to the betas."""

    captions: tuple[Path, ...] = ()
    """JSON files: ``{image: [caption, …]}`` or COCO's annotations."""
    stimulus_table: Path | None = None
    """``nsd_stim_info_merged.csv``, which maps NSD ids (0-based) to COCO ids."""
    pictures: Path | None = None
    """Folder of images named by id."""
    nsd: Path | None = None
    """Root of an NSD release with the anatomy of the subjects."""
    voxels: Path | None = None
    """Folder with ``<subject>.tsv`` or ``<subject>.parquet``: ``x_mm``, ``y_mm``, ``z_mm``, one row per voxel."""


@dataclass(frozen=True)
class ParsedDataset:
    """Contents and settings of a store, with notes on what the format lacks."""

    contents: StoreContents
    settings: StoreSettings
    notes: tuple[str, ...] = ()


def coordinates_of(
    sidecar: Sidecar, subject: str, n_voxels: int, source: Path, notes: list[str]
) -> tuple[pd.DataFrame, dict[str, dict[int, str]]]:
    """The table of a subject's voxels, and the names of its labels."""
    labels: dict[str, dict[int, str]] = {}
    if sidecar.nsd is not None:
        release = NsdRelease(sidecar.nsd)
        mask = read_voxel_mask(release, subject, "nsdgeneral")
        where = release.roi(subject, "nsdgeneral")
        _require_count(where, int(mask.sum()), n_voxels, source)
        atlases = release.atlases(subject, besides="nsdgeneral")
        return read_voxels(release, subject, mask, atlases)
    if sidecar.voxels is None:
        raise DataError(
            f"{source}: expected coordinates of the {n_voxels} voxels of {subject}, found none in this "
            "format; name an NSD root with --nsd, or a folder of tables (x_mm, y_mm, z_mm) with --voxels"
        )
    candidates = [
        sidecar.voxels / f"{subject}.{ending}" for ending in ("parquet", "tsv", "csv", "tsv.gz", "csv.gz")
    ]
    path = next((path for path in candidates if path.is_file()), candidates[1])
    table = read_voxel_table(path, notes)
    _require_count(path, len(table), n_voxels, source)
    return table, labels


def read_voxel_table(path: Path, notes: list[str]) -> pd.DataFrame:
    """``x_mm``, ``y_mm``, ``z_mm`` of every voxel; ``i``, ``j``, ``k`` and ``ncsnr`` if the table has them."""
    numbers = dict.fromkeys("ijk", "int32") | dict.fromkeys((*COORDINATES, "ncsnr"), "float64")
    return read_table(
        path,
        needed=COORDINATES,
        optional=("i", "j", "k", "ncsnr"),
        numbers=numbers,
        notes=notes,
        what="the table of voxels",
    )


def nsd_stimuli(sidecar: Sidecar, nsd_ids: np.ndarray, shared: np.ndarray, source: Path) -> pd.DataFrame:
    """``nsd_id`` (ascending), ``coco_id`` (-1 if unknown), ``stimulus_id`` and ``shared`` of every image."""
    if nsd_ids.min() < 0:
        raise DataError(f"{source}: expected 0-based NSD ids, found {nsd_ids.min()}; download the file again")
    rows = pd.DataFrame({"nsd_id": nsd_ids, "shared": shared})
    stimuli = rows.groupby("nsd_id")["shared"].max().reset_index()
    stimuli["coco_id"], stimuli["stimulus_id"] = -1, stimuli["nsd_id"].astype(str)
    if sidecar.stimulus_table is None:
        return stimuli
    table = read_stimulus_table(sidecar.stimulus_table)
    missing = np.setdiff1d(stimuli["nsd_id"], table.index)
    if missing.size:
        raise DataError(
            f"{sidecar.stimulus_table}: expected the NSD id {missing[0]} of {source}, found none "
            f"({missing.size} missing); use 0-based NSD ids, as in `coco73k` (these may be COCO ids)"
        )
    stimuli["coco_id"] = table["cocoId"].loc[stimuli["nsd_id"]].to_numpy()
    known = table["shared1000"].loc[stimuli["nsd_id"]].to_numpy(bool)
    told = stimuli["shared"].to_numpy(bool)
    if told.any() and (told & ~known).any():
        first = stimuli["nsd_id"].to_numpy()[told & ~known][0]
        raise DataError(
            f"{source}: expected the shared images of {sidecar.stimulus_table}, found the NSD id {first} as shared "
            f"({(told & ~known).sum()} in all); NSD ids are 0-based, these look 1-based"
        )
    stimuli["shared"] = known | told
    return stimuli


def read_stimulus_table(path: Path) -> pd.DataFrame:
    """``cocoId`` and ``shared1000``, indexed by 0-based NSD id."""
    numbers = {"nsdId": "int64", "cocoId": "int64", "shared1000": "bool"}
    table = read_table(path, needed=tuple(numbers), numbers=numbers, what="NSD's table of stimuli")
    return table.set_index("nsdId")[["cocoId", "shared1000"]]


def caption_rows(
    paths: Sequence[Path],
    stimuli: pd.DataFrame,
    notes: list[str],
    *,
    source: Path,
    numbers_are_coco_ids: bool = False,
) -> pd.DataFrame:
    """``nsd_id`` and ``caption`` of every image; errors name the dataset ``source``."""
    if not paths:
        raise DataError(
            f"{source}: expected captions, found none in this format; name a JSON file with --captions"
        )
    captions = captions_by_nsd_id(paths, stimuli, notes, numbers_are_coco_ids=numbers_are_coco_ids)
    rows = [(nsd_id, caption) for nsd_id, found in captions.items() for caption in found]
    return pd.DataFrame(rows, columns=["nsd_id", "caption"])


def blocks(nsd_ids: np.ndarray, picture: Callable[[int], np.ndarray]) -> Blocks:
    """Images in blocks, sorted by id, of the size of the first one; others are cropped to a square and resized."""

    def read() -> Iterator[np.ndarray]:
        size: tuple[int, int] | None = None
        ordered = np.sort(nsd_ids).tolist()
        for first in range(0, len(ordered), _BLOCK):
            found = [picture(nsd_id) for nsd_id in ordered[first : first + _BLOCK]]
            size = size or (found[0].shape[0], found[0].shape[1])
            yield np.stack([_fitted(one, size) for one in found])

    return read


def fingerprint(*paths: Path) -> str:
    """A value that changes when one of the files changes."""
    stats = [(str(path), path.stat()) for path in paths]
    return ";".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def _fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == size:
        return picture
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(picture), (size[1], size[0])))


def _require_count(where: Path, found: int, n_voxels: int, source: Path) -> None:
    if found != n_voxels:
        raise DataError(
            f"{where}: expected {n_voxels} voxels, as in {source}, found {found}; check that both are of one subject "
            "and region"
        )
