"""Write a store from any format: checked, normalized, with checksums, and atomically.

Sessions of betas are read, normalized and written to `betas.npy` one by one; a killed run resumes after the last
one.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Num

from bitllm.data.store.complete import complete, few_training_trials, part_of_trials
from bitllm.data.store.contents import TASK_SCHEMA, StoreContents, StoreSettings, SubjectContents, View
from bitllm.data.store.normalize import (
    NORMALIZATIONS,
    SCORED_BY_US,
    Normalization,
    in_float16,
    looks_z_scored,
    moments,
    pooled,
    scaled_by,
    sees,
    z_scores,
)
from bitllm.data.store.read import (
    SHARED_FILES,
    STORE_VERSION,
    SUBJECT_FILES,
    TASKS,
    Store,
    StoreManifest,
    SubjectRecord,
    open_store,
)
from bitllm.errors import DataError
from bitllm.files import (
    file_written_whole,
    folder_gone_on_with,
    require_empty,
    sha256_of_file,
    sha256_of_json,
    write_json,
)

_STATISTICS = "statistics.npy"
_IN_VIEW, _CONTRADICTED = 1, 2
"""Bit flags of each voxel in the mark of a finished session."""
Betas = Num[np.ndarray, "trials voxels"]
Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``."""


@dataclass(frozen=True)
class SessionJob:
    """One session to be read, normalized and written at its position in the subject's ``betas.npy``."""

    subject: SubjectContents
    session: int
    folder: Path
    first_row: int
    is_seen: np.ndarray
    """Which trials are part of the statistics."""
    normalization: Normalization

    @property
    def done_mark(self) -> Path:
        """File that marks this session as written, and records which voxels were in view."""
        return self.folder / f"session{self.session:04d}.done"

    @property
    def moments(self) -> Path:
        """File with the sums of this session for the statistics across sessions."""
        return self.folder / f"session{self.session:04d}.moments.npy"

    @property
    def label(self) -> str:
        """Name in the progress bar."""
        return f"{self.subject.name} session {self.session}"


def session_jobs(
    subject: SubjectContents, stimuli: pd.DataFrame, folder: Path, normalization: Normalization
) -> list[SessionJob]:
    """The sessions of a subject; ``betas.npy`` is allocated in full length, unless it exists."""
    path = folder / "betas.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        allocate_rows(path, (len(subject.trials), len(subject.voxels)), np.dtype(np.float16))
    is_seen = sees(part_of_trials(subject, stimuli), normalization)
    jobs = []
    for session, rows in subject.trials.groupby("session").indices.items():
        first, last = int(rows[0]), int(rows[-1]) + 1
        jobs.append(SessionJob(subject, int(str(session)), folder, first, is_seen[first:last], normalization))
    return jobs


def run_jobs(jobs: list[SessionJob], *, workers: int, done: Callable[[str], None]) -> None:
    """Write every session that is not yet written, with ``workers`` processes."""
    _run_left(jobs, write_session, lambda job: job.done_mark, workers=workers, done=done)


def run_statistics(jobs: list[SessionJob], *, workers: int, done: Callable[[str], None]) -> None:
    """Compute mean and standard deviation across the sessions of each subject, reading every session once."""
    _run_left(jobs, write_moments, lambda job: job.moments, workers=workers, done=done)
    for folder in dict.fromkeys(job.folder for job in jobs):
        of_subject = [job for job in jobs if job.folder == folder]
        np.save(folder / _STATISTICS, pooled([np.load(job.moments) for job in of_subject]))


def remove_marks(folder: Path) -> None:
    """Delete the files that only an unfinished store needs."""
    for path in (*folder.glob("session*.done"), *folder.glob("session*.moments.npy"), folder / _STATISTICS):
        path.unlink(missing_ok=True)


def allocate_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Create an ``.npy`` file in its full length, so that a full disk is noticed before the work starts."""
    with path.open("wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        os.posix_fallocate(file.fileno(), file.tell(), max(1, n_bytes))


def write_session(job: SessionJob) -> str:
    """Read, normalize and write one session, then mark it as done."""
    betas = _read(job)
    if job.normalization not in SCORED_BY_US:
        scaled = in_float16(betas)
    elif job.normalization == "across-sessions":
        scaled = scaled_by(betas, np.load(job.folder / _STATISTICS))
    else:
        scaled = z_scores(betas, job.is_seen)
    view = job.subject.views.get(job.session)
    seen = seen_in_both(betas, view)
    scaled[:, ~seen] = 0
    if not scaled.any():
        raise DataError(
            f"{job.subject.origin} ({job.label}): expected betas that vary between trials, found betas that are 0 or "
            f"constant in every voxel ({seen.sum()} of {len(seen)} voxels in view); check the file, or leave the "
            "session out"
        )
    _write_at(job.folder / "betas.npy", job.first_row, scaled)
    # After the betas are on disk: a kill in between repeats the session.
    write_mark(job.done_mark, seen, contradicted(betas, view))
    return job.label


def write_moments(job: SessionJob) -> str:
    """Read one session and write its sums for the statistics across sessions."""
    betas = _read(job)
    seen = seen_in_both(betas, job.subject.views.get(job.session))
    with file_written_whole(job.moments) as unfinished, unfinished.open("wb") as file:
        np.save(file, moments(betas, job.is_seen, seen))
    return f"{job.label} (statistics)"


def _run_left(
    jobs: list[SessionJob],
    work: Callable[[SessionJob], str],
    made: Callable[[SessionJob], Path],
    *,
    workers: int,
    done: Callable[[str], None],
) -> None:
    left = []
    for job in jobs:
        if made(job).exists():
            done(job.label)
        else:
            left.append(job)
    for label in _run(left, work, workers):
        done(label)


def _run(jobs: list[SessionJob], work: Callable[[SessionJob], str], workers: int) -> Iterator[str]:
    if workers <= 1 or len(jobs) <= 1:
        yield from map(work, jobs)
        return
    # spawn, because a forked process may inherit locks of HDF5 or torch threads and hang.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _read(job: SessionJob) -> np.ndarray:
    betas = job.subject.read_session(job.session)
    where = f"{job.subject.origin} ({job.label})"
    expected = (len(job.is_seen), len(job.subject.voxels))
    if betas.shape != expected:
        raise DataError(
            f"{where}: expected betas of {expected[0]} trials × {expected[1]} voxels (from the tables), "
            f"found the shape {betas.shape}; check that betas, trials and mask belong together"
        )
    # NaN in all trials of a session means out of view (on surfaces); NaN in some trials is damage.
    is_number = np.isfinite(betas)
    partly = is_number.any(axis=0) & ~is_number.all(axis=0)
    if partly.any():
        raise DataError(
            f"{where}: expected numbers, found NaN or infinity in some trials of {partly.sum()} voxels; "
            "fix or exclude those voxels (a voxel without any number in a session becomes 0)"
        )
    if job.normalization in SCORED_BY_US and looks_z_scored(betas):
        raise DataError(
            f"{where}: expected betas to be z-scored, found mean 0 and deviation 1 in nearly every voxel; "
            "they are never z-scored twice, use the normalization `as-delivered`"
        )
    return betas


def _write_at(path: Path, first_row: int, rows: np.ndarray) -> None:
    with path.open("r+b") as file:
        version = np.lib.format.read_magic(file)
        assert version == (1, 0), f"{path}: not written by allocate_rows"
        np.lib.format.read_array_header_1_0(file)
        file.seek(first_row * rows[0].nbytes, os.SEEK_CUR)
        file.write(np.ascontiguousarray(rows).data)
        file.flush()
        os.fsync(file.fileno())


def in_view(betas: Betas) -> Bool[np.ndarray, " voxels"]:
    """Which voxels were in the field of view; NSD writes 0 (NaN on surfaces) in all trials of a session otherwise."""
    return (np.isfinite(betas) & (betas != 0)).any(axis=0)


def seen_in_both(betas: Betas, view: View | None) -> Bool[np.ndarray, " voxels"]:
    """Which voxels were in view according to the betas and, if there is one, the file of views."""
    return in_view(betas) if view is None else in_view(betas) & view.voxels


def contradicted(betas: Betas, view: View | None) -> Bool[np.ndarray, " voxels"]:
    """Which voxels vary although the file says that they were out of view, or do not vary although it says in view."""
    if view is None:
        return np.zeros(betas.shape[1], bool)
    return view.voxels != (in_view(betas) & (betas.max(axis=0) > betas.min(axis=0)))


def write_mark(
    path: Path, seen: Bool[np.ndarray, " voxels"], contradicted: Bool[np.ndarray, " voxels"]
) -> None:
    """Write the file that marks a session as finished, with the flags of its voxels."""
    with file_written_whole(path) as unfinished:
        unfinished.write_bytes((seen * _IN_VIEW + contradicted * _CONTRADICTED).astype(np.uint8).tobytes())


def share_in_view(folder: Path) -> Float32[np.ndarray, " voxels"]:
    """Share of a subject's sessions in which each voxel was in view, as in NSD's ``valid.nii.gz``."""
    seen = np.stack([mark & _IN_VIEW for mark in _read_marks(folder).values()])
    return np.asarray(seen.mean(axis=0), np.float32)


def contradictions(subject: SubjectContents, folder: Path) -> Iterator[str]:
    """A note about voxels of a subject for which the file of views contradicts the betas."""
    counts = {session: int((mark & _CONTRADICTED > 0).sum()) for session, mark in _read_marks(folder).items()}
    sessions = [session for session, count in counts.items() if count]
    if sessions:
        yield (
            f"{subject.views[sessions[0]].origin}: expected it to agree with the betas, found {counts[sessions[0]]} "
            f"voxels that vary although marked as out of view, or the reverse ({len(sessions)} sessions of "
            f"{subject.name} have such voxels); only voxels in view by both are used"
        )


def _read_marks(folder: Path) -> dict[int, np.ndarray]:
    marks = sorted(folder.glob("session*.done"))
    return {int(mark.stem[len("session") :]): np.frombuffer(mark.read_bytes(), np.uint8) for mark in marks}


def write_store(
    out: Path,
    contents: StoreContents,
    settings: StoreSettings,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> None:
    """Write a store from plain tables and betas, session by session.

    After a kill, the same call resumes after the last finished session; an error in the data leaves nothing behind.
    The first images are read before any betas, so that a wrong file does not cost hours.

    Parameters
    ----------
    out
        The store's folder, new or empty.
    contents
        Subjects, images, captions.
    settings
        Origin of the data, normalization, choice of validation images.
    workers
        Number of processes that read sessions in parallel.
    progress
        Called as ``progress(what, done, total)``.
    note
        Called with a line about each peculiarity of the data that is not an error.
    """
    contents = complete(contents, settings)
    require_empty(Path(out))
    _require_pictures(contents)
    tasks = None if contents.make_tasks is None else contents.make_tasks(contents.stimuli)
    with folder_gone_on_with(Path(out), _fingerprint(contents, settings, tasks)) as store:
        jobs = [
            job
            for subject in contents.subjects
            for job in session_jobs(
                subject, contents.stimuli, _folder(store, subject), settings.normalization
            )
        ]
        is_across = settings.normalization == "across-sessions"
        steps = _Steps(progress, len(jobs) * (1 + is_across) + 1)
        if is_across:
            run_statistics(jobs, workers=workers, done=steps.done)
        run_jobs(jobs, workers=workers, done=steps.done)
        for line in _remarks(store, contents, settings):
            if note:
                note(line)
        records = {subject.name: _finish_subject(store, subject) for subject in contents.subjects}
        shared_files = _write_images(store, contents, tasks)
        steps.done("pictures and captions")
        manifest = StoreManifest(
            version=STORE_VERSION,
            source=settings.source,
            simulation=settings.simulation,
            beta_version=settings.beta_version,
            space=settings.space,
            roi=settings.roi,
            statistics=settings.normalization,
            normalization=NORMALIZATIONS[settings.normalization],
            validation_fraction=settings.validation_fraction,
            seed=settings.seed,
            license=settings.license,
            citation=settings.citation,
            subjects=records,
            atlases={
                atlas: {str(n): names[n] for n in sorted(names)} for atlas, names in contents.atlases.items()
            },
            sha256={file: sha256_of_file(store / file) for file in shared_files},
        )
        write_json(store / "manifest.json", manifest.model_dump(mode="json"))


def replace_tasks(store: Store, tasks: pd.DataFrame) -> Store:
    """Write a table with the columns of ``TASK_SCHEMA`` as the tasks of a store; returns the store opened again.

    A kill in between leaves a store without tasks, never one whose checksums are wrong.
    """
    path, manifest = store.path / "manifest.json", store.manifest.model_dump(mode="json")
    if manifest["sha256"].pop(TASKS, None) is not None:
        write_json(path, manifest)
    with file_written_whole(store.path / TASKS) as unfinished:
        tasks.to_parquet(unfinished, index=False, schema=TASK_SCHEMA)
    manifest["sha256"][TASKS] = sha256_of_file(store.path / TASKS)
    write_json(path, manifest)
    return open_store(store.path)


def _remarks(store: Path, contents: StoreContents, settings: StoreSettings) -> Iterator[str]:
    for subject in contents.subjects:
        yield from few_training_trials(subject, contents.stimuli, settings.normalization)
        yield from contradictions(subject, _folder(store, subject))


def write_rows(path: Path, n_rows: int, blocks: Iterable[np.ndarray]) -> int:
    """Write blocks of rows as one ``.npy`` file, in bounded memory; returns the number of rows, which should be
    ``n_rows``.

    With plain writes instead of a memory map, because a full disk kills a process that writes to a map (SIGBUS).
    """
    n_written = 0
    with path.open("wb") as file:
        for block in blocks:
            if not n_written:
                header = {
                    "descr": block.dtype.str,
                    "fortran_order": False,
                    "shape": (n_rows, *block.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(block).data)
            n_written += len(block)
    return n_written


class _Steps:
    """Counts finished steps and reports them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def done(self, what: str) -> None:
        self._done += 1
        if self._progress:
            self._progress(what, self._done, self._total)


def _folder(store: Path, subject: SubjectContents) -> Path:
    return store / "subjects" / subject.name


def _finish_subject(store: Path, subject: SubjectContents) -> SubjectRecord:
    folder = _folder(store, subject)
    subject.trials.to_parquet(folder / "trials.parquet", index=False)
    voxels = subject.voxels.assign(valid=share_in_view(folder))
    voxels.to_parquet(folder / "voxels.parquet", index=False)
    record = SubjectRecord(
        n_trials=len(subject.trials),
        n_voxels=len(subject.voxels),
        n_sessions=subject.trials["session"].nunique(),
        sha256={file: sha256_of_file(folder / file) for file in SUBJECT_FILES},
    )
    remove_marks(folder)
    return record


def _require_pictures(contents: StoreContents) -> None:
    if contents.pictures is not None:
        next(contents.pictures(), None)


def _write_images(store: Path, contents: StoreContents, tasks: pd.DataFrame | None) -> tuple[str, ...]:
    contents.stimuli.to_parquet(store / "stimuli.parquet", index=False)
    contents.captions.to_parquet(store / "captions.parquet", index=False)
    if contents.objects is not None:
        contents.objects.to_parquet(store / "objects.parquet", index=False)
    if tasks is not None:
        tasks.to_parquet(store / TASKS, index=False, schema=TASK_SCHEMA)
    if contents.pictures is not None:
        _write_pictures(store, contents, contents.pictures())
    return tuple(file for file in SHARED_FILES if (store / file).exists())


def _write_pictures(store: Path, contents: StoreContents, blocks: Iterator[np.ndarray]) -> None:
    n_written = write_rows(store / "pictures.npy", len(contents.stimuli), blocks)
    if n_written != len(contents.stimuli):
        raise DataError(
            f"{contents.origin}: expected {len(contents.stimuli)} pictures, one an image, found {n_written}; "
            "check that pictures and images belong together"
        )


def _fingerprint(contents: StoreContents, settings: StoreSettings, questions: pd.DataFrame | None) -> str:
    tables = {"stimuli": contents.stimuli, "captions": contents.captions}
    if contents.objects is not None:
        tables["objects"] = contents.objects
    for subject in contents.subjects:
        tables[f"{subject.name} trials"] = subject.trials
        tables[f"{subject.name} voxels"] = subject.voxels
    return sha256_of_json(
        {
            "tasks": None if questions is None else questions.to_dict("list"),
            "settings": settings.model_dump(mode="json"),
            "files": [subject.fingerprint for subject in contents.subjects],
            "views": [_views(subject) for subject in contents.subjects],
            "tables": {name: _hash(table) for name, table in tables.items()},
        }
    )


def _views(subject: SubjectContents) -> dict[str, str]:
    return {str(session): view.voxels.tobytes().hex() for session, view in subject.views.items()}


def _hash(table: pd.DataFrame) -> str:
    # hash_pandas_object includes the index, so the xor still depends on the order of the rows.
    return str(np.bitwise_xor.reduce(pd.util.hash_pandas_object(table).to_numpy()))
