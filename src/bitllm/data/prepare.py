"""From an NSD release to a store: every subject's betas as z-scores, beside what they were responses to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from bitllm.data.nsd.anatomy import Labels, read_voxel_mask, read_voxels
from bitllm.data.nsd.betas import percent_signal_change, read_session_betas
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.stimuli import read_captions, read_pictures, read_stimuli
from bitllm.data.nsd.trials import Design, read_design, read_trials
from bitllm.data.writing.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.writing.normalise import Normalisation
from bitllm.data.writing.sessions import Progress
from bitllm.data.writing.write import write_store
from bitllm.errors import DataError


@dataclass(frozen=True)
class NsdSessions:
    """Reads the sessions of one subject, in percent signal change; picklable, for worker processes."""

    files: tuple[Path, ...]
    """One a session, from the first."""
    voxel_mask: Bool[np.ndarray, "x y z"]
    n_trials: dict[int, int]
    """By session."""

    def __call__(self, session: int) -> np.ndarray:
        """Betas [trials, voxels] of a session."""
        stored = read_session_betas(self.files[session - 1], self.voxel_mask, self.n_trials[session])
        return percent_signal_change(stored)


def prepare_nsd(  # noqa: PLR0913 - the settings of one command
    root: Path,
    out: Path,
    *,
    roi: str = "nsdgeneral",
    subjects: Sequence[str] | None = None,
    validation_fraction: float = 0.08,
    seed: int = 0,
    beta_version: str = "b3",
    normalisation: Normalisation = "training",
    workers: int = 1,
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
    normalisation
        Whose trials the statistics of the z-scores see.
    workers
        How many processes read sessions at the same time.
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
    release = NsdRelease(Path(root), beta_version)
    design = read_design(release.design)
    read = [_read_subject(release, design, name, roi) for name in release.subjects(subjects)]
    people = [person for person, _ in read]
    atlases = _merged_labels(release, [(person.name, labels) for person, labels in read])
    nsd_ids = np.unique(np.concatenate([person.trials["nsd_id"].to_numpy() for person in people]))
    stimuli = read_stimuli(release.stimulus_table, nsd_ids, design.shared_ids)
    simulation = release.simulation()
    contents = StoreContents(
        subjects=people,
        stimuli=stimuli,
        captions=read_captions(release, stimuli),
        pictures=partial(read_pictures, release.pictures, nsd_ids),
        atlases=atlases,
        origin=str(release.root),
    )
    settings = StoreSettings(
        source="nsd" if simulation is None else "simulated",
        simulation=simulation,
        beta_version=beta_version,
        roi=roi,
        normalisation=normalisation,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    write_store(Path(out), contents, settings, workers=workers, progress=progress)


def _read_subject(release: NsdRelease, design: Design, name: str, roi: str) -> tuple[SubjectContents, Labels]:
    files = release.session_files(name)
    trials = read_trials(release, design, name, len(files))
    voxel_mask = read_voxel_mask(release, name, roi)
    voxels, labels = read_voxels(release, name, voxel_mask, release.atlases(name, besides=roi))
    n_trials = {int(str(s)): int(n) for s, n in trials["session"].value_counts().items()}
    stats = [path.stat() for path in files]
    subject = SubjectContents(
        name=name,
        trials=trials,
        voxels=voxels,
        read_session=NsdSessions(files, voxel_mask, n_trials),
        origin=str(release.betas_folder(name)),
        fingerprint=" ".join(f"{s.st_size}:{s.st_mtime_ns}" for s in stats),
    )
    return subject, labels


def _merged_labels(release: NsdRelease, people: Sequence[tuple[str, Labels]]) -> Labels:
    first, of_first = people[0]
    merged: Labels = {atlas: {} for atlas in of_first}
    for name, labels in people:
        if labels.keys() != of_first.keys():
            atlas = min(labels.keys() ^ of_first.keys())
            lacks = name if atlas in of_first else first
            raise DataError(
                f"{release.roi(lacks, atlas)}: expected the atlas `{atlas}`, which another subject has, "
                "found none; download it, or take it away for all"
            )
        found = ((atlas, n, label) for atlas, names in labels.items() for n, label in names.items())
        for atlas, number, label in found:
            if merged[atlas].setdefault(number, label) != label:
                raise DataError(
                    f"{release.roi(name, atlas)}: expected the label {number} to be "
                    f"`{merged[atlas][number]}`, as in {first}, found `{label}`; check the .ctab files"
                )
    return merged
