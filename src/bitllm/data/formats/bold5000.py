"""Reader of BOLD5000, release 2.0: single-trial betas in native volumes; the part with photographs of COCO."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int

from bitllm.config import nearest
from bitllm.data.formats.series import read_mask
from bitllm.data.formats.sidecar import (
    COORDINATES,
    ParsedDataset,
    Sidecar,
    blocks,
    caption_rows,
    fingerprint,
)
from bitllm.data.formats.trials import stimuli_of
from bitllm.data.io.captions import coco_id_of
from bitllm.data.io.pictures import picture_reader
from bitllm.data.io.tables import read_table
from bitllm.data.io.transforms import transform_points
from bitllm.data.io.volumes import Grid, grid_of, open_volume, require_same_grid, scaled_volumes
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.normalize import Normalization
from bitllm.errors import ConfigError, DataError
from bitllm.files import read_json, read_text

RECOMMENDED = "TYPED-FITHRF-GLMDENOISE-RR"
"""The betas that the authors recommend."""

ATLAS = "bold5000"
ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
"""Regions of the masks in OpenNeuro's ``derivatives/spm``, both hemispheres together; the labels of the atlas."""

_TRIALS_PER_RUN = 37
_GRIDS = {"CSI1": (71, 89, 72), "CSI2": (72, 92, 70), "CSI3": (72, 88, 67), "CSI4": (70, 89, 70)}
_WHAT = "a session of betas"
_BETAS = re.compile(r"(CSI\d+)_GLMbetas-(.+)_ses-(\d+)\.nii(?:\.gz)?")
_EVENTS = re.compile(r".*_ses-(\d+)_task-5000scenes_run-(\d+)_events\.tsv")
_ROI_FILE = re.compile(r".*_mask-(?:LH|RH)(.+)\.nii(?:\.gz)?")
_TRANSFORM = re.compile(r".*_from-(MNI[A-Za-z0-9]+)_to-T1w_mode-image_xfm\.(?:h5|txt)")
_SPELLINGS = {"LO": "LOC", "RRSC": "RSC"}
"""Names of some masks of CSI2 and CSI3 on OpenNeuro."""


@dataclass(frozen=True)
class OpenNeuro:
    """Parts of OpenNeuro's ds001499."""

    events: Path | None = None
    """Root of ds001499, with the events of each run; the order of the trials is compared with them."""
    rois: Path | None = None
    """Folder derivatives/spm, with ``sub-CSI1_mask-LHEarlyVis.nii.gz`` and so on."""
    transforms: Path | None = None
    """Folder with fMRIPrep's ``sub-CSI1_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5`` and so on."""


@dataclass(frozen=True)
class Bold5000Sessions:
    """Reads the COCO trials of a session at the voxels of a mask; picklable, for worker processes."""

    files: tuple[Path, ...]
    """Files of the sessions, in order."""
    voxel_mask: Bool[np.ndarray, "x y z"]
    rows: tuple[Int[np.ndarray, " _"], ...]
    """The trials of each session to read."""

    def __call__(self, session: int) -> Float32[np.ndarray, "trials voxels"]:
        """Betas in percent signal change."""
        path, rows = self.files[session - 1], self.rows[session - 1]
        inside = np.ravel_multi_index(np.nonzero(self.voxel_mask), self.voxel_mask.shape, order="F")
        betas = np.empty((len(rows), len(inside)), np.float32)
        place = {int(trial): row for row, trial in enumerate(rows)}
        for trial, volume in enumerate(scaled_volumes(open_volume(path, _WHAT), path, _WHAT)):
            if trial in place:
                betas[place[trial]] = volume[inside]
        return betas


def read_bold5000(
    folder: Path,
    sidecar: Sidecar,
    *,
    openneuro: OpenNeuro = OpenNeuro(),
    roi: str = "brain",
    subjects: Sequence[str] | None = None,
    betas: str = RECOMMENDED,
    normalization: Normalization = "training",
) -> ParsedDataset:
    """Read the COCO part of BOLD5000.

    Test images are those that were repeated (marked ``rep_`` in the events; without events, images that a subject saw
    more than once). Trials with images of ImageNet and SUN, which have no captions, are left out.

    Parameters
    ----------
    folder
        Folder with ``CSI1_GLMbetas-…_ses-01.nii.gz``, ``CSI1_brainmask.nii.gz`` and ``CSI1_imgnames.txt``.
    sidecar
        COCO's captions of train2014 and, optionally, the pictures.
    openneuro
        Events, masks of regions and transforms to MNI.
    roi
        ``brain``, or regions of ``openneuro.rois`` joined by ``+``.
    subjects
        Subjects to read; by default all.
    betas
        Version of the betas, as in the names of the files.
    normalization
        Which trials determine mean and standard deviation.

    References
    ----------
    Chang et al. 2019; release 2.0 on figshare (betas by GLMsingle, in percent signal change).
    """
    files = _sessions(folder, betas, subjects)
    notes: list[str] = []
    tables = [
        _trials(folder, name, of_subject, openneuro.events, notes) for name, of_subject in files.items()
    ]
    every = pd.concat(tables, ignore_index=True)
    stimuli, coco = _coco_part(every, folder, notes)
    number = dict(zip(stimuli["stimulus_id"], stimuli["nsd_id"].tolist(), strict=True))
    coco = coco.assign(nsd_id=coco["stimulus_id"].map(number))
    found = [
        _subject(
            name, coco[coco["subject"] == name], of_subject, _voxels(folder, name, openneuro.rois, roi, notes)
        )
        for name, of_subject in files.items()
    ]
    space = "T1w"
    if openneuro.transforms is not None:
        found, space = _in_mni(found, openneuro.transforms)
    pictures = None
    if sidecar.pictures is not None:
        picture = picture_reader(sidecar.pictures, stimuli, notes)
        pictures = blocks(stimuli["nsd_id"].to_numpy(), picture)
    notes.append("the betas are believed to be in percent signal change: the files do not state their unit")
    contents = StoreContents(
        subjects=found,
        stimuli=stimuli,
        captions=caption_rows(sidecar.captions, stimuli, notes, source=folder),
        origin=str(folder),
        pictures=pictures,
        atlases={} if openneuro.rois is None else {ATLAS: dict(enumerate(ROIS, 1))},
    )
    simulation = folder / "simulation.json"
    settings = StoreSettings(
        source="simulated" if simulation.is_file() else "bold5000",
        simulation=read_json(simulation) if simulation.is_file() else None,
        beta_version=betas,
        space=space,
        roi=roi,
        normalization=normalization,
    )
    return ParsedDataset(contents, settings, tuple(notes))


def _sessions(folder: Path, betas: str, subjects: Sequence[str] | None) -> dict[str, tuple[Path, ...]]:
    """Files of each subject's sessions, from session 1 without a gap."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of BOLD5000's betas, found none; check the path")
    found = [(match, path) for path in sorted(folder.iterdir()) if (match := _BETAS.fullmatch(path.name))]
    versions = sorted({match[2] for match, _ in found})
    files: dict[str, dict[int, Path]] = {}
    for match, path in found:
        if match[2] == betas:
            files.setdefault(match[1], {})[int(match[3])] = path
    if not files:
        hint = f"--betas: {nearest(betas, versions)}" if versions else "download the betas of release 2.0"
        raise DataError(f"{folder}: expected CSI1_GLMbetas-{betas}_ses-01.nii.gz, found none; {hint}")
    for name in subjects or ():
        if name not in files:
            raise DataError(
                f"{folder}: expected betas of the subject `{name}`, found none; {nearest(name, list(files))}"
            )
    chosen = {name: files[name] for name in files if subjects is None or name in subjects}
    for name, of_subject in chosen.items():
        missing = next((n for n in range(1, max(of_subject) + 1) if n not in of_subject), None)
        if missing is not None:
            raise DataError(
                f"{folder}: expected the sessions 1 to {max(of_subject)} of {name}, found no file of session "
                f"{missing}; download it, or remove the sessions after it"
            )
    return {name: tuple(of_subject[n] for n in sorted(of_subject)) for name, of_subject in chosen.items()}


def _trials(
    folder: Path, name: str, files: tuple[Path, ...], events: Path | None, notes: list[str]
) -> pd.DataFrame:
    """``subject``, ``session``, ``run``, ``trial``, ``row`` (of the session's betas), ``image``, ``is_repeated``."""
    n_trials = [_n_volumes(path) for path in files]
    path = next((p for p in _names_files(folder, name) if p.is_file()), None)
    listed = None if path is None else [line.strip() for line in read_text(path, "names").splitlines()]
    while listed and not listed[-1]:
        listed.pop()
    if events is not None:
        table = _from_events(events, name, files, n_trials)
        if path is None or listed is None:
            notes.append(f"{events}: {name} has no {name}_imgnames.txt to compare the events with")
        else:
            _require_same_order(path, listed, table, is_whole=len(listed) == len(table))
    elif path is None or listed is None:
        raise DataError(
            f"{folder}: expected {name}_imgnames.txt, the image of each trial, found none; download it, or name "
            "OpenNeuro's ds001499 with --events"
        )
    else:
        table = _from_names(path, listed, n_trials, notes)
    return table.assign(subject=name)


def _names_files(folder: Path, name: str) -> tuple[Path, ...]:
    return folder / f"{name}_imgnames.txt", folder / f"sub-{name}_imgnames.txt"


def _n_volumes(path: Path) -> int:
    shape = tuple(map(int, open_volume(path, _WHAT).shape))
    if len(shape) != 4:
        raise DataError(
            f"{path}: expected {_WHAT} with four axes (x, y, z, trial), found the shape {shape}; download it again"
        )
    return shape[3]


def _from_names(path: Path, listed: list[str], n_trials: list[int], notes: list[str]) -> pd.DataFrame:
    if sum(n_trials) > len(listed):
        raise DataError(
            f"{path}: expected the images of {sum(n_trials)} trials, as the betas have, found {len(listed)}; both must "
            "be of one subject"
        )
    for session, n in enumerate(n_trials, 1):
        if n % _TRIALS_PER_RUN:
            raise DataError(
                f"{path}: expected runs of {_TRIALS_PER_RUN} trials, found {n} in session {session}; name OpenNeuro's "
                "ds001499 with --events, which states the runs"
            )
    notes.append(
        f"{path}: no --events, so the order of the trials and runs of 37 trials are believed, not checked"
    )
    if sum(n_trials) < len(listed):
        notes.append(f"{path}: {len(listed) - sum(n_trials)} images of sessions without betas are ignored")
    rows = [(session, row) for session, n in enumerate(n_trials, 1) for row in range(n)]
    table = pd.DataFrame(rows, columns=["session", "row"])
    names = pd.Series(listed[: len(table)])
    is_marked = names.str.startswith("rep_")
    table["image"] = names.str.removeprefix("rep_")
    table["run"] = table["row"] // _TRIALS_PER_RUN + 1
    table["trial"] = table["row"] % _TRIALS_PER_RUN + 1
    return table.assign(is_repeated=is_marked | table["image"].duplicated(keep=False))


def _from_events(root: Path, name: str, files: tuple[Path, ...], n_trials: list[int]) -> pd.DataFrame:
    parts = []
    for session, (path, n) in enumerate(zip(files, n_trials, strict=True), 1):
        folder = root / f"sub-{name}/ses-{session:02d}/func"
        runs = {int(m[2]): p for p in folder.glob("*_events.tsv") if (m := _EVENTS.fullmatch(p.name))}
        if not runs or sorted(runs) != list(range(1, len(runs) + 1)):
            raise DataError(
                f"{folder}: expected the events of the runs 1 to 9 or 10 of 5000scenes, found the runs "
                f"{sorted(runs)}; download the missing events"
            )
        tables = [_run(runs[run], session, run) for run in sorted(runs)]
        table = pd.concat(tables, ignore_index=True)
        if len(table) != n:
            raise DataError(
                f"{path}: expected {len(table)} trials, as in the events of session {session}, found {n}; both must be "
                "of one subject and session"
            )
        parts.append(table.assign(session=session, row=range(len(table))))
    return pd.concat(parts, ignore_index=True)


def _run(path: Path, session: int, run: int) -> pd.DataFrame:
    numbers = {"Sess": "int64", "Run": "int64"}
    known = ("ImgName", "stim_file", "ImgType", *numbers)
    table = read_table(path, needed=(), optional=known, numbers=numbers, what="the events")
    column = next((name for name in ("ImgName", "stim_file") if name in table), None)
    if column is None or not len(table):
        raise DataError(
            f"{path}: expected the images of the trials (column ImgName), found none; download the events again"
        )
    for name, expected in (("Sess", session), ("Run", run)):
        if name in table and (wrong := table[name][table[name] != expected]).size:
            raise DataError(
                f"{path}: expected {name} {expected}, as in the file's name, found {wrong.iloc[0]} in row "
                f"{wrong.index[0] + 1}; the file has the name of another"
            )
    kind = table["ImgType"] if "ImgType" in table else pd.Series("", index=table.index)
    made = pd.DataFrame({"image": table[column].str.removeprefix("rep_"), "run": run})
    is_marked = kind.str.startswith("rep_") | table[column].str.startswith("rep_")
    return made.assign(trial=range(1, len(made) + 1), is_repeated=is_marked)


def _require_same_order(path: Path, listed: list[str], table: pd.DataFrame, *, is_whole: bool) -> None:
    names = [name.removeprefix("rep_") for name in listed]
    if len(names) < len(table):
        raise DataError(
            f"{path}: expected the images of {len(table)} trials, as in the events, found {len(names)}; download it "
            "again"
        )
    pairs = zip(names, table["image"], strict=is_whole)
    wrong = next((row for row, (one, other) in enumerate(pairs) if one != other), None)
    if wrong is not None:
        raise DataError(
            f"{path}: expected `{table['image'].iloc[wrong]}` in line {wrong + 1}, as in the events, found "
            f"`{names[wrong]}`; both must be of one subject"
        )


def _coco_part(every: pd.DataFrame, folder: Path, notes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The COCO images, and the trials that show them."""
    every = every.assign(stimulus_id=every["image"].str.rsplit(".", n=1).str[0])
    every["coco_id"] = [coco_id_of(name) for name in every["stimulus_id"]]
    coco = every[every["coco_id"] >= 0]
    if not len(coco):
        raise DataError(
            f"{folder}: expected images of COCO (COCO_train2014_000000000001.jpg), found `{every['image'].iloc[0]}` "
            f"and {len(every) - 1} others; check the names of the images"
        )
    notes.append(
        f"{len(every) - len(coco)} of {len(every)} trials show images of ImageNet or SUN, which have no captions; they "
        "are left out, of the statistics too"
    )
    repeated = set(coco["stimulus_id"][coco["is_repeated"]])
    if not repeated:
        raise DataError(
            f"{folder}: expected repeated COCO images as the test part, found none in {len(coco)} trials; add sessions"
        )
    coco = coco.assign(split=np.where(coco["stimulus_id"].isin(repeated), "test", "train"))
    notes.append(f"the {len(repeated)} COCO images that were repeated are the test part")
    stimuli, of_images = stimuli_of(coco, folder)
    notes.extend(of_images)
    return stimuli, coco


@dataclass(frozen=True)
class _Voxels:
    mask: Bool[np.ndarray, "x y z"]
    grid: Grid
    """Grid of the mask."""
    labels: Int[np.ndarray, " voxels"] | None


def _voxels(folder: Path, name: str, rois: Path | None, roi: str, notes: list[str]) -> _Voxels:
    ending = next((e for e in (".nii.gz", ".nii") if (folder / f"{name}_brainmask{e}").is_file()), ".nii.gz")
    brain, grid = read_mask(folder / f"{name}_brainmask{ending}")
    expected = _GRIDS.get(name)
    if expected is not None and brain.shape != expected:
        notes.append(
            f"{grid.path}: the grid {brain.shape} is not that of release 2.0, {expected}; read anyway"
        )
    if rois is None:
        if roi != "brain":
            raise ConfigError(
                f"--roi: expected brain, found {roi} without masks of regions; name their folder with --rois"
            )
        return _Voxels(brain, grid, None)
    labels = _labels(rois, name, grid, notes)
    mask = brain
    if roi != "brain":
        wanted = roi.split("+")
        for one in wanted:
            if one not in ROIS:
                raise ConfigError(
                    f"--roi: expected brain or regions joined by +, found `{one}`; {nearest(one, list(ROIS))}"
                )
        mask = np.isin(labels, [ROIS.index(one) + 1 for one in wanted])
    return _Voxels(mask, grid, labels[mask].astype(np.int64))


def _labels(rois: Path, name: str, grid: Grid, notes: list[str]) -> np.ndarray:
    """Volume with the number of each voxel's region, 0 outside."""
    labels = np.zeros(grid.shape, np.int16)
    n_twice = 0
    present = set()
    for path in sorted(rois.rglob(f"sub-{name}_mask-*.nii*")):
        found = _ROI_FILE.fullmatch(path.name)
        region = _SPELLINGS.get(found[1], found[1]) if found else ""
        if region not in ROIS:
            continue
        present.add(region)
        mask, own = read_mask(path)
        require_same_grid(own, grid, "the mask of a region")
        number = ROIS.index(region) + 1
        n_twice += int((mask & (labels > 0) & (labels != number)).sum())
        labels[mask & (labels == 0)] = number
    missing = next((region for region in ROIS if region not in present), None)
    if missing is not None:
        raise DataError(
            f"{rois}: expected sub-{name}_mask-LH{missing}.nii.gz or RH, found none; download derivatives/spm of "
            "ds001499, or leave --rois out"
        )
    if n_twice:
        notes.append(f"{rois}: {n_twice} voxels of {name} are in two regions; the first one counts")
    return labels


def _subject(name: str, trials: pd.DataFrame, files: tuple[Path, ...], voxels: _Voxels) -> SubjectContents:
    grids = [_grid(path) for path in files]
    for one, other in pairwise([voxels.grid, *grids]):
        require_same_grid(other, one, "betas")
    grid = next((grid for grid in (grids[0], voxels.grid) if grid.affine is not None), None)
    if grid is None:
        raise DataError(
            f"{files[0]}: expected a header that states where the voxels lie, found none in betas and brain mask; "
            "write the affine into one of them"
        )
    ijk = np.argwhere(voxels.mask)
    table = pd.DataFrame(ijk, columns=["i", "j", "k"])
    table[list(COORDINATES)] = grid.mm(ijk)
    if voxels.labels is not None:
        table[ATLAS] = voxels.labels
    rows = {int(str(session)): part.to_numpy() for session, part in trials.groupby("session")["row"]}
    empty = np.empty(0, np.int64)
    sessions = Bold5000Sessions(
        files,
        voxels.mask,
        tuple(rows.get(session, empty) for session in range(1, len(files) + 1)),
    )
    return SubjectContents(
        name=name,
        trials=trials[["session", "run", "trial", "nsd_id"]],
        voxels=table,
        read_session=sessions,
        origin=str(files[0].parent),
        fingerprint=fingerprint(*files),
    )


def _in_mni(subjects: list[SubjectContents], folder: Path) -> tuple[list[SubjectContents], str]:
    """The subjects with coordinates in MNI, and the name of the template."""
    made, templates = [], set()
    for subject in subjects:
        paths = [p for p in sorted(folder.rglob(f"sub-{subject.name}*")) if _TRANSFORM.fullmatch(p.name)]
        if len(paths) != 1:
            raise DataError(
                f"{folder}: expected one sub-{subject.name}_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5 (it maps "
                f"points from T1w to MNI), found {len(paths)}; download fMRIPrep's derivatives"
            )
        template = _TRANSFORM.fullmatch(paths[0].name)
        assert template is not None, "chosen by this pattern"
        templates.add(template[1])
        voxels = subject.voxels.copy()
        voxels[list(COORDINATES)] = transform_points(paths[0], voxels[list(COORDINATES)].to_numpy(np.float64))
        made.append(replace(subject, voxels=voxels))
    if len(templates) > 1:
        raise DataError(
            f"{folder}: expected one MNI template for all subjects, found {', '.join(sorted(templates))}; choose one"
        )
    return made, templates.pop()


def _grid(path: Path) -> Grid:
    return grid_of(open_volume(path, _WHAT), path)
