"""From an NSD release to a store: z-scored betas of every subject, with the images that they respond to."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from bitllm.data.io.volumes import Grid
from bitllm.data.nsd.anatomy import Labels, read_grid, read_views, read_voxel_mask, read_voxels
from bitllm.data.nsd.betas import percent_signal_change, read_session_betas
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.objects import read_objects
from bitllm.data.nsd.stimuli import read_captions, read_pictures, read_stimuli, resized
from bitllm.data.nsd.surface import VertexMasks, read_surface_betas, read_vertex_masks, read_vertices
from bitllm.data.nsd.trials import Design, read_design, read_trials
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents, View
from bitllm.data.store.normalize import Normalization
from bitllm.data.store.write import Progress, write_store
from bitllm.data.tasks.derive import derived_exchanges
from bitllm.data.tasks.exchange import tasks_table
from bitllm.data.tasks.sources import SIMULATED_LICENSE, license_of_objects, read_source
from bitllm.errors import ConfigError, DataError

_MAX_PICTURE_PX = 4096
"""Larger images than NSD's 425 pixels have no use, and a mistyped number would fill the memory."""


@dataclass(frozen=True)
class VolumeSessions:
    """Reads sessions of one subject's voxels, in percent signal change; picklable, for worker processes."""

    files: tuple[Path, ...]
    """Files of the sessions, in order."""
    voxel_mask: Bool[np.ndarray, "x y z"]
    n_trials: dict[int, int]
    """Number of trials of each session."""
    grid: Grid
    """Grid of the brain mask."""

    def __call__(self, session: int) -> np.ndarray:
        """Betas [trials, voxels] of a session."""
        stored = read_session_betas(
            self.files[session - 1], self.voxel_mask, self.n_trials[session], grid=self.grid
        )
        return percent_signal_change(stored)


@dataclass(frozen=True)
class SurfaceSessions:
    """Reads sessions of one subject's vertices, in percent signal change; picklable, for worker processes."""

    files: tuple[tuple[Path, ...], ...]
    """Files of both hemispheres of each session, in order."""
    masks: VertexMasks
    n_trials: dict[int, int]
    """Number of trials of each session."""

    def __call__(self, session: int) -> np.ndarray:
        """Betas [trials, vertices] of a session."""
        return read_surface_betas(self.files[session - 1], self.masks, self.n_trials[session])


def prepare_nsd(  # noqa: PLR0913 - the settings of one command
    root: Path,
    out: Path,
    *,
    space: str = "func1pt8mm",
    roi: str = "nsdgeneral",
    subjects: Sequence[str] | None = None,
    validation_fraction: float = 0.08,
    seed: int = 0,
    n_sessions: int | None = None,
    beta_version: str = "b3",
    normalization: Normalization = "training",
    picture_px: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> None:
    """Write the store of an NSD release, completely or not at all.

    First everything except the betas is read and checked for all subjects (of the images only the first one), so that
    a missing file is reported at once. Then the betas are read session by session; only one session is in memory.

    Parameters
    ----------
    root
        The folder with ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    out
        The store's folder, new or empty.
    space
        ``func1pt8mm``, the subject's own volume, or ``fsaverage``, vertices that all subjects have in common.
    roi
        Region of the voxels or vertices to read.
    subjects
        Subjects to prepare; by default all in the release.
    n_sessions
        Number of sessions to read of every subject; by default all. -3 leaves out the last three, as NSD did until
        August 2023 (37 sessions of 40).
    validation_fraction
        Share of the non-shared images that become validation images.
    seed
        Seed of the choice of validation images.
    beta_version
        ``b1``, ``b2`` or ``b3``.
    normalization
        Normalization of the betas: which trials determine mean and standard deviation.
    picture_px
        Side to which images are resized, in pixels; by default not resized (NSD's have 425 pixels).
    workers
        Number of processes that read sessions in parallel.
    progress
        Called as ``progress(what, done, total)``.
    note
        Called with a line about each peculiarity of the data that is not an error.

    Raises
    ------
    ConfigError
        If a setting is out of its range.
    DataError
        If a file of the release is missing, damaged or does not match its name.
    OutputError
        If ``out`` contains files, or the disk is full.

    References
    ----------
    NSD Data Manual; Allen et al. 2022. Test images are NSD's shared images. By default neither they nor the validation
    images are part of the statistics of the z-scores.
    """
    _require_in_range(
        seed=(seed, 0, math.inf),
        workers=(workers, 1, math.inf),
        validation_fraction=(validation_fraction, 0, 1),
        picture_px=(1 if picture_px is None else picture_px, 1, _MAX_PICTURE_PX),
    )
    release = NsdRelease(Path(root), beta_version, space)
    design = read_design(release.design)
    notes: list[str] = []
    read = [
        _read_subject(release, design, name, roi, n_sessions, notes) for name in release.subjects(subjects)
    ]
    people = [person for person, _ in read]
    atlases = merged_labels(release, [(person.name, labels) for person, labels in read])
    nsd_ids = np.unique(np.concatenate([person.trials["nsd_id"].to_numpy() for person in people]))
    stimuli = read_stimuli(release.stimulus_table, nsd_ids, design.shared_ids, notes)
    captions = read_captions(release, stimuli, notes)
    objects = read_objects(release, stimuli, notes)
    if note is not None:
        for line in notes:
            note(line)
    simulation = release.simulation()
    contents = StoreContents(
        subjects=people,
        stimuli=stimuli,
        captions=captions,
        objects=objects,
        make_tasks=_tasks(release, captions, objects),
        pictures=partial(_pictures, release.pictures, nsd_ids, picture_px),
        atlases=atlases,
        origin=str(release.root),
    )
    settings = StoreSettings(
        source="nsd" if simulation is None else "simulated",
        simulation=simulation,
        beta_version=beta_version,
        space=space,
        roi=roi,
        normalization=normalization,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    write_store(Path(out), contents, settings, workers=workers, progress=progress, note=note)


def _tasks(
    release: NsdRelease, captions: pd.DataFrame, objects: pd.DataFrame | None
) -> Callable[[pd.DataFrame], pd.DataFrame] | None:
    """Questions derived from the objects, and those of files in the folder of the captions."""
    files, is_simulated = release.questions(), release.simulation() is not None
    if objects is None and not files:
        return None

    def make(stimuli: pd.DataFrame) -> pd.DataFrame:
        images = stimuli.set_index("nsd_id")
        found = []
        if objects is not None:
            texts: dict[int, list[str]] = {}
            for nsd_id, caption in zip(
                captions["nsd_id"].tolist(), captions["caption"].tolist(), strict=True
            ):
                texts.setdefault(nsd_id, []).append(caption)
            of_objects = license_of_objects(is_simulated=is_simulated)
            found += derived_exchanges(objects.set_index("nsd_id"), texts, images, license_name=of_objects)
        for source, paths in files.items():
            license_name = SIMULATED_LICENSE if is_simulated else None
            found += read_source(source, paths, images, release.root, license_name=license_name)
        return tasks_table(found)

    return make


def _require_in_range(**settings: tuple[int | float, int | float, int | float]) -> None:
    """Check settings, given as (value, minimum, maximum); NaN is out of every range."""
    for name, (value, least, most) in settings.items():
        if not least <= value <= most:
            limit = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise ConfigError(f"--{name.replace('_', '-')}: expected {limit}, found {value}; change it")


def _read_subject(
    release: NsdRelease, design: Design, name: str, roi: str, n_sessions: int | None, notes: list[str]
) -> tuple[SubjectContents, Labels]:
    is_surface = release.space == "fsaverage"
    in_volume = () if is_surface else tuple((path,) for path in release.session_files(name))
    all_files = in_volume or release.surface_session_files(name)
    files = all_files[:n_sessions]
    if not files:
        raise ConfigError(
            f"--sessions: expected to keep at least 1 of the {len(all_files)} sessions of {name}, found {n_sessions}; "
            "change it"
        )
    trials = read_trials(release, design, name, len(files), notes)
    n_trials = {int(str(s)): int(n) for s, n in trials["session"].value_counts().items()}
    read_session: VolumeSessions | SurfaceSessions
    views: Mapping[int, View] = {}  # vertices out of view are NaN
    if is_surface:
        masks = read_vertex_masks(release, name, roi)
        voxels, labels = read_vertices(release, name, masks, release.surface_atlases(name, besides=roi))
        read_session = SurfaceSessions(files, masks, n_trials)
    else:
        mask = read_voxel_mask(release, name, roi)
        voxels, labels = read_voxels(release, name, mask, release.atlases(name, besides=roi))
        views = read_views(release, name, mask, n_trials)
        read_session = VolumeSessions(
            tuple(path for (path,) in files), mask, n_trials, read_grid(release, name)
        )
    stats = [path.stat() for of_session in files for path in of_session]
    subject = SubjectContents(
        name=name,
        trials=trials,
        voxels=voxels,
        read_session=read_session,
        origin=str(release.betas_folder(name)),
        fingerprint=" ".join(f"{s.st_size}:{s.st_mtime_ns}" for s in stats),
        views=views,
    )
    return subject, labels


def _pictures(path: Path, nsd_ids: np.ndarray, side_px: int | None) -> Iterator[np.ndarray]:
    blocks = read_pictures(path, nsd_ids)
    return blocks if side_px is None else resized(blocks, side_px)


def merged_labels(release: NsdRelease, people: Sequence[tuple[str, Labels]]) -> Labels:
    """Names of the labels of all subjects, which must have the same atlases with the same names."""
    first, of_first = people[0]
    merged: Labels = {atlas: {} for atlas in of_first}
    for name, labels in people:
        if labels.keys() != of_first.keys():
            atlas = min(labels.keys() ^ of_first.keys())
            lacks = name if atlas in of_first else first
            raise DataError(
                f"{release.atlas_file(lacks, atlas)}: expected the atlas `{atlas}`, which another subject has, "
                "found none; download it, or remove it for all subjects"
            )
        found = ((atlas, n, label) for atlas, names in labels.items() for n, label in names.items())
        for atlas, number, label in found:
            if merged[atlas].setdefault(number, label) != label:
                raise DataError(
                    f"{release.atlas_file(name, atlas)}: expected the label {number} to be "
                    f"`{merged[atlas][number]}`, as in {first}, found `{label}`; check the .ctab files"
                )
    return merged
