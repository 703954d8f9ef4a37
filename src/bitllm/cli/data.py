"""Commands for data: simulate, prepare nsd, split, inspect, audit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bitllm.cli.terminal import OUT, print_json

if TYPE_CHECKING:
    from bitllm.data.splits import Split
    from bitllm.data.store import Store


@dataclass(frozen=True)
class Changes:
    """Changed parameters of a preset."""

    signal: float | None = None
    """Strength of the signal (1); 0 writes betas that do not depend on the images."""
    noise: float | None = None
    """Strength of everything in the betas that is not a response (1)."""
    shared_tuning: float | None = None
    """Share of the tuning that all subjects have in common, 0 to 1."""
    misalignment_mm: float | None = None
    """Typical distance between anatomical and functional position, in mm."""


def simulate(
    out: tyro.conf.Positional[Path],
    /,
    preset: str = "demo",
    seed: int = 0,
    changes: tyro.conf.OmitArgPrefixes[Changes] = Changes(),
    betas_format: Literal["hdf5", "nifti"] = "hdf5",
    fsaverage: bool = False,
    bold5000_of: Path | None = None,
) -> None:
    """Write a simulated brain in NSD's own file layout, or a second data set in BOLD5000's.

    Args:
        out: New folder for the release.
        preset: Size: tiny, demo or bench.
        seed: Seed of scenes, brains and noise.
        changes: Parameters that differ from the preset.
        betas_format: Format of the beta files.
        fsaverage: Also write betas at the vertices of a simulated fsaverage.
        bold5000_of: A simulated release: write a second data set in BOLD5000's layout that shares its tuning and half
            of the COCO images, with other people, grid, atlas, noise and repeats. The release determines the size.
    """
    from bitllm.cli.display import Display
    from bitllm.config import LARGEST_SEED, require_number
    from bitllm.simulation.parameters import preset as preset_of
    from bitllm.simulation.release import simulate_release

    require_number("--seed", seed, least=0, most=LARGEST_SEED)
    if bold5000_of is not None:
        from bitllm.simulation.bold5000 import simulate_bold5000

        simulate_bold5000(out, bold5000_of, seed=seed)
        OUT.print(
            f"{out}: simulated BOLD5000 written (seed {seed}); next: bitllm prepare bold5000 {out}/BOLD5000 STORE "
            f"--captions {out}/captions_train2014.json --events {out}/ds001499 --rois {out}/ds001499/derivatives/spm "
            f"--transforms {out}/fmriprep --pictures {out}/pictures"
        )
        return
    config = preset_of(preset).changed(**asdict(changes))
    with Display(OUT) as display:
        simulate_release(
            out,
            config,
            seed=seed,
            betas_format=betas_format,
            fsaverage=fsaverage,
            progress=display.progress,
        )
    OUT.print(
        f"{out}: simulated release written (preset {preset}, seed {seed}); next: bitllm prepare nsd {out} STORE"
    )


@dataclass(frozen=True)
class OtherExperiment:
    """One of NSD's smaller experiments, instead of NSD itself."""

    imagery: Literal["seen", "imagined"] | None = None
    """NSD-imagery: the trials where an image was seen, or those where it was imagined."""
    synthetic: bool = False
    """NSD-synthetic."""
    captions: tuple[Path, ...] = ()
    """JSON from each image to its captions: from NSD-imagery's CONDITION, or NSD-synthetic's number (1 to 284)."""


def prepare_nsd(  # noqa: PLR0913 - tyro reads the signature
    root: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    *,
    space: Literal["func1pt8mm", "fsaverage"] = "func1pt8mm",
    roi: str = "nsdgeneral",
    subjects: tuple[str, ...] = (),
    sessions: int | None = None,
    beta_version: Literal["b1", "b2", "b3"] = "b3",
    normalization: Literal["training", "not-shared", "session", "across-sessions", "none"] = "training",
    validation_fraction: float = 0.08,
    seed: int = 0,
    picture_px: int | None = None,
    workers: int = 1,
    experiment: tyro.conf.OmitArgPrefixes[OtherExperiment] = OtherExperiment(),
) -> None:
    """Prepare a store from NSD's own file layout (real or simulated); resumes after a kill.

    Args:
        root: Folder with nsddata, nsddata_betas and nsddata_stimuli.
        store: New folder for the store.
        space: The subjects' own volumes, or the vertices of fsaverage.
        roi: Voxels to read: a file in func1pt8mm/roi (on fsaverage a FreeSurfer label), or several joined by +.
        subjects: Subjects to prepare; by default all.
        sessions: Number of sessions to read (default: all). -3 leaves out the last three, as before 2023.
        beta_version: NSD's version of the betas.
        normalization: Which trials determine mean and standard deviation; `session` uses test trials, which is a leak.
        validation_fraction: Share of the training images used for validation.
        seed: Seed of the choice of validation images.
        picture_px: Side to which images are resized; by default unchanged (NSD: 425 pixels, 39 GB for all).
        workers: Number of processes that read sessions in parallel.
        experiment: NSD-imagery or NSD-synthetic.
    """
    from bitllm.cli.display import Display
    from bitllm.data.prepare import prepare_nsd as prepare

    if experiment != OtherExperiment():
        settings = {"beta_version": beta_version, "normalization": normalization, "seed": seed}
        only_for_nsd = {"sessions": sessions, "picture-px": picture_px}
        _prepare_experiment(root, store, experiment, (space, roi, subjects), settings, only_for_nsd)
        return
    notes: list[str] = []
    with Display(OUT) as display:
        prepare(
            root,
            store,
            space=space,
            roi=roi,
            subjects=subjects or None,
            n_sessions=sessions,
            beta_version=beta_version,
            normalization=normalization,
            validation_fraction=validation_fraction,
            seed=seed,
            picture_px=picture_px,
            workers=workers,
            progress=display.progress,
            note=notes.append,
        )
    for line in notes:
        OUT.print(f"note: {line}", markup=False, soft_wrap=True)
    OUT.print(f"{store}: store written; to see its contents: bitllm inspect {store}")


def _prepare_experiment(
    root: Path,
    store: Path,
    experiment: OtherExperiment,
    where: tuple[str, str, tuple[str, ...]],
    settings: dict[str, Any],
    only_for_nsd: dict[str, int | None],
) -> None:
    from bitllm.cli.prepare import write_reading
    from bitllm.data.formats.nsd_experiments import read_experiment
    from bitllm.data.nsd.layout import NsdRelease
    from bitllm.data.store.contents import StoreSettings
    from bitllm.errors import ConfigError

    if (experiment.imagery is None) != experiment.synthetic or not experiment.captions:
        chosen = f"--imagery {experiment.imagery}" if experiment.imagery else "no --imagery"
        raise ConfigError(
            f"prepare nsd: expected one of --imagery and --synthetic, with --captions, found {chosen}, "
            f"{'' if experiment.synthetic else 'no '}--synthetic and {len(experiment.captions)} files of captions; "
            "change the options"
        )
    for name, value in only_for_nsd.items():
        if value is not None:
            raise ConfigError(f"--{name}: expected it for NSD itself only, found {value}; leave it out")
    space, roi, subjects = where
    reading = read_experiment(
        NsdRelease(root, settings["beta_version"], space),
        experiment.imagery or "synthetic",
        captions=experiment.captions,
        roi=roi,
        subjects=subjects or None,
        settings=StoreSettings(source="nsd", **settings),
    )
    write_reading(store, reading)


def split(  # noqa: PLR0913 - tyro reads the signature
    store: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    *,
    preset: Literal[
        "poster", "develop", "leave-one-subject-out", "within-subject", "leave-one-run-out"
    ] = "poster",
    held_out: str | None = None,
    fold: int | None = None,
    test_images: Literal["all", "1000", "982", "907", "766", "515"] = "all",
    max_cosine: float | None = None,
    embeddings: str | None = None,
    trials: int | None = None,
) -> None:
    """Write a split of a store as a file with a checksum.

    Args:
        store: Folder of the store.
        out: New JSON file; an existing file with the same split is accepted.
        preset: Which subjects are for training and which for test.
        held_out: The subject of leave-one-subject-out (default: the last), within-subject (default: all) or
            leave-one-run-out (default: the only one).
        fold: The run to test in leave-one-run-out, from 1 (default: 1).
        test_images: A named set of NSD's shared images.
        max_cosine: Remove validation and training images with a higher cosine to an image of another part.
        embeddings: For max-cosine: a CLIP (folder or hub id), or a targets.safetensors.
        trials: Number (approximate) of training trials, of images drawn at random.
    """
    from bitllm.data import splits
    from bitllm.data.splits import check_split, make_split, save_split
    from bitllm.data.store import open_store
    from bitllm.errors import SplitError
    from bitllm.files import require_place

    if (max_cosine is None) != (embeddings is None):
        raise SplitError(
            "split: expected --max-cosine and --embeddings together, found only one of them; add the other"
        )
    if fold is not None and preset != "leave-one-run-out":
        raise SplitError(
            f"split: expected --fold with the preset leave-one-run-out, found it with `{preset}`; leave it out"
        )
    if held_out is not None and preset in ("poster", "develop"):
        raise SplitError(
            f"split: expected --held-out with the preset leave-one-subject-out or within-subject, found it with "
            f"`{preset}`, which chooses its subjects itself; add --preset leave-one-subject-out, or leave it out"
        )
    require_place(out)
    opened = open_store(store)
    if preset == "leave-one-subject-out":
        made = splits.leave_one_subject_out(opened, opened.subjects[-1] if held_out is None else held_out)
    elif preset == "within-subject":
        made = splits.within_subject(opened, None if held_out is None else (held_out,))
    elif preset == "leave-one-run-out":
        made = splits.leave_one_run_out(opened, fold or 1, subject=held_out)
    else:
        made = make_split(opened, preset)
    if test_images != "all":
        images = splits.named_test_images(opened, test_images)
        made = splits.with_test_images(made, images, name=test_images)
    if max_cosine is not None and embeddings is not None:
        made = _without_neighbours(opened, made, embeddings, max_cosine)
    if trials is not None:
        made = splits.with_few_trials(opened, made, trials)
    check_split(opened, made)
    _require_same(out, made)
    save_split(made, out)
    OUT.print(f"{out}: split {made.name} written, {len(made.test_images)} test images, {made.sha256[:12]}")


def _require_same(out: Path, made: "Split") -> None:
    """Refuse to overwrite a file unless it contains the same split."""
    from bitllm.data.splits import load_split
    from bitllm.errors import DataError, OutputError, SplitError

    if not out.exists():
        return
    try:
        found = load_split(out)
    except (DataError, SplitError):
        what = "a file that is no whole split"
    else:
        if found == made:
            return
        what = f"the split {found.name} ({found.sha256[:12]})"
    raise OutputError(
        f"{out}: expected a new file for the split {made.name} ({made.sha256[:12]}), found {what}; name another file, "
        "or delete that one"
    )


def _without_neighbours(store: "Store", made: "Split", embeddings: str, max_cosine: float) -> "Split":
    from bitllm.data.splits import without_neighbours
    from bitllm.data.targets import load_clip, load_targets, make_targets
    from bitllm.training.distributed import device

    path = Path(embeddings)
    is_file = path.is_file() or path.suffix == ".safetensors"
    targets = (
        load_targets(path, store=store)
        if is_file
        else make_targets(store, load_clip(embeddings, device=device()))
    )
    held = without_neighbours(made, targets.nsd_id, targets.image, cosine=max_cosine)
    n_out = len(made.train_images | made.validation_images) - len(held.train_images | held.validation_images)
    OUT.print(f"{n_out} pictures left out: a cosine above {max_cosine:g} to a picture of another part")
    return held


def join(stores: tyro.conf.Positional[tuple[Path, ...]], /, *, out: Path, workers: int = 1) -> None:
    """Make one store of several data sets, in which each photograph of COCO is one image.

    Coordinates and labels are those of the first store. A photograph that is for test in one of them is for test.

    Args:
        stores: Two or more stores with different subjects.
        out: The new store.
        workers: Number of processes that copy sessions in parallel.
    """
    from bitllm.cli.display import Display
    from bitllm.data.join import join_stores

    notes: list[str] = []
    with Display(OUT) as display:
        made = join_stores(stores, out, workers=workers, progress=display.progress, note=notes.append)
    for line in notes:
        OUT.print(f"note: {line}", markup=False, soft_wrap=True)
    OUT.print(
        f"{out}: {len(made.subjects)} subjects, {len(made.stimuli)} images; next: bitllm split {out} SPLIT"
    )


def inspect(store: tyro.conf.Positional[Path], /, json: bool = False, verify: bool = False) -> None:
    """Show the contents of a store.

    Args:
        store: Folder of the store.
        json: Print JSON instead of tables.
        verify: Compare the checksum of every file first.
    """
    from bitllm.data.audit import verify_store
    from bitllm.data.inspect import inspect_store, render_inspection
    from bitllm.data.store import open_store

    opened = open_store(store)
    n_files = verify_store(opened) if verify else 0
    found = inspect_store(opened)
    print_json(found) if json else OUT.print(render_inspection(found))
    if verify and not json:
        OUT.print(f"checksums: {n_files} files as they were written")


def audit(
    store: tyro.conf.Positional[Path],
    run: tyro.conf.Positional[Path | None] = None,
    /,
    split: Path | None = None,
    json: bool = False,
    privacy: bool = False,
) -> None:
    """Look for leaks in a store, and in a run's split, results and selections; exit status 1 if there are any.

    Args:
        store: Folder of the store; with --privacy, the run.
        run: Folder with the run's results, its split.json and run.json; or another store, to find common photographs;
            with --privacy, the store if it is not that of the run.
        split: The split to audit; by default the run's split.json.
        json: Print JSON instead of lines.
        privacy: Measure what a run gives away about its training data (membership, identity, files), and write
            privacy.json into it, for the model card.
    """
    if privacy:
        _audit_privacy(store, run, split=split, json=json)
        return
    from bitllm.data.audit import audit as look
    from bitllm.data.shared_images import audit_two_stores
    from bitllm.data.splits import load_split
    from bitllm.data.store import open_store

    opened, of_split = open_store(store), load_split(split) if split else None
    if run is not None and (run / "manifest.json").is_file():
        found = audit_two_stores(opened, open_store(run), split=of_split)
    else:
        found = look(opened, split=of_split, run=run)
    if json:
        print_json(found)
    else:
        for leak in found["leaks"]:
            OUT.print(f"leak: {leak}", markup=False, soft_wrap=True)
        for line in found["notes"]:
            OUT.print(f"note: {line}", markup=False, soft_wrap=True)
        OUT.print(f"{store}: {len(found['leaks'])} leaks found")
    if found["leaks"]:
        raise SystemExit(1)


def _audit_privacy(run: Path, store: Path | None, *, split: Path | None, json: bool) -> None:
    from bitllm.evaluation.options import EvaluateOptions
    from bitllm.pipeline.privacy import PRIVACY, audit_privacy
    from bitllm.report.privacy import privacy_lines

    found = audit_privacy(run, store, options=EvaluateOptions(split=split))
    if json:
        print_json(found)
        return
    for line in privacy_lines(found):
        OUT.print(line, markup=False, soft_wrap=True)
    OUT.print(f"{run}: {PRIVACY} written; `bitllm export` puts it into the model card")
