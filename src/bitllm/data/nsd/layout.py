"""Paths of the files of an NSD release, and its subjects and sessions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitllm.config import nearest
from bitllm.errors import DataError
from bitllm.files import read_json

BETA_FOLDERS = {
    "b1": "betas_assumehrf",
    "b2": "betas_fithrf",
    "b3": "betas_fithrf_GLMdenoise_RR",
}
"""NSD's names of its three versions of the single-trial responses."""

SPACES = ("func1pt8mm", "fsaverage")
"""Spaces of NSD's betas that can be read: the subject's own volume, or the common surface."""

HEMISPHERES = ("lh", "rh")
"""The order of the hemispheres on a surface."""

_VOLUME = "func1pt8mm"


@dataclass(frozen=True)
class NsdRelease:
    """Paths of a release, or of a part of one, on disk.

    Parameters
    ----------
    root
        The folder with ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    beta_version
        ``b1``, ``b2`` or ``b3``.
    space
        ``func1pt8mm`` or ``fsaverage``: space of the betas.

    References
    ----------
    NSD Data Manual (cvnlab.slite.page), "Directories and files".
    """

    root: Path
    beta_version: str = "b3"
    space: str = _VOLUME

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise DataError(
                f"{self.root}: expected a space of NSD's betas, found `{self.space}`; "
                f"{nearest(self.space, list(SPACES))}"
            )
        if self.beta_version not in BETA_FOLDERS:
            hint = nearest(self.beta_version, list(BETA_FOLDERS))
            raise DataError(
                f"{self.root}: expected a version of NSD's betas, found `{self.beta_version}`; {hint}"
            )
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: expected the root folder of an NSD release, found none; check the path"
            )

    @property
    def synthetic_design(self) -> Path:
        """Experimental design of NSD-synthetic."""
        return self.root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"

    def imagery_run(self, subject: str, run: str) -> Path:
        """Trials of a subject in a run of NSD-imagery, such as ``visA``."""
        return self.root / f"nsddata/bdata/nsdimagery/nsdimagery_{subject}_{run}.tsv"

    @property
    def design(self) -> Path:
        """Experimental design."""
        return self.root / "nsddata/experiments/nsd/nsd_expdesign.mat"

    @property
    def stimulus_table(self) -> Path:
        """Table of all stimuli."""
        return self.root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"

    @property
    def pictures(self) -> Path:
        """Images of all stimuli."""
        return self.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

    def captions(self, coco_split: str) -> Path:
        """COCO captions of ``train2017`` or ``val2017``."""
        return self.root / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{coco_split}.json"

    def instances(self, coco_split: str) -> Path:
        """The COCO instances (objects with boxes) of ``train2017`` or ``val2017``."""
        return self.captions(coco_split).with_name(f"instances_{coco_split}.json")

    def questions(self) -> dict[str, tuple[Path, ...]]:
        """Files of questions that are in the folder of the captions, by the name of their source."""
        folder = self.captions("train2017").parent
        patterns = {"vqa-v2": "v2_*mscoco_*2014_*.json", "visdial": "visdial_1.0_train*.json"}
        found = {source: tuple(sorted(folder.glob(pattern))) for source, pattern in patterns.items()}
        return {source: files for source, files in found.items() if files}

    def responses(self, subject: str) -> Path:
        """Table of a subject's trials."""
        return self.root / f"nsddata/ppdata/{subject}/behav/responses.tsv"

    def brainmask(self, subject: str) -> Path:
        """Brain mask of a subject."""
        return self.root / f"nsddata/ppdata/{subject}/{_VOLUME}/brainmask.nii.gz"

    def valid(self, subject: str, session: int) -> Path:
        """Volume of the voxels in the field of view of a session."""
        return self.root / f"nsddata/ppdata/{subject}/{_VOLUME}/valid_session{session:02d}.nii.gz"

    def roi(self, subject: str, roi: str) -> Path:
        """Volume of a region of interest or an atlas."""
        return self.root / f"nsddata/ppdata/{subject}/{_VOLUME}/roi/{roi}.nii.gz"

    def mni(self, subject: str) -> Path:
        """Transform with the MNI coordinates of each voxel."""
        return self.root / f"nsddata/ppdata/{subject}/transforms/MNI-to-func1pt8.nii.gz"

    def betas_folder(self, subject: str) -> Path:
        """Folder of a subject's betas."""
        return self.root / f"nsddata_betas/ppdata/{subject}/{self.space}/{BETA_FOLDERS[self.beta_version]}"

    def experiment_files(self, subject: str, experiment: str) -> tuple[Path, ...]:
        """Files with all betas of a subject in ``imagery`` or ``synthetic``; none if they are missing."""
        core = self.betas_folder(subject)
        folder, name = core.with_name(f"nsd{experiment}{core.name}"), f"betas_nsd{experiment}"
        if self.space == "fsaverage":
            halves = tuple(folder / f"{side}.{name}.mgh" for side in HEMISPHERES)
            return halves if all(path.is_file() for path in halves) else ()
        found = (folder / f"{name}.{ending}" for ending in ("hdf5", "nii.gz", "nii"))
        return tuple(path for path in found if path.is_file())[:1]

    def ncsnr(self, subject: str, hemisphere: str | None = None) -> Path:
        """Noise-ceiling signal-to-noise ratio of a subject's voxels, or of a hemisphere's vertices."""
        name = f"{hemisphere}.ncsnr.mgh" if hemisphere else "ncsnr.nii.gz"
        return self.betas_folder(subject) / name

    def white_surface(self, hemisphere: str) -> Path:
        """Coordinates of the vertices of fsaverage."""
        return self.root / f"nsddata/freesurfer/fsaverage/surf/{hemisphere}.white"

    def label(self, owner: str, hemisphere: str, atlas: str) -> Path:
        """Labels of a hemisphere's vertices, on ``fsaverage`` or on a subject's own surface."""
        return self.root / f"nsddata/freesurfer/{owner}/label/{hemisphere}.{atlas}.mgz"

    def atlas_file(self, subject: str, atlas: str) -> Path:
        """File to name in errors about an atlas of a subject."""
        return self.label(subject, "lh", atlas) if self.space == "fsaverage" else self.roi(subject, atlas)

    def to_fsaverage(self, subject: str, hemisphere: str) -> Path:
        """For each vertex of fsaverage, the vertex (from 1) of the subject's own surface."""
        return self.root / f"nsddata/ppdata/{subject}/transforms/{hemisphere}.white-to-fsaverage.mgz"

    def label_tables(self, subject: str, atlas: str) -> tuple[Path, ...]:
        """Possible files with the names of an atlas: some are in the subject's folder, some in that of fsaverage."""
        folder = self.root / "nsddata/freesurfer"
        return tuple(folder / owner / "label" / f"{atlas}.mgz.ctab" for owner in (subject, "fsaverage"))

    def atlases(self, subject: str, *, besides: str) -> tuple[str, ...]:
        """Names of a subject's atlases (volumes of both hemispheres), except those in ``besides``."""
        folder = self.roi(subject, "").parent
        names = sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("[!.]*.nii.gz"))
        return tuple(
            name for name in names if name not in besides.split("+") and not name.startswith(("lh.", "rh."))
        )

    def surface_atlases(self, subject: str, *, besides: str) -> tuple[str, ...]:
        """Names of the label files of a subject or of fsaverage that have a table of names.

        Files without a table are maps of numbers (such as the angles of receptive fields), not atlases.
        """
        folders = [self.root / "nsddata/freesurfer" / owner / "label" for owner in (subject, "fsaverage")]
        files = {path.name for folder in folders for path in folder.glob("lh.*.mgz")}
        names = {name.removeprefix("lh.").removesuffix(".mgz") for name in files}
        named = {name for name in names if any(table.is_file() for table in self.label_tables(subject, name))}
        return tuple(sorted(named - set(besides.split("+"))))

    def simulation(self) -> dict[str, Any] | None:
        """The simulator's own record, or ``None`` for a release without it."""
        path = self.root / "simulation.json"
        return read_json(path) if path.exists() else None

    def subjects(self, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
        """Subjects with betas of this version, sorted by name."""
        folder = self.root / "nsddata_betas/ppdata"
        found = sorted(path.name for path in folder.glob("subj*") if self.betas_folder(path.name).is_dir())
        if not found:
            raise DataError(
                f"{folder}: expected folders subjNN/{self.space}/{BETA_FOLDERS[self.beta_version]}, found none; "
                "download the betas or name the root folder of the release"
            )
        for subject in wanted or ():
            if subject not in found:
                raise DataError(
                    f"{folder}: expected betas of the subject `{subject}`, found none; "
                    f"{nearest(subject, found)}"
                )
        return tuple(subject for subject in found if wanted is None or subject in wanted)

    def session_files(self, subject: str) -> tuple[Path, ...]:
        """Files with the betas of each session of a subject; HDF5 if a session has both formats."""
        return self._files_by_session(subject, "", ("hdf5", "nii.gz", "nii"))

    def surface_session_files(self, subject: str) -> tuple[tuple[Path, ...], ...]:
        """Files with the betas at a subject's vertices: left and right hemisphere of each session."""
        left, right = (self._files_by_session(subject, f"{side}.", ("mgh",)) for side in HEMISPHERES)
        if len(left) != len(right):
            missing = min(len(left), len(right)) + 1
            raise DataError(
                f"{self.betas_folder(subject)}: expected both hemispheres of every session, found {len(left)} "
                f"of lh and {len(right)} of rh; download the missing betas_session{missing:02d}.mgh and after, or "
                "remove those without the other hemisphere"
            )
        return tuple(zip(left, right, strict=True))

    def _files_by_session(self, subject: str, prefix: str, endings: tuple[str, ...]) -> tuple[Path, ...]:
        folder = self.betas_folder(subject)
        pattern = re.compile(rf"{re.escape(prefix)}betas_session(\d+)\.({'|'.join(map(re.escape, endings))})")
        files: dict[int, Path] = {}
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match:
                files.setdefault(int(match[1]), path)
        if not files:
            raise DataError(
                f"{folder}: expected {prefix}betas_sessionNN.{' or .'.join(endings)}, found none; download the "
                f"betas of {subject}"
            )
        for session in range(1, max(files) + 1):
            if session not in files:
                raise DataError(
                    f"{folder}: expected the sessions 1 to {max(files)}, found no file of session {session}; "
                    f"download {prefix}betas_session{session:02d}.{endings[0]}, or remove the sessions after it"
                )
        return tuple(files[session] for session in sorted(files))
