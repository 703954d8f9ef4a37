"""Commands that prepare a store from other formats than NSD's."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from bitllm.cli.terminal import OUT

if TYPE_CHECKING:
    from bitllm.data.formats.sidecar import ParsedDataset, Sidecar


@dataclass(frozen=True)
class Images:
    """Stimulus table and captions."""

    captions: tuple[Path, ...] = ()
    """COCO's annotations, or JSON from image ids (NSD's; for MindLLM COCO's) to captions."""
    stimulus_table: Path | None = None
    """nsd_stim_info_merged.csv: maps NSD ids to COCO ids and marks the shared images."""


@dataclass(frozen=True)
class Places:
    """Coordinates of the voxels."""

    nsd: Path | None = None
    """Root of an NSD release with masks and transforms."""
    voxels: Path | None = None
    """Folder with subj01.tsv and so on (x_mm, y_mm, z_mm), instead of nsd."""


def prepare_mindeye(
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    images: tyro.conf.OmitArgPrefixes[Images] = Images(),
    places: tyro.conf.OmitArgPrefixes[Places] = Places(),
    subjects: tuple[str, ...] = (),
) -> None:
    """Prepare a store from MindEye1's webdataset tars (UMBRAE, MindBridge).

    Args:
        root: Folder webdataset_avg_split, with train, val and test.
        store: New folder for the store.
        images: Stimulus table and captions.
        places: Coordinates of the voxels.
        subjects: Subjects to prepare; by default all.
    """
    from bitllm.data.formats.processed import read_processed

    write_reading(store, read_processed("mindeye", root, _sidecar(images, places), subjects=subjects or None))


def prepare_mindeye2(
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    images: tyro.conf.OmitArgPrefixes[Images] = Images(),
    places: tyro.conf.OmitArgPrefixes[Places] = Places(),
    subjects: tuple[str, ...] = (),
) -> None:
    """Prepare a store from MindEye2's HDF5 betas and behavior arrays.

    Args:
        root: Folder with betas_all_subj01_fp32_renorm.hdf5 and wds.
        store: New folder for the store.
        images: Stimulus table and captions.
        places: Coordinates of the voxels.
        subjects: Subjects to prepare; by default all.
    """
    from bitllm.data.formats.processed import read_processed

    write_reading(
        store, read_processed("mindeye2", root, _sidecar(images, places), subjects=subjects or None)
    )


def prepare_mindllm(
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    images: tyro.conf.OmitArgPrefixes[Images] = Images(),
    places: tyro.conf.OmitArgPrefixes[Places] = Places(),
    pictures: Path | None = None,
    subjects: tuple[str, ...] = (),
) -> None:
    """Prepare a store from MindLLM's HDF5 files.

    Args:
        root: MindLLM's data folder, with nsd0/subject_1.h5 and so on.
        store: New folder for the store.
        images: Stimulus table and captions.
        places: Coordinates of the voxels.
        pictures: Folder of COCO's images.
        subjects: Subjects to prepare; by default all.
    """
    from bitllm.data.formats.processed import read_processed

    write_reading(
        store, read_processed("mindllm", root, _sidecar(images, places, pictures), subjects=subjects or None)
    )


def prepare_algonauts(
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    images: tyro.conf.OmitArgPrefixes[Images] = Images(),
    surfaces: Path | None = None,
    labels: Path | None = None,
    subjects: tuple[str, ...] = (),
) -> None:
    """Prepare a store from the Algonauts 2023 challenge.

    Args:
        root: Folder with subj01 and so on.
        store: New folder for the store.
        images: What was seen.
        surfaces: FreeSurfer's folder fsaverage/surf, with the coordinates of the vertices.
        labels: JSON of label names instead of NSD's own.
        subjects: Subjects to prepare; by default all.
    """
    from bitllm.data.formats.algonauts import read_algonauts

    sidecar = _sidecar(images, Places())
    write_reading(
        store,
        read_algonauts(root, sidecar, surfaces=surfaces, labels=labels, subjects=subjects or None),
    )


@dataclass(frozen=True)
class StimulusFiles:
    """Captions and images of the stimuli."""

    captions: tuple[Path, ...]
    """JSON from stimulus_id to captions."""
    pictures: Path | None = None
    """Folder of images named by stimulus_id."""


@dataclass(frozen=True)
class TrialTable:
    """The image of each beta."""

    trials: Path
    """Trials table (TSV or Parquet)."""
    subject: str
    """The subject's name in the trials table."""
    design: Path | None = None
    """DESIGNINFO; its stimorder is compared with the trials."""


def prepare_glmsingle(
    betas: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    *,
    table: tyro.conf.OmitArgPrefixes[TrialTable],
    stimuli: tyro.conf.OmitArgPrefixes[StimulusFiles],
    places: Path,
    normalization: Literal["training", "not-shared", "session", "across-sessions", "none"] = "training",
    trust_pickle: bool = False,
) -> None:
    """Prepare a store from GLMsingle's output for one subject.

    Args:
        betas: TYPED_FITHRF_GLMDENOISE_RR.hdf5, TYPEC or TYPEB.
        store: New folder for the store.
        table: Trials table, and the order of the trials.
        stimuli: Captions and images.
        places: Mask on the grid of the betas (values above 0), or table of x_mm, y_mm, z_mm.
        normalization: Which trials determine mean and standard deviation; `session` uses test trials, which is a leak.
        trust_pickle: Read GLMsingle's npy, a pickle; only arrays and plain containers are allowed.
    """
    from bitllm.data.formats.glmsingle import read_glmsingle

    reading = read_glmsingle(
        betas,
        trials=table.trials,
        captions=stimuli.captions,
        subject=table.subject,
        places=places,
        design=table.design,
        pictures=stimuli.pictures,
        trust_pickle=trust_pickle,
    )
    settings = reading.settings.model_copy(update={"normalization": normalization})
    write_reading(store, replace(reading, settings=settings))


def prepare_table(header: tyro.conf.Positional[Path], store: tyro.conf.Positional[Path], /) -> None:
    """Prepare a store from any lab's betas, trials table and captions.

    Args:
        header: YAML or JSON file that names and describes the files.
        store: New folder for the store.
    """
    from bitllm.data.formats.custom import read_custom

    write_reading(store, read_custom(header))


@dataclass(frozen=True)
class CocoFiles:
    """Captions and pictures of COCO."""

    captions: tuple[Path, ...]
    """COCO's captions, such as captions_train2014.json."""
    pictures: Path | None = None
    """Folder of the pictures."""


@dataclass(frozen=True)
class FromOpenNeuro:
    """Parts of OpenNeuro's ds001499."""

    events: Path | None = None
    """Root of ds001499, with the events of each run; the order of the trials is compared with them."""
    rois: Path | None = None
    """Folder derivatives/spm, with the masks of regions."""
    transforms: Path | None = None
    """Folder with fMRIPrep's transforms from MNI to T1w, to bring the coordinates to MNI."""


def prepare_bold5000(
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    *,
    coco: tyro.conf.OmitArgPrefixes[CocoFiles],
    openneuro: tyro.conf.OmitArgPrefixes[FromOpenNeuro] = FromOpenNeuro(),
    roi: str = "brain",
    subjects: tuple[str, ...] = (),
    betas: str = "TYPED-FITHRF-GLMDENOISE-RR",
    normalization: Literal["training", "not-shared", "session", "across-sessions", "none"] = "training",
) -> None:
    """Prepare a store from BOLD5000, release 2.0: the trials with images of COCO.

    Args:
        root: Folder with CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-01.nii.gz, CSI1_brainmask.nii.gz and so on.
        store: New folder for the store.
        coco: Captions and pictures.
        openneuro: Events, masks of regions, transforms.
        roi: brain, or regions such as EarlyVis+LOC+OPA+PPA+RSC (needs --rois).
        subjects: Subjects to prepare, such as CSI1; by default all.
        betas: Version of the betas, as in the names of the files.
        normalization: Which trials determine mean and standard deviation; `session` uses test trials, which is a leak.
    """
    from bitllm.data.formats.bold5000 import OpenNeuro, read_bold5000
    from bitllm.data.formats.sidecar import Sidecar

    reading = read_bold5000(
        root,
        Sidecar(captions=coco.captions, pictures=coco.pictures),
        openneuro=OpenNeuro(openneuro.events, openneuro.rois, openneuro.transforms),
        roi=roi,
        subjects=subjects or None,
        betas=betas,
        normalization=normalization,
    )
    write_reading(store, reading)


@dataclass(frozen=True)
class FsLr:
    """Where MOSAIC's grayordinates lie."""

    grayordinates: Path
    """Any CIFTI file with the same 91,282 grayordinates, such as a dscalar of the HCP or of fMRIPrep."""
    surfaces: Path
    """Folder with the midthickness surfaces of fsLR 32k in GIFTI (templateflow's tpl-fsLR)."""
    labels: Path | None = None
    """Glasser's areas (.dlabel.nii)."""


def prepare_mosaic(
    paths: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILES STORE")]],
    /,
    *,
    coco: tyro.conf.OmitArgPrefixes[CocoFiles],
    places: tyro.conf.OmitArgPrefixes[FsLr],
    areas: tuple[str, ...] = (),
    structures: Literal["cortex", "all"] = "cortex",
) -> None:
    """Prepare one store from subjects of MOSAIC (NSD, BOLD5000, NOD and others on fsLR): trials with captions.

    Args:
        paths: sub-01_NSD.hdf5, sub-01_BOLD5000.hdf5 and so on; last the new folder for the store.
        coco: Captions (COCO's, or a map from the names of the images) and pictures.
        places: Coordinates and areas of the grayordinates.
        areas: Glasser's areas to read, such as V1 V2 FFC; by default the whole cortex.
        structures: Read the voxels below the cortex too.
    """
    from bitllm.data.formats.mosaic import Cortex, read_mosaic
    from bitllm.data.formats.sidecar import Sidecar
    from bitllm.errors import ConfigError

    *files, store = paths
    if not files:
        raise ConfigError(
            f"prepare mosaic: expected files and a new folder for the store, found only {store}; add one"
        )
    cortex = Cortex(places.grayordinates, places.surfaces, places.labels, areas, structures)
    write_reading(store, read_mosaic(files, Sidecar(captions=coco.captions, pictures=coco.pictures), cortex))


def prepare_haxby(
    folder: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    *,
    subjects: tuple[str, ...] = (),
    download: bool = False,
) -> None:
    """Prepare a store from Haxby et al. 2001: blocks of pictures of eight categories, one person (CC BY-SA 3.0).

    Args:
        folder: Folder as nilearn's fetch_haxby leaves it, or with bold.nii.gz and attributes_literal.txt (one slice).
        store: New folder for the store.
        subjects: Subjects to prepare, e.g. subj2; by default all in the folder (with --download subj2).
        download: Let nilearn download the subjects into the folder first (about 300 MB each).
    """
    from bitllm.data.formats.haxby import fetch_haxby, read_haxby

    chosen = subjects or (("subj2",) if download else ())
    for name in chosen if download else ():
        OUT.print(f"{name} of Haxby et al. 2001 is downloaded into {folder}", markup=False, soft_wrap=True)
        fetch_haxby(folder, name)
    write_reading(store, read_haxby(folder, subjects=chosen or None))


def _sidecar(images: Images, places: Places, pictures: Path | None = None) -> "Sidecar":
    from bitllm.data.formats.sidecar import Sidecar

    return Sidecar(images.captions, images.stimulus_table, pictures, places.nsd, places.voxels)


def write_reading(store: Path, reading: "ParsedDataset") -> None:
    """Write the store of a data set that was read, and print the notes about it."""
    from bitllm.cli.display import Display
    from bitllm.data.store.write import write_store

    notes = list(reading.notes)
    with Display(OUT) as display:
        write_store(store, reading.contents, reading.settings, progress=display.progress, note=notes.append)
    for note in notes:
        OUT.print(f"note: {note}", markup=False, soft_wrap=True)
    OUT.print(f"{store}: store written; to see its contents: bitllm inspect {store}")
