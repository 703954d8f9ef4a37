"""From an NSD release to a store: every subject's betas as z-scores, beside what they were responses to."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from bitllm.data.normalise import NORMALISATION, z_scores
from bitllm.data.nsd.anatomy import Labels, read_voxel_mask, read_voxels
from bitllm.data.nsd.betas import percent_signal_change, read_session_betas
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.stimuli import read_captions, read_pictures, read_stimuli
from bitllm.data.nsd.trials import Design, read_design, read_trials
from bitllm.data.store import (
    SHARED_FILES,
    STORE_VERSION,
    SUBJECT_FILES,
    StoreManifest,
    SubjectRecord,
    write_rows,
)
from bitllm.errors import DataError
from bitllm.files import folder_written_whole, sha256_of_file, write_json

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


@dataclass(frozen=True)
class _Subject:
    """One subject's part of the release, checked and ready to be converted."""

    name: str
    sessions: tuple[Path, ...]
    trials: pd.DataFrame
    voxel_mask: Bool[np.ndarray, "x y z"]
    voxels: pd.DataFrame
    labels: Labels


def prepare_nsd(
    root: Path,
    out: Path,
    *,
    roi: str = "nsdgeneral",
    subjects: Sequence[str] | None = None,
    validation_fraction: float = 0.08,
    seed: int = 0,
    beta_version: str = "b3",
    progress: Progress | None = None,
) -> None:
    """Write the store of an NSD release, whole or not at all.

    Everything but the betas is read and checked for all subjects first, so a file that lacks is named at
    once. The betas follow session by session, in the memory of one.

    Parameters
    ----------
    root
        The folder with ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    out
        The store's folder, new or empty.
    roi
        The region whose voxels are kept.
    subjects
        The subjects to prepare; all that are there by default.
    validation_fraction
        Share of the images that are not shared which is set aside for choices.
    seed
        Of the choice of those images.
    beta_version
        ``b1``, ``b2`` or ``b3``.
    progress
        Called with what is being done, how many steps are done and how many there are.

    Raises
    ------
    DataError
        If a file of the release is missing, damaged or not what its name says.
    OutputError
        If ``out`` holds files already, or the disk is full.

    References
    ----------
    NSD Data Manual; Allen et al. 2022. Test images are NSD's shared images; z-scores leave them and the
    validation images out of their statistics.
    """
    with folder_written_whole(Path(out)) as store:
        release = NsdRelease(Path(root), beta_version)
        design = read_design(release.design)
        people = [_read_subject(release, design, name, roi) for name in release.subjects(subjects)]
        atlases = _merged_labels(release, people)
        stimuli = _read_images(release, design, people, validation_fraction, seed)
        captions = read_captions(release, stimuli)
        steps = _Steps(progress, sum(len(person.sessions) for person in people) + 1)
        is_training = stimuli.set_index("nsd_id")["part"] == "train"
        records = {person.name: _write_subject(store, person, is_training, steps) for person in people}
        _write_images(store, release, stimuli, captions, steps)
        simulation = release.simulation()
        manifest = StoreManifest(
            version=STORE_VERSION,
            source="nsd" if simulation is None else "simulated",
            simulation=simulation,
            beta_version=beta_version,
            roi=roi,
            normalisation=NORMALISATION,
            validation_fraction=validation_fraction,
            seed=seed,
            subjects=records,
            atlases=atlases,
            sha256={file: sha256_of_file(store / file) for file in SHARED_FILES},
        )
        write_json(store / "manifest.json", manifest.model_dump(mode="json"))


def part_of_image(nsd_id: int, *, is_shared: bool, validation_fraction: float, seed: int) -> str:
    """``test`` if the image is shared, else ``validation`` or ``train`` by seed and ``nsd_id`` alone."""
    if is_shared:
        return "test"
    digest = hashlib.sha256(f"{seed}:{nsd_id}".encode()).digest()
    return "validation" if int.from_bytes(digest[:8]) < validation_fraction * 2**64 else "train"


class _Steps:
    """Counts the steps and tells of them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def done(self, what: str) -> None:
        self._done += 1
        if self._progress:
            self._progress(what, self._done, self._total)


def _read_subject(release: NsdRelease, design: Design, name: str, roi: str) -> _Subject:
    sessions = release.session_files(name)
    trials = read_trials(release, design, name, len(sessions))
    voxel_mask = read_voxel_mask(release, name, roi)
    voxels, labels = read_voxels(release, name, voxel_mask, release.atlases(name, besides=roi))
    return _Subject(name, sessions, trials, voxel_mask, voxels, labels)


def _merged_labels(release: NsdRelease, people: Sequence[_Subject]) -> dict[str, dict[str, str]]:
    first = people[0]
    merged: Labels = {atlas: {} for atlas in first.labels}
    for person in people:
        if person.labels.keys() != first.labels.keys():
            atlas = min(person.labels.keys() ^ first.labels.keys())
            lacks = person if atlas in first.labels else first
            raise DataError(
                f"{release.roi(lacks.name, atlas)}: expected the atlas `{atlas}`, which another subject has, "
                "found none; download it, or take it away for all"
            )
        found = ((atlas, n, label) for atlas, names in person.labels.items() for n, label in names.items())
        for atlas, number, label in found:
            if merged[atlas].setdefault(number, label) != label:
                raise DataError(
                    f"{release.roi(person.name, atlas)}: expected the label {number} to be "
                    f"`{merged[atlas][number]}`, as in {first.name}, found `{label}`; check the .ctab files"
                )
    return {atlas: {str(n): names[n] for n in sorted(names)} for atlas, names in merged.items()}


def _read_images(
    release: NsdRelease, design: Design, people: Sequence[_Subject], validation_fraction: float, seed: int
) -> pd.DataFrame:
    nsd_ids = np.unique(np.concatenate([person.trials["nsd_id"].to_numpy() for person in people]))
    stimuli = read_stimuli(release.stimulus_table, nsd_ids, design.shared_ids)
    stimuli["part"] = [
        part_of_image(nsd_id, is_shared=is_shared, validation_fraction=validation_fraction, seed=seed)
        for nsd_id, is_shared in zip(stimuli["nsd_id"].tolist(), stimuli["shared"].tolist(), strict=True)
    ]
    return stimuli


def _write_subject(store: Path, person: _Subject, is_training: pd.Series, steps: _Steps) -> SubjectRecord:
    folder = store / "subjects" / person.name
    folder.mkdir(parents=True)
    write_rows(folder / "betas.npy", len(person.trials), _normalised_sessions(person, is_training, steps))
    person.trials.to_parquet(folder / "trials.parquet", index=False)
    person.voxels.to_parquet(folder / "voxels.parquet", index=False)
    return SubjectRecord(
        n_trials=len(person.trials),
        n_voxels=len(person.voxels),
        n_sessions=len(person.sessions),
        sha256={file: sha256_of_file(folder / file) for file in SUBJECT_FILES},
    )


def _normalised_sessions(person: _Subject, is_training: pd.Series, steps: _Steps) -> Iterator[np.ndarray]:
    for (session, trials), path in zip(person.trials.groupby("session"), person.sessions, strict=True):
        training = is_training.loc[trials["nsd_id"]].to_numpy()
        if not training.any():
            raise DataError(
                f"{path}: expected trials of training images in the session, found none; lower the "
                "validation fraction"
            )
        stored = read_session_betas(path, person.voxel_mask, len(trials))
        yield z_scores(percent_signal_change(stored), training)
        steps.done(f"{person.name} session {session}")


def _write_images(
    store: Path, release: NsdRelease, stimuli: pd.DataFrame, captions: pd.DataFrame, steps: _Steps
) -> None:
    nsd_ids = stimuli["nsd_id"].to_numpy()
    write_rows(store / "pictures.npy", len(nsd_ids), read_pictures(release.pictures, nsd_ids))
    stimuli[["nsd_id", "coco_id", "shared", "part"]].to_parquet(store / "stimuli.parquet", index=False)
    captions.to_parquet(store / "captions.parquet", index=False)
    steps.done("pictures and captions")
