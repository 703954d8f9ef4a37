"""Reader of the Algonauts 2023 challenge: averaged, z-scored responses at fsaverage vertices."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from bitllm.data.formats.sidecar import (
    ParsedDataset,
    Sidecar,
    blocks,
    caption_rows,
    fingerprint,
    nsd_stimuli,
)
from bitllm.data.io.arrays import read_npy
from bitllm.data.io.pictures import decode_picture
from bitllm.data.io.values import whole_labels
from bitllm.data.io.volumes import read_surface
from bitllm.data.nsd.layout import HEMISPHERES
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.errors import DataError
from bitllm.files import read_json, require_file

LABELS = {
    "prf-visualrois": ["V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"],
    "floc-bodies": ["EBA", "FBA-1", "FBA-2", "mTL-bodies"],
    "floc-faces": ["OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"],
    "floc-places": ["OPA", "PPA", "RSC"],
    "floc-words": ["OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"],
    "streams": ["early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"],
}
"""NSD's own label tables, in order from 1; the challenge's ``mapping_*.npy`` are pickles and are never opened."""

_NAME = re.compile(r"train-(\d+)_nsd-(\d+)\.png")


def read_algonauts(
    root: Path,
    sidecar: Sidecar,
    *,
    surfaces: Path | None = None,
    labels: Path | None = None,
    subjects: tuple[str, ...] | None = None,
) -> ParsedDataset:
    """Read ``subjXX/training_split``; the challenge's test images have no responses.

    Parameters
    ----------
    root
        The folder with subj01 and so on.
    sidecar
        Captions and NSD's stimulus table.
    surfaces
        FreeSurfer's folder ``fsaverage/surf`` with the coordinates of the vertices (``lh.white``, ``rh.white``).
    labels
        JSON ``{atlas: {number: name}}`` instead of NSD's own names.
    subjects
        Subjects to read; by default all.
    """
    folders = [path for path in sorted(root.glob("subj0[1-8]")) if subjects is None or path.name in subjects]
    if not folders or (subjects and len(folders) != len(subjects)):
        raise DataError(
            f"{root}: expected the folders subj01 and so on, found {len(folders)}; name their parent"
        )
    names = _label_names(labels)
    pictures: dict[int, Path] = {}
    found, seen = [], []
    for folder in folders:
        files = _pictures(folder)
        pictures.update(dict(files))
        nsd_id = np.array([nsd_id for nsd_id, _ in files])
        seen.append(nsd_id)
        found.append(_subject(folder, nsd_id, surfaces, names))
    every = np.concatenate(seen)
    is_shared = pd.Series(every).map(pd.Series(every).value_counts()).to_numpy() > 1
    stimuli = nsd_stimuli(sidecar, every, is_shared, root)
    notes = [
        "responses are averaged over repeats and z-scored already: one trial an image, no sessions, no order",
        "the images of the challenge's test have no responses and are left out",
    ]
    if not stimuli["shared"].any():
        raise DataError(
            f"{root}: expected shared images as the test part, found one subject and no stimulus table; name NSD's "
            "table with --stimulus-table, or prepare several subjects together"
        )
    contents = StoreContents(
        subjects=found,
        stimuli=stimuli,
        captions=caption_rows(sidecar.captions, stimuli, notes, source=root),
        origin=str(root),
        pictures=blocks(stimuli["nsd_id"].to_numpy(), lambda n: decode_picture(pictures[n], pictures[n])),
        atlases={atlas: dict(of_atlas) for atlas, of_atlas in names.items()},
    )
    settings = StoreSettings(
        source="algonauts",
        beta_version="b3",
        space="fsaverage",
        roi="challenge",
        normalization="as-delivered",
    )
    return ParsedDataset(contents, settings, tuple(notes))


def _label_names(path: Path | None) -> dict[str, dict[int, str]]:
    if path is None:
        return {atlas: dict(enumerate(of_atlas, 1)) for atlas, of_atlas in LABELS.items()}
    require_file(path, "names of labels in JSON, not the challenge's mapping_*.npy, which are pickles")
    if path.suffix == ".npy":
        raise DataError(
            f"{path}: expected names of labels in JSON, found .npy: mapping_*.npy are pickles and are never opened; "
            "leave --labels out to use NSD's own names"
        )
    try:
        found = {
            str(atlas): [(int(number), str(name)) for number, name in of_atlas.items() if int(number) > 0]
            for atlas, of_atlas in read_json(path).items()
        }
    except (AttributeError, ValueError):
        raise DataError(
            f"{path}: expected {{atlas: {{number: name}}}}, found another; write it so, or leave --labels out"
        ) from None
    for atlas, of_atlas in found.items():
        if len(dict(of_atlas)) < len(of_atlas):
            raise DataError(
                f"{path}: expected each label of `{atlas}` once, found a number in two spellings (1 and 01); remove one"
            )
    return {atlas: dict(of_atlas) for atlas, of_atlas in found.items()}


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    images = folder / "training_split/training_images"
    found = sorted(
        (int(match[1]), int(match[2]), path)
        for path in images.glob("*.png")
        if (match := _NAME.fullmatch(path.name))
    )
    if [order for order, _, _ in found] != list(range(1, len(found) + 1)) or not found:
        raise DataError(
            f"{images}: expected train-0001_nsd-NNNNN.png, train-0002 and so on without a gap, found {len(found)} such "
            "files; unpack the training images again"
        )
    return [(nsd_id, path) for _, nsd_id, path in found]


def _subject(
    folder: Path, nsd_id: np.ndarray, surfaces: Path | None, names: dict[str, dict[int, str]]
) -> SubjectContents:
    files = [
        folder / f"training_split/training_fmri/{hemisphere}_training_fmri.npy" for hemisphere in HEMISPHERES
    ]
    halves = [read_npy(path, "responses") for path in files]
    for path, half in zip(files, halves, strict=True):
        if half.ndim != 2 or len(half) != len(nsd_id):
            raise DataError(
                f"{path}: expected responses of {len(nsd_id)} images × vertices (one row a training image), found the "
                f"shape {half.shape}; unpack both again"
            )
    voxels = pd.concat(
        [
            _vertices(folder, hemisphere, half.shape[1], surfaces, names)
            for hemisphere, half in zip(HEMISPHERES, halves, strict=True)
        ],
        ignore_index=True,
    )
    return SubjectContents(
        name=folder.name,
        trials=pd.DataFrame({"session": 1, "nsd_id": nsd_id}),
        voxels=voxels,
        read_session=lambda _: np.concatenate([np.asarray(half) for half in halves], axis=1),
        origin=str(files[0].parent),
        is_z_scored=True,
        fingerprint=fingerprint(*files),
    )


def _vertices(
    folder: Path, hemisphere: str, n_vertices: int, surfaces: Path | None, names: dict[str, dict[int, str]]
) -> pd.DataFrame:
    path = folder / f"roi_masks/{hemisphere}.all-vertices_fsaverage_space.npy"
    what = "the challenge's vertices"
    place = np.flatnonzero(whole_labels(read_npy(path, what), path, what))
    if len(place) != n_vertices:
        raise DataError(
            f"{path}: expected {n_vertices} vertices, as in the responses, found {len(place)}; both must be of one "
            "subject"
        )
    if surfaces is None:
        raise DataError(
            f"{folder}: expected the coordinates of the vertices, found none in this format; name FreeSurfer's folder "
            "fsaverage/surf with --surfaces"
        )
    surface = surfaces / f"{hemisphere}.white"
    mm = read_surface(surface, "fsaverage's white surface", hemisphere=hemisphere)
    if place.max() >= len(mm):
        raise DataError(
            f"{surface}: expected a surface of at least {place.max() + 1} vertices (fsaverage has 163,842), found "
            f"{len(mm)}; name fsaverage, not fsaverage5"
        )
    table = pd.DataFrame(mm[place], columns=["x_mm", "y_mm", "z_mm"])
    table["i"], table["j"], table["k"] = place, HEMISPHERES.index(hemisphere), 0
    for atlas, of_atlas in names.items():
        table[atlas] = _atlas(
            folder / f"roi_masks/{hemisphere}.{atlas}_challenge_space.npy", n_vertices, of_atlas
        )
    return table


def _atlas(path: Path, n_vertices: int, names: dict[int, str]) -> np.ndarray:
    if not path.exists():  # not every subject has every region
        return np.zeros(n_vertices, np.int16)
    what = "labels of vertices"
    number = whole_labels(read_npy(path, what), path, what, largest=2**15 - 1)
    unnamed = set(np.unique(number).tolist()) - set(names) - {0}
    if number.shape != (n_vertices,) or unnamed:
        raise DataError(
            f"{path}: expected {n_vertices} labels among 0 to {max(names)}, found the shape {number.shape} and the "
            f"unknown labels {sorted(unnamed)}; name them in --labels"
        )
    return number.astype(np.int16)
