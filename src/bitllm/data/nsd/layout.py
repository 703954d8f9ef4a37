"""Where the files of an NSD release lie, and which subjects and sessions are there."""

import os
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

_SPACE = "func1pt8mm"
_SESSION_FILE = re.compile(r"betas_session(\d+)\.(hdf5|nii\.gz)")


@dataclass(frozen=True)
class NsdRelease:
    """The paths of one release (or of a part of one) on disk.

    Parameters
    ----------
    root
        The folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    beta_version
        ``b1``, ``b2`` or ``b3``.

    Raises
    ------
    DataError
        If the folder is missing or the version has another name.

    References
    ----------
    NSD Data Manual (cvnlab.slite.page), "Directories and files".
    """

    root: Path
    beta_version: str = "b3"

    def __post_init__(self) -> None:
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
    def design(self) -> Path:
        """The file of the experimental design."""
        return self.root / "nsddata/experiments/nsd/nsd_expdesign.mat"

    @property
    def stimulus_table(self) -> Path:
        """The table of all stimuli."""
        return self.root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"

    @property
    def pictures(self) -> Path:
        """The file of all pictures."""
        return self.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

    def captions(self, coco_split: str) -> Path:
        """The COCO captions of ``train2017`` or ``val2017``."""
        return self.root / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{coco_split}.json"

    def responses(self, subject: str) -> Path:
        """The table of a subject's trials."""
        return self.root / f"nsddata/ppdata/{subject}/behav/responses.tsv"

    def brainmask(self, subject: str) -> Path:
        """The volume that marks a subject's brain."""
        return self.root / f"nsddata/ppdata/{subject}/{_SPACE}/brainmask.nii.gz"

    def roi(self, subject: str, roi: str) -> Path:
        """The volume of a region of interest or an atlas."""
        return self.root / f"nsddata/ppdata/{subject}/{_SPACE}/roi/{roi}.nii.gz"

    def mni(self, subject: str) -> Path:
        """The transform that gives each voxel's place in MNI space."""
        return self.root / f"nsddata/ppdata/{subject}/transforms/MNI-to-func1pt8.nii.gz"

    def betas_folder(self, subject: str) -> Path:
        """The folder of a subject's beta files."""
        return self.root / f"nsddata_betas/ppdata/{subject}/{_SPACE}/{BETA_FOLDERS[self.beta_version]}"

    def ncsnr(self, subject: str) -> Path:
        """The volume of a subject's noise-ceiling signal-to-noise ratios."""
        return self.betas_folder(subject) / "ncsnr.nii.gz"

    def label_tables(self, subject: str, atlas: str) -> tuple[Path, ...]:
        """Where the names of an atlas may lie: some tables are kept with the subject, some with fsaverage."""
        folder = self.root / "nsddata/freesurfer"
        return tuple(folder / owner / "label" / f"{atlas}.mgz.ctab" for owner in (subject, "fsaverage"))

    def atlases(self, subject: str, *, besides: str) -> tuple[str, ...]:
        """Names of the label volumes of a subject, both hemispheres together, without the one of the mask."""
        folder = self.roi(subject, "").parent
        names = sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))
        return tuple(
            name for name in names if name not in besides.split("+") and not name.startswith(("lh.", "rh."))
        )

    def simulation(self) -> dict[str, Any] | None:
        """What the simulator wrote about itself, or ``None`` for a release that carries no such file."""
        path = self.root / "simulation.json"
        return read_json(path) if path.exists() else None

    def subjects(self, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
        """The subjects of whom there are betas of this version, in the order of their names.

        Raises
        ------
        DataError
            If there is none, or one that is wanted is not there.
        """
        folder = self.root / "nsddata_betas/ppdata"
        found = sorted(path.name for path in folder.glob("subj*") if self.betas_folder(path.name).is_dir())
        if not found:
            raise DataError(
                f"{folder}: expected folders subjNN/{_SPACE}/{BETA_FOLDERS[self.beta_version]}, found none; "
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
        """The beta files of a subject, one a session from the first, HDF5 before NIfTI where both are there.

        Raises
        ------
        DataError
            If there is no session, or one in the middle is missing.
        """
        folder = self.betas_folder(subject)
        files: dict[int, Path] = {}
        for path in sorted(folder.iterdir()):
            match = _SESSION_FILE.fullmatch(path.name)
            if match:
                files.setdefault(int(match[1]), path)
        if not files:
            raise DataError(
                f"{folder}: expected betas_sessionNN.hdf5 or .nii.gz, found none; download the betas of "
                f"{subject}"
            )
        for session in range(1, max(files) + 1):
            if session not in files:
                raise DataError(
                    f"{folder}: expected the sessions 1 to {max(files)}, found no file of session {session}; "
                    f"download betas_session{session:02d}.hdf5, or take away the sessions after it"
                )
        return tuple(files[session] for session in sorted(files))


def require_file(path: Path, what: str) -> Path:
    """The path itself, if there is a file that may be read.

    Raises
    ------
    DataError
        If there is none, or it may not be read.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: expected {what}, found no file; download it, or check the root folder's name"
        )
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: expected {what}, found a file that may not be read; change its permissions")
    return path
