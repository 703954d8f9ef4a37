"""MindEye2: betas in one HDF5 file a subject, trials as behaviour arrays in tars."""

from pathlib import Path

import numpy as np
import pandas as pd

from bitllm.config import nearest
from bitllm.data.formats.beside import (
    Beside,
    Blocks,
    Reading,
    blocks,
    caption_rows,
    fingerprint,
    nsd_stimuli,
    places_of,
)
from bitllm.data.io.hdf5 import hdf5_dataset, open_hdf5, read_dataset
from bitllm.data.io.tars import array_of, read_samples
from bitllm.data.io.values import whole_numbers
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.errors import DataError

_COLUMNS = 17
_STATISTICS = (
    "these betas were z-scored by their makers, perhaps with test trials: MindEye2's notebook takes mean and "
    "deviation from whole sessions, its paper from the training set; `bitllm prepare nsd` makes z-scores that see "
    "training trials only"
)
_NSD_ID, _SESSION, _RUN, _TRIAL, _ROW, _SHARED = 0, 2, 3, 4, 5, 16


def read_mindeye2(root: Path, beside: Beside, *, subjects: tuple[str, ...] | None = None) -> Reading:
    """Read ``betas_all_subj0S_fp32_renorm.hdf5`` and ``wds/subj0S/{train,new_test}/*.tar`` under ``root``.

    Column 0 of ``behav.npy`` is the 0-based NSD id (its own notes say COCO), column 5 the 0-based row of the
    betas. ``test`` is the older version of ``new_test`` and is read only where the newer one lacks.
    """
    files = {path.name.split("_")[2]: path for path in sorted(root.glob("betas_all_subj*_fp32_renorm.hdf5"))}
    if not files:
        raise DataError(
            f"{root}: expected betas_all_subj01_fp32_renorm.hdf5 and so on, found none; download them"
        )
    unknown = [name for name in subjects or () if name not in files]
    if unknown:
        raise DataError(
            f"{root}: expected betas of the subject `{unknown[0]}`, found none; {nearest(unknown[0], list(files))}"
        )
    atlases: dict[str, dict[int, str]] = {}
    notes = [_STATISTICS]
    found, behaviour = [], []
    for name in subjects or sorted(files):
        trials = _trials(root / "wds" / name)
        behaviour.append(trials)
        found.append(_subject(files[name], name, trials, beside, atlases, notes))
    seen = pd.concat(behaviour)
    stimuli = nsd_stimuli(beside, seen["nsd_id"].to_numpy(), seen["shared"].to_numpy(), root)
    pictures = _pictures(root / "coco_images_224_float16.hdf5", stimuli["nsd_id"].to_numpy())
    contents = StoreContents(
        subjects=found,
        stimuli=stimuli,
        captions=caption_rows(beside, stimuli, root, notes),
        origin=str(root),
        pictures=pictures,
        atlases=atlases,
    )
    settings = StoreSettings(
        source="mindeye2", beta_version="b2 (MindEye2 renorm)", normalization="as-delivered"
    )
    if pictures is None:
        notes.append("no coco_images_224_float16.hdf5: the store is without pictures")
    return Reading(contents, settings, tuple(notes))


def _trials(folder: Path) -> pd.DataFrame:
    test = folder / "new_test" if (folder / "new_test").is_dir() else folder / "test"
    tars = sorted([*(folder / "train").glob("[!.]*.tar"), *test.glob("[!.]*.tar")])
    if not tars:
        raise DataError(f"{folder}: expected train/*.tar and new_test/0.tar, found none; download them")
    rows = []
    for path in tars:
        for sample in read_samples(path, ("behav.npy",)):
            behaviour = array_of(path, sample, "behav.npy")
            if behaviour.shape != (1, _COLUMNS):
                raise DataError(
                    f"{path}: expected behav.npy of 1 × {_COLUMNS} columns, found the shape {behaviour.shape}; "
                    "download the tar again"
                )
            rows.append(behaviour[0])
    table = np.stack(rows)
    trials = pd.DataFrame(
        whole_numbers(table[:, [_ROW, _SESSION, _RUN, _TRIAL, _NSD_ID]], folder, "the numbers in behav.npy"),
        columns=["row", "session", "run", "trial", "nsd_id"],
    )
    trials["shared"] = table[:, _SHARED] == 1
    trials = trials.sort_values("row", ignore_index=True)
    if trials["row"].duplicated().any():
        row = trials["row"][trials["row"].duplicated()].iloc[0]
        raise DataError(
            f"{folder}: expected every trial once, found the row {row} of the betas twice; keep each tar once"
        )
    return trials


def _subject(
    path: Path,
    name: str,
    trials: pd.DataFrame,
    beside: Beside,
    atlases: dict[str, dict[int, str]],
    notes: list[str],
) -> SubjectContents:
    with open_hdf5(path, "betas") as file:
        shape = hdf5_dataset(file, "betas").shape
    if len(shape) != 2 or trials["row"].max() >= shape[0]:
        raise DataError(
            f"{path}: expected betas of trials × voxels with the row {trials['row'].max()} of the behaviour, found "
            f"the shape {shape}; betas and tars must be of one release (27,750 or 30,000 trials)"
        )
    voxels, labels = places_of(beside, name, shape[1], path, notes)
    for atlas, found in labels.items():
        atlases.setdefault(atlas, {}).update(found)

    def read_session(session: int) -> np.ndarray:
        rows = trials["row"][trials["session"] == session].to_numpy()
        with open_hdf5(path, "betas") as file:
            block = read_dataset(hdf5_dataset(file, "betas"), slice(rows[0], rows[-1] + 1))
        return block[rows - rows[0]]

    return SubjectContents(
        name=name,
        trials=trials[["session", "run", "trial", "nsd_id"]],
        voxels=voxels,
        read_session=read_session,
        origin=str(path),
        is_z_scored=True,
        fingerprint=fingerprint(path),
    )


def _pictures(path: Path, nsd_ids: np.ndarray) -> Blocks | None:
    if not path.exists():
        return None
    with open_hdf5(path, "pictures") as file:
        shape = hdf5_dataset(file, "images").shape
    if len(shape) != 4 or shape[1] != 3 or shape[0] <= nsd_ids.max():
        raise DataError(
            f"{path}: expected pictures [images, 3, height, width] up to the NSD id {nsd_ids.max()}, found the shape "
            f"{shape}; download it again"
        )

    def picture(nsd_id: int) -> np.ndarray:
        with open_hdf5(path, "pictures") as file:
            values = read_dataset(hdf5_dataset(file, "images"), nsd_id).astype(np.float32)
        return np.round(values.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)

    return blocks(nsd_ids, picture)
