"""Commands that prepare a store from the formats that people hold besides NSD's own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitllm.cli.terminal import OUT

if TYPE_CHECKING:
    from bitllm.data.formats.sidecar import ParsedDataset, Sidecar


@dataclass(frozen=True)
class Images:
    """What was seen."""

    captions: tuple[Path, ...] = ()
    """COCO's annotations, or JSON of the format's own image numbers (NSD's; MindLLM: COCO's) to captions."""
    stimulus_table: Path | None = None
    """nsd_stim_info_merged.csv: maps NSD's numbers to COCO's and marks the shared images."""


@dataclass(frozen=True)
class Places:
    """Where the voxels lie."""

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
        images: What was seen.
        places: Where the voxels lie.
        subjects: Some of the subjects; all by default.
    """
    from bitllm.data.formats.processed import read_processed

    _write(store, read_processed("mindeye", root, _sidecar(images, places), subjects=subjects or None))


def prepare_mindeye2(
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    images: tyro.conf.OmitArgPrefixes[Images] = Images(),
    places: tyro.conf.OmitArgPrefixes[Places] = Places(),
    subjects: tuple[str, ...] = (),
) -> None:
    """Prepare a store from MindEye2's HDF5 betas and behaviour arrays.

    Args:
        root: Folder with betas_all_subj01_fp32_renorm.hdf5 and wds.
        store: New folder for the store.
        images: What was seen.
        places: Where the voxels lie.
        subjects: Some of the subjects; all by default.
    """
    from bitllm.data.formats.processed import read_processed

    _write(store, read_processed("mindeye2", root, _sidecar(images, places), subjects=subjects or None))


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
        images: What was seen.
        places: Where the voxels lie.
        pictures: Folder of COCO's pictures.
        subjects: Some of the subjects; all by default.
    """
    from bitllm.data.formats.processed import read_processed

    _write(
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
        surfaces: FreeSurfer's folder fsaverage/surf: the places of the vertices.
        labels: JSON of label names instead of NSD's own.
        subjects: Some of the subjects; all by default.
    """
    from bitllm.data.formats.algonauts import read_algonauts

    sidecar = _sidecar(images, Places())
    _write(
        store,
        read_algonauts(root, sidecar, surfaces=surfaces, labels=labels, subjects=subjects or None),
    )


@dataclass(frozen=True)
class StimulusFiles:
    """Captions and pictures of the stimuli."""

    captions: tuple[Path, ...]
    """JSON of stimulus_id to captions."""
    pictures: Path | None = None
    """Folder of pictures named by stimulus_id."""


@dataclass(frozen=True)
class TrialTable:
    """Which image each beta is a response to."""

    trials: Path
    """Trials table (TSV or Parquet)."""
    subject: str
    """The subject's name in the trials table."""
    design: Path | None = None
    """DESIGNINFO, whose stimorder is checked against the trials."""


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
        stimuli: Captions and pictures.
        places: Mask on the grid of the betas (values above 0), or table of x_mm, y_mm, z_mm.
        normalization: Whose trials the z-scores' statistics see; session sees test trials (a leak, says audit).
        trust_pickle: Read GLMsingle's npy, a pickle; only arrays and plain containers are admitted.
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
    _write(store, replace(reading, settings=settings))


def prepare_table(header: tyro.conf.Positional[Path], store: tyro.conf.Positional[Path], /) -> None:
    """Prepare a store from any lab's betas, trials table and captions.

    Args:
        header: YAML or JSON file that names and describes the files.
        store: New folder for the store.
    """
    from bitllm.data.formats.custom import read_custom

    _write(store, read_custom(header))


def _sidecar(images: Images, places: Places, pictures: Path | None = None) -> "Sidecar":
    from bitllm.data.formats.sidecar import Sidecar

    return Sidecar(images.captions, images.stimulus_table, pictures, places.nsd, places.voxels)


def _write(store: Path, reading: "ParsedDataset") -> None:
    from bitllm.cli.display import Display
    from bitllm.data.store.write import write_store

    notes = list(reading.notes)
    with Display(OUT) as display:
        write_store(store, reading.contents, reading.settings, progress=display.progress, note=notes.append)
    for note in notes:
        OUT.print(f"note: {note}", markup=False, soft_wrap=True)
    OUT.print(f"{store}: store written; look at it with: bitllm inspect {store}")
