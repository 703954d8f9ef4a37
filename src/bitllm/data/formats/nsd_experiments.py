"""Reader of NSD-imagery and NSD-synthetic: NSD's subjects and voxels, other beta files and designs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from bitllm.data.formats.sidecar import ParsedDataset, caption_rows, fingerprint
from bitllm.data.io.captions import read_caption_file
from bitllm.data.io.tables import read_table
from bitllm.data.io.volumes import Grid
from bitllm.data.nsd.anatomy import Labels, read_grid, read_voxel_mask, read_voxels
from bitllm.data.nsd.betas import percent_signal_change, read_session_betas
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.surface import VertexMasks, read_surface_betas, read_vertex_masks, read_vertices
from bitllm.data.nsd.trials import read_matlab
from bitllm.data.prepare import merged_labels
from bitllm.data.store.complete import with_validation_images
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.errors import DataError

Experiment = Literal["seen", "imagined", "synthetic"]
"""NSD-imagery's trials where an image was seen or imagined, or NSD-synthetic."""

_IMAGERY_RUNS = (
    *("visA", "attA", "imgA_1", "visB", "attB", "imgB_1"),
    *("visC", "attC", "imgC_1", "imgA_2", "imgB_2", "imgC_2"),
)
"""Order of the runs in the beta file. Attention has two betas a trial, vision and imagery one."""
_STARTS = {"seen": "vis", "imagined": "img"}
_N_SYNTHETIC = 284
_TRAINING_SHARE = 1 / 3


@dataclass(frozen=True)
class ExperimentSession:
    """Reads the chosen trials of the only session, in percent signal change; picklable, for worker processes."""

    files: tuple[Path, ...]
    """One file, or both hemispheres."""
    places: Bool[np.ndarray, "x y z"] | VertexMasks
    n_betas: int
    """Number of betas in the file."""
    rows: Int[np.ndarray, " trials"]
    """Betas to read."""
    grid: Grid | None

    def __call__(self, session: int) -> np.ndarray:
        """Betas [trials, voxels]."""
        if isinstance(self.places, tuple):
            return read_surface_betas(self.files, self.places, self.n_betas)[self.rows]
        (path,) = self.files
        stored = read_session_betas(path, self.places, self.n_betas, grid=self.grid)
        return percent_signal_change(stored[self.rows])


def read_experiment(
    release: NsdRelease,
    experiment: Experiment,
    *,
    captions: Sequence[Path],
    roi: str = "nsdgeneral",
    subjects: Sequence[str] | None = None,
    settings: StoreSettings,
) -> ParsedDataset:
    """Read one of NSD's smaller experiments, with the voxels, regions and coordinates of NSD.

    Both are meant for tests only. A third of the images, drawn with the seed, are training images all the same, so
    that z-scores, constant and nearest caption come from other images than those tested.

    Parameters
    ----------
    release
        The release, with masks, transforms and noise ceilings of NSD itself.
    experiment
        ``seen``, ``imagined`` or ``synthetic``.
    captions
        JSON from the name of an image to its captions: in NSD-imagery its ``CONDITION``, in NSD-synthetic its number
        (1 to 284). Trials with other images are left out.
    roi
        Region of the voxels or vertices to read.
    subjects
        Subjects to read; by default all with betas of this experiment.
    settings
        Version of the betas, normalization and seed.

    References
    ----------
    NSD Data Manual, "NSD-imagery" and "NSD-synthetic". Neither design was compared with the released files.
    """
    kind = "synthetic" if experiment == "synthetic" else "imagery"
    notes: list[str] = []
    names = _subjects(release, kind, subjects)
    named = {image for path in captions for image in _map_of(path)}
    tables, n_betas = {}, {}
    for name in names:
        trials, n_betas[name] = _trials(release, name, experiment)
        tables[name] = trials[trials["stimulus_id"].isin(named)]
        if not len(tables[name]):
            raise DataError(
                f"{captions[0]}: expected captions of the images of {name}, such as `{trials['stimulus_id'].iloc[0]}`, "
                f"found none among {len(named)}; name the images as the design does"
            )
        if len(tables[name]) < len(trials):
            left = len(trials) - len(tables[name])
            notes.append(
                f"{name}: {left} of {len(trials)} trials show images without captions; they are left out"
            )
    stimuli = _stimuli(pd.concat(tables.values())["stimulus_id"], kind, settings.seed, notes)
    number = dict(zip(stimuli["stimulus_name"], stimuli["nsd_id"].tolist(), strict=True))
    read = [
        _subject(release, name, roi, release.experiment_files(name, kind), tables[name], n_betas[name])
        for name in names
    ]
    people = [
        _with_trials(subject, tables[name].assign(nsd_id=tables[name]["stimulus_id"].map(number)))
        for name, (subject, _) in zip(names, read, strict=True)
    ]
    notes.append(
        "no pictures are read; the order of the betas is that of NSD's manual, nothing in the files states it"
    )
    contents = StoreContents(
        subjects=people,
        stimuli=stimuli,
        captions=caption_rows(captions, stimuli, notes, source=release.root),
        origin=str(release.root),
        atlases=merged_labels(
            release, [(name, labels) for name, (_, labels) in zip(names, read, strict=True)]
        ),
    )
    made = settings.model_copy(update={"source": f"nsd-{kind}", "space": release.space, "roi": roi})
    return ParsedDataset(contents, made, tuple(notes))


def _subjects(release: NsdRelease, kind: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    folder = release.root / "nsddata_betas/ppdata"
    found = sorted(path.name for path in folder.glob("subj*") if release.experiment_files(path.name, kind))
    missing = next((name for name in wanted or ("subjNN",) if name not in found), None)
    if missing is not None and (wanted or not found):
        place = release.betas_folder(missing)
        raise DataError(
            f"{place.with_name(f'nsd{kind}{place.name}')}: expected betas_nsd{kind}.hdf5, found none; download it, or "
            "name the root folder of the release"
        )
    return tuple(name for name in found if wanted is None or name in wanted)


def _map_of(path: Path) -> tuple[str, ...]:
    file = read_caption_file(path)
    if file.is_coco:
        raise DataError(
            f"{path}: expected captions by the names of the images ({{name: [caption, …]}}), found COCO's annotations; "
            "these images are not COCO's"
        )
    return tuple(file.captions)


def _trials(release: NsdRelease, subject: str, experiment: Experiment) -> tuple[pd.DataFrame, int]:
    """``row`` (of the betas), ``run``, ``trial``, ``stimulus_id``, and the number of betas in the file."""
    if experiment == "synthetic":
        return _synthetic_trials(release.synthetic_design)
    parts, first = [], 0
    for number, run in enumerate(_IMAGERY_RUNS, 1):
        path = release.imagery_run(subject, run)
        table = read_table(
            path, needed=("CONDITION",), numbers={}, what="the trials of a run", advice="download it"
        )
        if not len(table) or (table["CONDITION"] == "").any():
            raise DataError(
                f"{path}: expected a CONDITION in every trial, found none in some; download it again"
            )
        if run.startswith(_STARTS[experiment]):
            rows = first + np.arange(len(table))
            part = {
                "row": rows,
                "run": number,
                "trial": range(1, len(table) + 1),
                "stimulus_id": table["CONDITION"],
            }
            parts.append(pd.DataFrame(part))
        first += len(table) * (2 if run.startswith("att") else 1)
    return pd.concat(parts, ignore_index=True), first


def _synthetic_trials(path: Path) -> tuple[pd.DataFrame, int]:
    design = read_matlab(path, ("masterordering", "stimpattern"), "the design of NSD-synthetic")
    ordering = design["masterordering"].ravel()
    per_run = design["stimpattern"].reshape(-1, design["stimpattern"].shape[-1]).sum(axis=1)
    if ordering.min() < 1 or ordering.max() > _N_SYNTHETIC:
        raise DataError(
            f"{path}: expected `masterordering` between 1 and {_N_SYNTHETIC}, found {ordering.min()} to "
            f"{ordering.max()}; download the design file again"
        )
    if per_run.sum() != len(ordering):
        raise DataError(
            f"{path}: expected {per_run.sum()} trials (the sum of `stimpattern`), found {len(ordering)} in "
            "`masterordering`; download the design file again"
        )
    run = np.repeat(np.arange(1, len(per_run) + 1), per_run)
    table = pd.DataFrame({"row": range(len(ordering)), "run": run, "stimulus_id": ordering.astype(str)})
    return table.assign(trial=table.groupby("run").cumcount() + 1), len(ordering)


def _stimuli(shown: pd.Series, kind: str, seed: int, notes: list[str]) -> pd.DataFrame:
    names = sorted(set(shown), key=lambda name: (int(name) if kind == "synthetic" else 0, name))
    n_train = max(2, round(len(names) * _TRAINING_SHARE))
    if len(names) <= n_train:
        raise DataError(
            f"--captions: expected captions of at least 3 images, found {len(names)}; add captions of more images"
        )
    number = [int(name) - 1 for name in names] if kind == "synthetic" else list(range(len(names)))
    drawn = np.random.default_rng(seed).permutation(len(names))[:n_train]
    is_train = np.isin(np.arange(len(names)), drawn)
    stimuli = pd.DataFrame({"nsd_id": number, "stimulus_name": names, "stimulus_id": names, "coco_id": -1})
    stimuli = stimuli.assign(shared=~is_train, part=np.where(is_train, "train", "test"))
    notes.append(
        f"{n_train} of {len(names)} images (seed {seed}) are for statistics and controls, not for test"
    )
    stimuli, moved = with_validation_images(stimuli, validation_fraction=0.08, seed=seed)
    notes.extend(moved)
    return stimuli


def _subject(
    release: NsdRelease,
    name: str,
    roi: str,
    files: tuple[Path, ...],
    trials: pd.DataFrame,
    n_betas: int,
) -> tuple[SubjectContents, Labels]:
    places: Bool[np.ndarray, "x y z"] | VertexMasks
    grid = None
    if release.space == "fsaverage":
        places = read_vertex_masks(release, name, roi)
        voxels, labels = read_vertices(release, name, places, release.surface_atlases(name, besides=roi))
    else:
        places, grid = read_voxel_mask(release, name, roi), read_grid(release, name)
        voxels, labels = read_voxels(release, name, places, release.atlases(name, besides=roi))
    subject = SubjectContents(
        name=name,
        trials=trials,
        voxels=voxels,
        read_session=ExperimentSession(files, places, n_betas, trials["row"].to_numpy(np.int64), grid),
        origin=str(files[0]),
        fingerprint=fingerprint(*files),
    )
    return subject, labels


def _with_trials(subject: SubjectContents, trials: pd.DataFrame) -> SubjectContents:
    return replace(subject, trials=trials.assign(session=1)[["session", "run", "trial", "nsd_id"]])
