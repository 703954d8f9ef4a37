"""A second simulated data set with known truth, in BOLD5000's layout: other people, grid, atlas, noise and repeats.

It belongs to a simulated NSD release: the tuning that brains share is the same, and a part of the COCO images is shown
in both. The people are others, with heads, tuning and noise of their own. So it can be tested what a model of one data
set decodes in another, and whether the photographs in both are found.

    OUT/BOLD5000        betas, brain masks, names of the images; simulation.json
    OUT/ds001499        events, and masks of regions in derivatives/spm
    OUT/fmriprep        transforms from MNI to T1w
    OUT/pictures  OUT/captions_train2014.json
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from PIL import Image

from bitllm.errors import DataError
from bitllm.files import folder_written_whole, read_json, write_json
from bitllm.simulation import atlases
from bitllm.simulation.cortex import LEFT, RIGHT, Cortex, make_cortex
from bitllm.simulation.parameters import SIMULATION_VERSION, SimulationConfig, stream
from bitllm.simulation.pictures import draw_pictures
from bitllm.simulation.release import early_view
from bitllm.simulation.responses import make_subject, make_tuning, session_percent, standardised
from bitllm.simulation.scenes import captions_of, make_scenes, scene_features

BETAS = "TYPED-FITHRF-GLMDENOISE-RR"
_TRIALS_PER_RUN = 37
_N_SUBJECTS = 4
_FIRST_PERSON = 100
"""Index of the first person; NSD's have 0 to 7."""
_COCO_SHARE = 0.4
_LARGEST_COCO_ID = 581929


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data set."""

    n_sessions: int
    """Of the first three subjects; the fourth has fewer, as CSI4."""
    n_runs: int
    """Runs of 37 trials in a session."""
    n_repeated: int
    """COCO images shown in up to four sessions; all others are shown once."""
    shared_share: float = 0.5
    """Share of the COCO images that NSD's simulated subjects saw too."""
    grid_share: float = 0.9
    """Side of the voxels, relative to NSD's."""
    ncsnr_share: float = 0.8
    """Signal-to-noise ratio, relative to NSD's."""


_SIZES = {"tiny": Sizes(3, 2, 12)}
_OTHERWISE = Sizes(8, 5, 45)


@dataclass(frozen=True)
class _Images:
    """The images of all sessions."""

    names: list[str]
    captions: dict[int, tuple[str, ...]]
    """By COCO id."""
    n_repeated: int
    """The first ones are repeated."""
    stimuli: tuple[Float[np.ndarray, "images cells 4"], Float[np.ndarray, "images features"]]
    """What early and higher areas see."""


def simulate_bold5000(out: Path, nsd: Path, *, seed: int, sizes: Sizes | None = None) -> None:
    """Write the data set, completely or not at all.

    Parameters
    ----------
    out
        A new or empty folder.
    nsd
        The simulated NSD release that it shares tuning and images with.
    seed
        Seed of the people, the new images and the noise.
    sizes
        Sizes; by default those that go with the preset of the release.

    Raises
    ------
    DataError
        If ``nsd`` is no simulated release.
    """
    if not (nsd / "simulation.json").is_file():
        raise DataError(
            f"{nsd}: expected a simulated NSD release (simulation.json), found none; make it with `bitllm simulate`"
        )
    record = read_json(nsd / "simulation.json")
    of_nsd = SimulationConfig.parse(record["parameters"], source=str(nsd / "simulation.json"))
    made = sizes or _SIZES.get(of_nsd.preset, _OTHERWISE)
    config = of_nsd.changed(
        voxel_mm=of_nsd.voxel_mm * made.grid_share, ncsnr_median=of_nsd.ncsnr_median * made.ncsnr_share
    )
    with folder_written_whole(Path(out)) as root:
        images = _write_images(root, nsd, config, made, (int(record["seed"]), seed))
        for person in range(_N_SUBJECTS):
            _write_person(root, config, made, images, person, (int(record["seed"]), seed))
        write_json(
            root / "BOLD5000/simulation.json",
            {
                "simulation_version": SIMULATION_VERSION,
                "seed": seed,
                "nsd_seed": record["seed"],
                "parameters": config.model_dump(mode="json"),
            },
        )


def _write_images(
    root: Path, nsd: Path, config: SimulationConfig, sizes: Sizes, seeds: tuple[int, int]
) -> _Images:
    rng = stream(seeds[1], "bold5000 images")
    n_once = sizes.n_sessions * sizes.n_runs * _TRIALS_PER_RUN - sizes.n_repeated * min(4, sizes.n_sessions)
    n_coco = sizes.n_repeated + round(_COCO_SHARE * n_once)
    n_images = sizes.n_repeated + n_once
    table = pd.read_csv(nsd / "nsddata/experiments/nsd/nsd_stim_info_merged.csv", index_col=0)
    seen = np.flatnonzero(table.filter(regex=r"^subject\d+$").any(axis=1).to_numpy())
    shared = rng.permutation(seen)[: round(sizes.shared_share * n_coco)]
    known = table["cocoId"].to_numpy()
    free = np.setdiff1d(np.arange(1, _LARGEST_COCO_ID), known)
    ids = np.concatenate([known[shared], rng.choice(free, n_coco - len(shared), replace=False)])
    scenes_of_nsd = make_scenes(config.n_images, seed=seeds[0])
    captions_of_nsd = captions_of(scenes_of_nsd, seed=seeds[0])
    new = make_scenes(n_images - len(shared), seed=seeds[1] + _FIRST_PERSON)
    scenes = [scenes_of_nsd[n] for n in shared.tolist()] + new
    captions = [captions_of_nsd[n] for n in shared.tolist()] + captions_of(new, seed=seeds[1] + _FIRST_PERSON)
    order = np.concatenate([rng.permutation(n_coco), np.arange(n_coco, n_images)])  # shared ones are anywhere
    names = [f"COCO_train2014_{n:012d}.jpg" for n in ids.tolist()]
    names += [f"n{n:08d}_{n}.JPEG" for n in range(n_images - n_coco)]
    drawn = np.stack(list(draw_pictures(scenes, config.picture_px)))
    (root / "pictures").mkdir()
    for name, picture in zip(names[:n_coco], drawn, strict=False):
        Image.fromarray(picture).save(root / "pictures" / name.replace(".jpg", ".png"))
    rows = [
        {"image_id": n, "caption": text}
        for n, texts in zip(ids.tolist(), captions, strict=False)
        for text in texts
    ]
    (root / "captions_train2014.json").write_text(json.dumps({"annotations": rows}), encoding="utf-8")
    seen_early = early_view(drawn)
    seen_early -= seen_early.mean(0)
    seen_early /= np.maximum(seen_early.std((0, 1)), 1e-9)
    features = standardised(scene_features(scenes))
    return _Images(
        [names[n] for n in order.tolist()],
        dict(zip(ids.tolist(), captions, strict=False)),
        sizes.n_repeated,
        (seen_early[order], features[order]),
    )


def _sessions(images: _Images, sizes: Sizes, seed: int) -> list[np.ndarray]:
    """Images of each session, the same for all subjects."""
    rng = stream(seed, "bold5000 sessions")
    n_times = min(4, sizes.n_sessions)
    per_session = sizes.n_runs * _TRIALS_PER_RUN
    repeated: list[list[int]] = [[] for _ in range(sizes.n_sessions)]
    for place in range(images.n_repeated * n_times):  # in turn, so that sessions have nearly equal numbers
        repeated[place % sizes.n_sessions].append(place // n_times)
    once = rng.permutation(np.arange(images.n_repeated, len(images.names)))
    made, first = [], 0
    for of_session in repeated:
        n = per_session - len(of_session)
        made.append(np.concatenate([np.array(of_session, np.int64), once[first : first + n]]))
        first += n
    return made


def _write_person(
    root: Path, config: SimulationConfig, sizes: Sizes, images: _Images, person: int, seeds: tuple[int, int]
) -> None:
    name, index = f"CSI{person + 1}", _FIRST_PERSON + _N_SUBJECTS * seeds[1] + person
    cortex = make_cortex(config, index, seed=seeds[0])
    tuning = make_tuning(config, cortex, index, seed=seeds[0])
    subject = make_subject(config, person, cortex, tuning, images.stimuli, seed=seeds[1] + _FIRST_PERSON)
    folder, openneuro = root / "BOLD5000", root / "ds001499"
    affine = _affine(cortex)
    _save(folder / f"{name}_brainmask.nii.gz", cortex.brain.astype(np.uint8), affine)
    for region, mask in _regions(cortex).items():
        _save(
            openneuro / f"derivatives/spm/sub-{name}/sub-{name}_mask-{region}.nii.gz",
            mask.astype(np.uint8),
            affine,
        )
    _write_transform(
        root / f"fmriprep/sub-{name}_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5", cortex, affine
    )
    shown: list[str] = []
    rng = stream(seeds[1], "bold5000 order", person)
    n_sessions = sizes.n_sessions - (person == _N_SUBJECTS - 1)
    for session, of_session in enumerate(_sessions(images, sizes, seeds[1])[:n_sessions], start=1):
        order = rng.permutation(of_session)
        percent = session_percent(config, subject, order, session - 1, seed=seeds[1] + _FIRST_PERSON)
        volume = np.zeros((*cortex.shape, len(order)), np.float32)
        volume[cortex.brain] = percent.T
        _save(folder / f"{name}_GLMbetas-{BETAS}_ses-{session:02d}.nii.gz", volume, affine)
        names = [images.names[n] for n in order.tolist()]
        _write_events(
            openneuro / f"sub-{name}/ses-{session:02d}/func", name, session, order < images.n_repeated, names
        )
        shown += names
    (folder / f"{name}_imgnames.txt").write_text("\n".join(shown) + "\n", encoding="utf-8")


def _write_events(
    folder: Path, name: str, session: int, is_repeated: Bool[np.ndarray, " trials"], names: list[str]
) -> None:
    folder.mkdir(parents=True)
    kind = ["coco" if one.startswith("COCO") else "imagenet" for one in names]
    table = pd.DataFrame({"onset": 6.0 + 10.0 * (np.arange(len(names)) % _TRIALS_PER_RUN), "duration": 1.0})
    table["Subj"], table["Sess"] = int(name[-1]), session
    table["Run"] = np.arange(len(names)) // _TRIALS_PER_RUN + 1
    table["Trial"] = np.arange(len(names)) % _TRIALS_PER_RUN + 1
    table["ImgName"] = names
    table["ImgType"] = np.where(is_repeated, "rep_coco", kind)
    for run, part in table.groupby("Run"):
        path = folder / f"sub-{name}_ses-{session:02d}_task-5000scenes_run-{int(str(run)):02d}_events.tsv"
        part.to_csv(path, sep="\t", index=False)


def _affine(cortex: Cortex) -> Float[np.ndarray, "4 4"]:
    affine = np.diag([cortex.voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -((np.array(cortex.shape) - 1) / 2) * cortex.voxel_mm
    return affine


def _save(path: Path, volume: np.ndarray, affine: Float[np.ndarray, "4 4"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def _regions(cortex: Cortex) -> dict[str, Bool[np.ndarray, "x y z"]]:
    """BOLD5000's regions in each hemisphere that has voxels of them; a region without any gets its nearest voxel."""
    early = atlases.atlas_labels("prf-visualrois", cortex.places)
    patches = {"LOC": "EBA", "OPA": "OPA", "PPA": "PPA", "RSC": "RSC"}
    inside = {"EarlyVis": (early > 0) & (early < 7)}
    for region, patch in patches.items():
        ring, turn, radius = atlases.PATCHES[patch]
        across, around = np.radians(ring), np.radians(turn)
        center = [np.sin(across) * np.sin(around), -np.cos(across), -np.sin(across) * np.cos(around)]
        closeness = cortex.places @ np.array(center)
        inside[region] = (closeness > np.cos(np.radians(radius))) | (closeness == closeness.max())
    made: dict[str, Any] = {}
    for region, chosen in inside.items():
        for side, hemisphere in (("LH", LEFT), ("RH", RIGHT)):
            if (here := chosen & (cortex.hemisphere == hemisphere)).any():
                made[f"{side}{region}"] = np.zeros(cortex.shape, bool)
                made[f"{side}{region}"][cortex.cortical] = here
    return made


def _write_transform(path: Path, cortex: Cortex, affine: Float[np.ndarray, "4 4"]) -> None:
    """Write ITK's displacement of every voxel's center from T1w to MNI."""
    lps = np.array([-1.0, -1.0, 1.0])
    native = np.moveaxis(np.indices(cortex.shape), 0, -1) * cortex.voxel_mm + affine[:3, 3]
    vectors = (cortex.mni_mm - native) * lps
    direction = np.diag(lps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup")
        for number, kind in enumerate(("CompositeTransform", "DisplacementFieldTransform")):
            group.create_group(str(number))["TransformType"] = [f"{kind}_double_3_3".encode()]
        group["1/TransformParameters"] = vectors.transpose(2, 1, 0, 3).ravel()
        fixed = [cortex.shape, affine[:3, 3] * lps, [cortex.voxel_mm] * 3, direction.ravel()]
        group["1/TransformFixedParameters"] = np.concatenate(fixed)
