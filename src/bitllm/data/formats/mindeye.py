"""MindEye1's webdataset tars, which UMBRAE, MindBridge and others read too."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bitllm.config import nearest
from bitllm.data.formats.beside import (
    Beside,
    Reading,
    blocks,
    caption_rows,
    fingerprint,
    nsd_stimuli,
    places_of,
)
from bitllm.data.io.pictures import decode_picture
from bitllm.data.io.tars import Sample, array_of, read_samples
from bitllm.data.io.values import whole_numbers
from bitllm.data.store.complete import with_validation_images
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.errors import DataError

_PARTS = {"train": "train", "val": "validation", "test": "test"}
_WANTED = ("nsdgeneral.npy", "num_uniques.npy", "coco73k.npy", "jpg", "png")


@dataclass
class _Gathered:
    """The samples of one subject."""

    betas: list[np.ndarray] = field(default_factory=list)
    nsd_id: list[int] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    files: list[Path] = field(default_factory=list)


@dataclass
class _Images:
    """What is known of the images, over all subjects."""

    part: dict[int, str] = field(default_factory=dict)
    encoded: dict[int, bytes] = field(default_factory=dict)


def read_mindeye(root: Path, beside: Beside, *, subjects: tuple[str, ...] | None = None) -> Reading:
    """Read the tars under ``root/{train,val,test}``; the split is the tars' own.

    Without ``val`` some of the training images are for validation.

    ``coco73k`` is the 0-based NSD id in spite of its name. Rows of a sample beyond ``num_uniques`` repeat
    earlier ones and are left out.
    """
    names = sorted({path.name.split("_")[1] for path in root.glob("train/train_subj*_*.tar")})
    if not names:
        raise DataError(
            f"{root}: expected tars train/train_subj01_0.tar and so on, found none; name the folder "
            "webdataset_avg_split"
        )
    unknown = [name for name in subjects or () if name not in names]
    if unknown:
        raise DataError(
            f"{root}: expected tars of the subject `{unknown[0]}`, found none; {nearest(unknown[0], names)}"
        )
    images = _Images()
    gathered = {name: _gather(root, name, images) for name in subjects or names}
    nsd_ids = np.array(sorted(images.part))
    is_test = np.array([images.part[n] == "test" for n in nsd_ids.tolist()])
    stimuli = nsd_stimuli(beside, nsd_ids, is_test, root)
    stimuli["part"] = [images.part[n] for n in stimuli["nsd_id"].tolist()]
    settings = StoreSettings(source="mindeye", beta_version="b3 (MindEye1)", normalization="as-delivered")
    stimuli, drawn = with_validation_images(
        stimuli, validation_fraction=settings.validation_fraction, seed=settings.seed
    )
    atlases: dict[str, dict[int, str]] = {}
    notes = ["sessions and runs are not in this format: all trials are of session 1", *drawn]
    found = [_subject(name, of_subject, beside, atlases, notes) for name, of_subject in gathered.items()]
    pictures = None
    if set(images.encoded) == set(images.part):
        pictures = blocks(nsd_ids, lambda n: decode_picture(io.BytesIO(images.encoded[n]), root))
    contents = StoreContents(
        subjects=found,
        stimuli=stimuli,
        captions=caption_rows(beside, stimuli, root, notes),
        origin=str(root),
        pictures=pictures,
        atlases=atlases,
    )
    if pictures is None:
        notes.append("some samples have no picture: the store is without pictures")
    return Reading(contents, settings, tuple(notes))


def _gather(root: Path, name: str, images: _Images) -> _Gathered:
    gathered = _Gathered()
    for split, part in _PARTS.items():
        tars = sorted(root.glob(f"{split}/{split}_{name}_*.tar"), key=_number_of)
        if not tars and split != "val":
            raise DataError(f"{root / split}: expected {split}_{name}_0.tar, found no tar; download it")
        for path in tars:
            gathered.files.append(path)
            for sample in read_samples(path, _WANTED):
                _take(path, sample, part, gathered, images)
    return gathered


def _number_of(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not (number.isascii() and number.isdigit()):
        raise DataError(
            f"{path}: expected a number at the end of the tar's name, found `{number}`; is it a copy of another tar? "
            "Remove or rename it"
        )
    return int(number)


def _take(path: Path, sample: Sample, part: str, gathered: _Gathered, images: _Images) -> None:
    rows = array_of(path, sample, "nsdgeneral.npy")
    nsd_id, n_unique = (
        int(whole_numbers(array_of(path, sample, f"{name}.npy").reshape(-1)[:1], path, f"`{name}`")[0])
        for name in ("coco73k", "num_uniques")
    )
    n_voxels = gathered.betas[0].shape[-1] if gathered.betas else rows.shape[-1]
    if rows.ndim != 2 or rows.shape[1] != n_voxels or not 1 <= n_unique <= len(rows):
        raise DataError(
            f"{path}: expected betas of repeats × {n_voxels} voxels and 1 to {len(rows)} of them real, found the shape "
            f"{rows.shape} and {n_unique}; download the tar again"
        )
    if nsd_id in gathered.seen:
        raise DataError(
            f"{path}: expected every image in one sample of a subject, found the NSD id {nsd_id} twice; "
            "keep one version of the tars in the folder"
        )
    if images.part.setdefault(nsd_id, part) != part:
        raise DataError(
            f"{path}: expected an image in one part only, found the NSD id {nsd_id} in {images.part[nsd_id]} and "
            f"in {part}; download the tars again"
        )
    gathered.seen.add(nsd_id)
    gathered.betas.append(rows[:n_unique])
    gathered.nsd_id.extend([nsd_id] * n_unique)
    picture = sample.get("jpg") or sample.get("png")
    if picture:
        images.encoded.setdefault(nsd_id, picture)


def _subject(
    name: str, gathered: _Gathered, beside: Beside, atlases: dict[str, dict[int, str]], notes: list[str]
) -> SubjectContents:
    betas = np.concatenate(gathered.betas)
    gathered.betas.clear()
    source = gathered.files[0]
    voxels, labels = places_of(beside, name, betas.shape[1], source, notes)
    for atlas, found in labels.items():
        atlases.setdefault(atlas, {}).update(found)
    return SubjectContents(
        name=name,
        trials=pd.DataFrame({"session": 1, "nsd_id": gathered.nsd_id}),
        voxels=voxels,
        read_session=lambda _: betas,
        origin=str(source.parent.parent),
        is_z_scored=True,
        fingerprint=fingerprint(*gathered.files),
    )
