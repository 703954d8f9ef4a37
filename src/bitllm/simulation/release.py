"""A simulated brain's files in NSD's own layout, for the reader of the real files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from safetensors.numpy import save_file

from bitllm.files import folder_written_whole, write_json
from bitllm.simulation import surfaces, tables, volumes
from bitllm.simulation.cortex import make_cortex
from bitllm.simulation.design import Design, make_design
from bitllm.simulation.parameters import SIMULATION_VERSION, SimulationConfig
from bitllm.simulation.pictures import draw_pictures, object_boxes
from bitllm.simulation.questions import write_visdial, write_vqa
from bitllm.simulation.responses import (
    CELLS,
    NoiseCeiling,
    Subject,
    Tuning,
    as_stored,
    make_subject,
    make_tuning,
    session_percent,
    standardised,
)
from bitllm.simulation.scenes import Scene, captions_of, make_scenes, scene_features, scene_table

BetasFormat = Literal["hdf5", "nifti"]
Progress = Callable[[str, int, int], None]

BETAS_FOLDER = "betas_fithrf_GLMdenoise_RR"
TRUTH_FOLDER = "simulation_truth"
_PICTURES_AT_ONCE = 256


@dataclass(frozen=True)
class _World:
    """What all subjects share: the design, and the stimuli as seen by early and by higher areas."""

    design: Design
    seen: Float[np.ndarray, "images cells 4"]
    features: Float[np.ndarray, "images features"]


@dataclass(frozen=True)
class _Files:
    """Settings of the files of a release."""

    root: Path
    seed: int
    betas_format: BetasFormat
    fsaverage: bool


def simulate_release(
    out: Path,
    config: SimulationConfig,
    *,
    seed: int,
    betas_format: BetasFormat = "hdf5",
    fsaverage: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a simulated release in NSD's layout, completely or not at all.

    The same configuration and seed give the same files. Only one session of one subject and the features of the
    images are in memory.

    Parameters
    ----------
    out
        A new or empty folder.
    config
        Parameters, see ``preset``.
    seed
        Seed of every random choice.
    betas_format
        ``hdf5`` (which most readers expect) or ``nifti``; NSD has both.
    fsaverage
        Whether to write betas at the vertices of a simulated fsaverage too.
    progress
        Called as ``progress(what, done, total)`` for pictures and for sessions.
    """
    report = progress or _silent
    with folder_written_whole(Path(out)) as root:
        files = _Files(root, seed, betas_format, fsaverage)
        world = _write_stimuli(root, config, seed, report)
        if fsaverage:
            surfaces.write_template(root, config)
        done = 0
        for index in range(len(config.sessions)):
            subject, tuning = _make_subject(config, world, index, seed)
            _write_subject(files, config, world.design, (subject, tuning))
            ceiling = NoiseCeiling(config.images_per_subject, int(subject.cortex.brain.sum()))
            nearest = surfaces.nearest_voxels(config, subject.cortex) if fsaverage else {}
            for session in range(config.sessions[index]):
                _write_session(files, config, world.design, subject, session, (ceiling, nearest))
                done += 1
                report("sessions", done, sum(config.sessions))
            _write_ceiling(root, config, subject, ceiling.ncsnr(), nearest)
        _write_parameters(files, config)


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def _betas_folder(root: Path, config: SimulationConfig, index: int, space: str = "func1pt8mm") -> Path:
    return root / "nsddata_betas" / "ppdata" / config.subjects[index] / space / BETAS_FOLDER


def _write_stimuli(root: Path, config: SimulationConfig, seed: int, report: Progress) -> _World:
    design = make_design(config, seed=seed)
    scenes = make_scenes(config.n_images, seed=seed)
    stimuli = tables.stimulus_table(config, design, seed=seed)
    experiment = root / "nsddata" / "experiments" / "nsd"
    tables.write_design(experiment / "nsd_expdesign.mat", design)
    stimuli.to_csv(experiment / "nsd_stim_info_merged.csv")
    folder = root / "nsddata_stimuli" / "stimuli" / "nsd"
    captions = captions_of(scenes, seed=seed)
    tables.write_coco_captions(folder / "annotations", stimuli, captions)
    tables.write_coco_instances(folder / "annotations", stimuli, lambda nsd_id: object_boxes(scenes[nsd_id]))
    coco_ids = stimuli["cocoId"].tolist()
    write_vqa(folder / "annotations", coco_ids, scenes, seed=seed)
    write_visdial(folder / "annotations", coco_ids, scenes, captions, seed=seed)
    seen = _write_pictures(folder / "nsd_stimuli.hdf5", scenes, config.picture_px, report)
    features = scene_features(scenes)
    _write_scene_truth(root / TRUTH_FOLDER, scenes, features)
    return _World(design=design, seen=seen, features=standardised(features))


def _write_scene_truth(
    folder: Path, scenes: list[Scene], features: Float[np.ndarray, "images features"]
) -> None:
    folder.mkdir()
    scene_table(scenes).to_parquet(folder / "scenes.parquet")
    np.save(folder / "features.npy", features.astype(np.float32))


def _write_pictures(
    path: Path, scenes: list[Scene], side: int, report: Progress
) -> Float[np.ndarray, "images cells 4"]:
    """Write ``imgBrick``; returns the channels that early areas see of each image, centered and scaled."""
    seen = np.empty((len(scenes), CELLS**2, 4))
    with h5py.File(path, "w") as file:
        brick = file.create_dataset(
            "imgBrick", shape=(len(scenes), side, side, 3), dtype=np.uint8, chunks=(1, side, side, 3),
            compression="gzip", compression_opts=1,
        )  # fmt: skip
        drawn = draw_pictures(scenes, side)
        for start in range(0, len(scenes), _PICTURES_AT_ONCE):
            stop = min(start + _PICTURES_AT_ONCE, len(scenes))
            batch = np.stack([next(drawn) for _ in range(start, stop)])
            brick[start:stop] = batch
            seen[start:stop] = early_view(batch)
            report("pictures", stop, len(scenes))
    seen -= seen.mean(0)
    return seen / np.maximum(seen.std((0, 1)), 1e-9)


def early_view(pictures: UInt8[np.ndarray, "images side side 3"]) -> Float[np.ndarray, "images cells 4"]:
    """Luminance, red–green, blue–yellow and contrast of the 12 × 12 cells of each image, row by row."""
    n, side = len(pictures), pictures.shape[1]
    cells = pictures.reshape(n, CELLS, side // CELLS, CELLS, side // CELLS, 3).astype(np.float64) / 255
    cells = cells.transpose(0, 1, 3, 5, 2, 4).reshape(n, CELLS**2, 3, -1)
    red, green, blue = cells.mean(-1).transpose(2, 0, 1)
    contrast = cells.mean(2).std(-1)
    return np.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2, contrast], -1)


def _make_subject(config: SimulationConfig, world: _World, index: int, seed: int) -> tuple[Subject, Tuning]:
    cortex = make_cortex(config, index, seed=seed)
    tuning = make_tuning(config, cortex, index, seed=seed)
    rows = world.design.subjectim[index] - 1
    stimuli = (world.seen[rows], world.features[rows])
    return make_subject(config, index, cortex, tuning, stimuli, seed=seed), tuning


def _write_subject(
    files: _Files, config: SimulationConfig, design: Design, made: tuple[Subject, Tuning]
) -> None:
    """Write anatomy, behavior and ground truth of one subject."""
    subject, tuning = made
    root, name = files.root, config.subjects[subject.index]
    volumes.write_anatomy(root, name, subject.cortex, subject.in_view)
    behaviour = root / "nsddata" / "ppdata" / name / "behav" / "responses.tsv"
    behaviour.parent.mkdir(parents=True)
    table: pd.DataFrame = tables.responses_table(config, design, subject.index, seed=files.seed)
    table.to_csv(behaviour, sep="\t", index=False, na_rep="NaN")
    _betas_folder(root, config, subject.index).mkdir(parents=True)
    if files.fsaverage:
        surfaces.write_native_labels(root, config, subject.index, seed=files.seed)
    _write_tuning_truth(root / TRUTH_FOLDER / f"{name}.safetensors", subject, tuning)


def _write_tuning_truth(path: Path, subject: Subject, tuning: Tuning) -> None:
    """Write the true tuning of the voxels of nsdgeneral, in C order of the mask."""
    chosen = subject.cortex.nsdgeneral
    in_brain = subject.cortex.cortical[subject.cortex.brain]
    arrays = {
        "ijk": np.argwhere(subject.cortex.cortical)[chosen],
        "places": subject.cortex.places[chosen].astype(np.float32),
        "hemisphere": subject.cortex.hemisphere[chosen].astype(np.int8),
        "receptive_fields": tuning.receptive_fields[chosen].astype(np.float16),
        "channels": tuning.channels[chosen].astype(np.float32),
        "semantic": tuning.semantic[chosen].astype(np.float32),
        "responses": subject.responses[:, chosen].astype(np.float16),
        "strength": subject.strength[chosen].astype(np.float32),
        "noise_percent": subject.noise_percent[in_brain][chosen].astype(np.float32),
        "mean_percent": subject.mean_percent[in_brain][chosen].astype(np.float32),
    }
    # safetensors writes the bytes in memory order, so arrays must be in C order
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, path)


def _write_session(
    files: _Files,
    config: SimulationConfig,
    design: Design,
    subject: Subject,
    session: int,
    gathers: tuple[NoiseCeiling, surfaces.NearestVoxels],
) -> None:
    ceiling, nearest = gathers
    first = session * config.trials_per_session
    images = design.masterordering[first : first + config.trials_per_session] - 1
    percent = session_percent(config, subject, images, session, seed=files.seed)
    betas = as_stored(percent)
    ceiling.add(betas, images)
    path = _betas_folder(files.root, config, subject.index) / f"betas_session{session + 1:02d}"
    if files.betas_format == "hdf5":
        volumes.write_betas_hdf5(path.with_suffix(".hdf5"), betas, subject.cortex.brain)
    else:
        volumes.write_betas_nifti(path.with_suffix(".nii.gz"), betas, subject.cortex.brain, config.voxel_mm)
    if nearest:
        folder = _betas_folder(files.root, config, subject.index, "fsaverage")
        surfaces.write_betas(folder, session + 1, percent, subject.in_view[session], nearest)


def _write_ceiling(
    root: Path,
    config: SimulationConfig,
    subject: Subject,
    ncsnr: Float[np.ndarray, " brain"],
    nearest: surfaces.NearestVoxels,
) -> None:
    volume = np.full(subject.cortex.shape, np.nan)
    volume[subject.cortex.brain] = ncsnr
    volumes.write_nifti(_betas_folder(root, config, subject.index) / "ncsnr.nii.gz", volume, config.voxel_mm)
    if nearest:
        surfaces.write_ncsnr(_betas_folder(root, config, subject.index, "fsaverage"), ncsnr, nearest)


def _write_parameters(files: _Files, config: SimulationConfig) -> None:
    write_json(
        files.root / "simulation.json",
        {
            "simulation_version": SIMULATION_VERSION,
            "preset": config.preset,
            "seed": files.seed,
            "betas_format": files.betas_format,
            "parameters": json.loads(config.model_dump_json()),
        },
    )
