"""Reader of GLMsingle's outputs: ``betasmd`` of TYPEB, TYPEC or TYPED, with a trials table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.io

from bitllm.data.formats.custom import Header, session_reader, store_columns
from bitllm.data.formats.series import Axes, read_series
from bitllm.data.formats.sidecar import ParsedDataset, blocks, caption_rows, fingerprint
from bitllm.data.formats.trials import Trials, read_trials, stimuli_of
from bitllm.data.io.arrays import BetasFile
from bitllm.data.io.hdf5 import hdf5_dataset, open_hdf5, read_dataset
from bitllm.data.io.pickles import read_pickled_dict
from bitllm.data.io.pictures import picture_reader
from bitllm.data.io.tables import is_table
from bitllm.data.io.values import require_real
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.errors import DataError
from bitllm.files import require_file, require_plain_name

_ENDINGS = (".hdf5", ".h5", ".npy", ".mat")


def read_glmsingle(
    betas: Path,
    *,
    trials: Path,
    captions: tuple[Path, ...],
    subject: str,
    places: Path,
    design: Path | None = None,
    pictures: Path | None = None,
    trust_pickle: bool = False,
) -> ParsedDataset:
    """Read one subject's GLMsingle output.

    Parameters
    ----------
    betas
        ``TYPED_FITHRF_GLMDENOISE_RR.hdf5`` (or ``.npy``, or MATLAB's v7.3 ``.mat``), TYPEC or TYPEB.
    trials
        The trials table of the general format, in GLMsingle's chronological order.
    captions
        JSON files.
    subject
        Name of the subject, as in the trials table.
    places
        Coordinates of the voxels: a mask on the grid of the betas (values above 0 are voxels), or a table (x_mm, y_mm,
        z_mm) if the betas are a list of voxels.
    design
        DESIGNINFO; its ``stimorder`` is compared with the trials.
    pictures
        Folder with images.
    trust_pickle
        Consent to read ``.npy``.
    """
    values = _array(betas, ("betasmd", "modelmd"), trust_pickle)
    require_plain_name(subject, "--subject", "a subject")
    read = read_trials(trials, subjects=(subject,))
    if design is not None:
        _check_order(design, _array(design, ("stimorder",), trust_pickle), read)
    stimuli, of_images = stimuli_of(read.table, trials)
    notes = [*read.notes, *of_images]
    number = dict(zip(stimuli["stimulus_id"], stimuli["nsd_id"].tolist(), strict=True))
    ordered = read.of(subject).assign(nsd_id=lambda own: own["stimulus_id"].map(number))
    is_list = values.ndim == 2 or values.shape[1:3] == (1, 1)
    header = Header(subjects={}, trials=trials, captions=trials, already_zscored=False)
    of_table = is_table(places)
    series, voxels = read_series(
        [_Loaded(betas, "npy", values.shape, values.dtype, values=values)],
        Axes("voxels-trials" if is_list else "xyz-trials"),
        n_trials=read.n_betas[subject],
        notes=notes,
        mask=None if of_table else places,
        table=places if of_table else None,
    )
    texts = caption_rows(captions, stimuli, notes, source=betas, numbers_are_coco_ids=True)
    made = (
        blocks(stimuli["nsd_id"].to_numpy(), picture_reader(pictures, stimuli, notes)) if pictures else None
    )
    found = SubjectContents(
        name=subject,
        trials=store_columns(ordered),
        voxels=voxels,
        read_session=session_reader(str(betas), series, header, ordered, read.n_betas[subject]),
        origin=str(betas),
        fingerprint=fingerprint(betas),
    )
    contents = StoreContents(
        subjects=[found],
        stimuli=stimuli,
        captions=texts,
        origin=str(trials),
        pictures=made,
    )
    settings = StoreSettings(
        source="glmsingle", beta_version=betas.name.split(".")[0], space="native", roi="mask"
    )
    if design is None:
        notes.append("no --design: the order of the trials is believed, not checked against stimorder")
    if made is None:
        notes.append("no --pictures: the store is without pictures")
    return ParsedDataset(contents, settings, tuple(notes))


@dataclass(frozen=True)
class _Loaded(BetasFile):
    """Betas in memory."""

    values: np.ndarray = field(default_factory=lambda: np.empty(0))

    def read(self, *, trial_axis: int = 0) -> np.ndarray:
        return self.values


def _array(path: Path, keys: tuple[str, ...], trust_pickle: bool) -> np.ndarray:
    ending = path.suffix.lower()
    if path.name.startswith("TYPEA"):
        raise DataError(
            f"{path}: expected single-trial betas (TYPEB, TYPEC or TYPED), found TYPEA, which holds one beta for all "
            "trials; name TYPED_FITHRF_GLMDENOISE_RR"
        )
    if ending not in _ENDINGS:
        raise DataError(
            f"{path}: expected GLMsingle's .hdf5, .npy or .mat, found another kind of file; name that"
        )
    if ending == ".npy":
        return _variable(path, keys, read_pickled_dict(path, is_trusted=trust_pickle))
    if ending == ".mat" and not h5py.is_hdf5(require_file(path, "GLMsingle's output")):
        return _variable(path, keys, _read_old_matlab(path, keys))
    with open_hdf5(path, "GLMsingle's output") as file:
        key = next((key for key in keys if isinstance(file.get(key), h5py.Dataset)), keys[0])
        dataset = hdf5_dataset(file, key)
        is_matlab = ending == ".mat" or "MATLAB_class" in dataset.attrs
        values = read_dataset(dataset, trial_axis=0 if is_matlab else dataset.ndim - 1)
    return values.transpose() if is_matlab else values


def _variable(path: Path, keys: tuple[str, ...], content: Mapping[str, Any]) -> np.ndarray:
    """The first of ``keys`` that exists."""
    key = next((key for key in keys if content.get(key) is not None), None)
    if key is None:
        found = ", ".join(map(str, content)) or "nothing"
        raise DataError(f"{path}: expected {' or '.join(keys)}, found {found}; name the right file")
    values = np.asarray(content[key])
    require_real(values.dtype, path, f"`{key}`")
    return values


def _read_old_matlab(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Variables of a MATLAB file older than version 7.3, which is not HDF5; those not in ``keys`` are None."""
    try:
        names = [name for name, *_ in scipy.io.whosmat(path)]
        content = scipy.io.loadmat(path, variable_names=[*keys])
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{path}: expected GLMsingle's output as a whole .mat file, found a damaged one ({reason}); save it again "
            "with -v7.3, or copy it again"
        ) from None
    return {name: content.get(name) for name in names}


def _check_order(path: Path, stimorder: np.ndarray, trials: Trials) -> None:
    order = np.asarray(stimorder).reshape(-1)
    (n_betas,) = trials.n_betas.values()
    if len(order) != n_betas:
        raise DataError(
            f"{path}: expected a stimorder of {n_betas} trials, as in the trials table, found {len(order)}; both must "
            "be of one run of GLMsingle"
        )
    pairs = pd.DataFrame(
        {"condition": order[trials.table["trial_row"]], "stimulus": trials.table["stimulus_id"].to_numpy()}
    ).drop_duplicates()
    for column in ("condition", "stimulus"):
        twice = pairs[pairs.duplicated(column)]
        if len(twice):
            raise DataError(
                f"{path}: expected one stimulus for each condition of stimorder, found `{twice['stimulus'].iloc[0]}` "
                f"against it (condition {twice['condition'].iloc[0]}); the trials table is in another order"
            )
