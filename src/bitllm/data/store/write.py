"""Write a store, whatever the format it comes from: checked, normalized, checksummed, whole or not at all."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from bitllm.data.store.complete import complete, few_training_trials
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.normalize import NORMALIZATIONS
from bitllm.data.store.read import (
    SHARED_FILES,
    STORE_VERSION,
    SUBJECT_FILES,
    StoreManifest,
    SubjectRecord,
)
from bitllm.data.store.sessions import (
    Progress,
    contradictions,
    remove_marks,
    run_jobs,
    run_statistics,
    session_jobs,
    share_in_view,
)
from bitllm.errors import DataError
from bitllm.files import folder_gone_on_with, require_empty, sha256_of_file, sha256_of_json, write_json


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

    After a kill, the same call resumes after the last finished session; a mistake in the data leaves
    nothing behind. The first pictures are read before any betas: hours of those are not lost to a wrong file.

    Parameters
    ----------
    out
        The store's folder, new or empty.
    contents
        Subjects, images, captions, pictures.
    settings
        Where they came from, the normalization, the choice of validation images.
    workers
        How many processes read sessions at the same time.
    progress
        Called with what is being done, how many steps are done and how many there are.
    note
        Called with one line about each thing that is no mistake but should be known.
    """
    contents = complete(contents, settings)
    require_empty(Path(out))
    _require_pictures(contents)
    with folder_gone_on_with(Path(out), _fingerprint(contents, settings)) as store:
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
        shared_files = _write_images(store, contents)
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
            subjects=records,
            atlases={
                atlas: {str(n): names[n] for n in sorted(names)} for atlas, names in contents.atlases.items()
            },
            sha256={file: sha256_of_file(store / file) for file in shared_files},
        )
        write_json(store / "manifest.json", manifest.model_dump(mode="json"))


def _remarks(store: Path, contents: StoreContents, settings: StoreSettings) -> Iterator[str]:
    for subject in contents.subjects:
        yield from few_training_trials(subject, contents.stimuli, settings.normalization)
        yield from contradictions(subject, _folder(store, subject))


def write_rows(path: Path, n_rows: int, blocks: Iterable[np.ndarray]) -> int:
    """Write blocks of rows as one ``.npy`` file, in bounded memory.

    By plain writes and not through a memory map, which a full disk answers with a signal that kills the
    process. The number of rows that were written is returned; it should be ``n_rows``.
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
    """Counts the steps and tells of them."""

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


def _write_images(store: Path, contents: StoreContents) -> tuple[str, ...]:
    contents.stimuli.to_parquet(store / "stimuli.parquet", index=False)
    contents.captions.to_parquet(store / "captions.parquet", index=False)
    if contents.pictures is None:
        return tuple(file for file in SHARED_FILES if file != "pictures.npy")
    n_written = write_rows(store / "pictures.npy", len(contents.stimuli), contents.pictures())
    if n_written != len(contents.stimuli):
        raise DataError(
            f"{contents.origin}: expected {len(contents.stimuli)} pictures, one an image, found {n_written}; "
            "check that pictures and images belong together"
        )
    return SHARED_FILES


def _fingerprint(contents: StoreContents, settings: StoreSettings) -> str:
    tables = {"stimuli": contents.stimuli, "captions": contents.captions}
    for subject in contents.subjects:
        tables[f"{subject.name} trials"] = subject.trials
        tables[f"{subject.name} voxels"] = subject.voxels
    return sha256_of_json(
        {
            "settings": settings.model_dump(mode="json"),
            "files": [subject.fingerprint for subject in contents.subjects],
            "views": [_views(subject) for subject in contents.subjects],
            "tables": {name: _hash(table) for name, table in tables.items()},
        }
    )


def _views(subject: SubjectContents) -> dict[str, str]:
    return {str(session): view.voxels.tobytes().hex() for session, view in subject.views.items()}


def _hash(table: pd.DataFrame) -> str:
    return str(np.bitwise_xor.reduce(pd.util.hash_pandas_object(table).to_numpy()))
