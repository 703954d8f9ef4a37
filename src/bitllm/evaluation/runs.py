"""Find the parts of a run: checkpoints, base LLM, split, aligner and targets."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitllm.config import nearest
from bitllm.data.splits import PRESETS, Split, check_split, load_split, make_split
from bitllm.data.store import Store
from bitllm.data.targets import Targets, load_targets
from bitllm.data.tasks.mixture import tasks_with_questions
from bitllm.data.transfer import as_trained_on
from bitllm.errors import CheckpointError, ConfigError, SplitError
from bitllm.evaluation.diagnostics import same_encoder
from bitllm.evaluation.options import EvaluateOptions
from bitllm.files import read_record, sha256_of_file
from bitllm.model.aligner import BrainAligner, load_aligner
from bitllm.model.build import CARD
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import load_llm, weights_hash
from bitllm.model.checkpoint.weights import RFT_CARD, sft_beneath
from bitllm.model.encoder import BrainEncoder
from bitllm.model.precision import Precision
from bitllm.training.distributed import device

CARDS = (RFT_CARD, CARD)
"""File names of the cards of rft and sft checkpoints."""


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints to evaluate on one store and split, with the other parts of their run."""

    folders: dict[str, Path]
    """Folder of each system."""
    store: Store
    split: Split
    llm: str
    """Folder or hub id of the base LLM."""
    precision: Precision | None
    """Precision of the frozen LLM; None for that of each system's training."""
    aligner: BrainAligner | None
    """The encoder of the final system with the heads of the align stage, if found."""
    encoder: BrainEncoder
    """The encoder of the final system."""
    atlases: tuple[str, ...]
    targets: Targets | None
    not_run: dict[str, str]
    """Why aligner or targets are missing."""
    is_own_store: bool = True
    """Whether store and split are those of the training."""
    is_continued: bool = False
    """Whether an sft continues another one, with possibly other training subjects."""
    notes: tuple[str, ...] = ()
    """How a store of another data set is read."""
    training: tuple[Store, Split] | None = None
    """Store and split of the training, if they are others than those of the evaluation."""

    @property
    def final(self) -> str:
        """The system of the headline: rft, else sft, else the first one."""
        return final_of(self.folders)

    def load(self, name: str) -> Captioner:
        """Load a system, onto the GPU if there is one."""
        folder = self.folders[name]
        precision = self.precision or precision_of(folder)
        found = load_captioner(folder, load_llm(self.llm), name=name, precision=precision)
        found.model.to(device())
        return found

    def was_trained_on(self, subject: str) -> bool | None:
        """Whether trials of a subject were used for training; None if that is not known."""
        if not self.is_own_store:
            return None
        return True if subject in self.split.train_subjects else None if self.is_continued else False

    def tasks_of(self, name: str) -> tuple[str, ...]:
        """Tasks of questions that a system was trained on."""
        return tasks_of(self.folders[name])

    @property
    def encoder_sha256(self) -> list[str]:
        """Checksums of the weights of the encoder, and of its heads if there are any."""
        return [weights_hash(self.encoder), "" if self.aligner is None else weights_hash(self.aligner)]

    def weights_sha256(self, name: str) -> list[str]:
        """Checksums of the files with the trained weights of a system."""
        folder = self.folders[name]
        folders = [folder, sft_beneath(folder)] if (folder / RFT_CARD).is_file() else [folder]
        return [sha256_of_file(path) for one in folders for path in sorted(one.glob("*.safetensors"))]


def open_checkpoints(
    folders: dict[str, Path],
    store: Store,
    options: EvaluateOptions = EvaluateOptions(),  # noqa: B008 - frozen
) -> Checkpoints:
    """Find the base LLM, split, aligner and targets of checkpoints of one run.

    Parameters
    ----------
    folders
        Folder of each system's checkpoint; all must be trained on the same split.
    store
        The store to evaluate on.
    options
        Places of parts that are not next to the checkpoints, and the split if the store is not that of the training.
    """
    final = final_of(folders)
    folder = folders[final]
    card = card_of(folder)
    for name, other in folders.items():
        if card_of(other)["split"] != card["split"]:
            raise CheckpointError(
                f"{other}: expected the split of {folder}, found another; evaluate {name} alone, with --systems {name}"
            )
    if options.judge_on is not None and options.split is not None:
        raise ConfigError(
            "--split: expected the split of the run, or --judge-on for another store, found both; leave one out"
        )
    if options.judge_on is None:
        split = find_split(folder, store, card["split"], given=options.split)
    else:
        split = split_to_judge_on(store, options.judge_on)
    is_own = options.judge_on is None or (store_of(folder) == store.sha256 and split.sha256 == card["split"])
    llm = find_llm(folder, given=options.llm)
    captioner = load_captioner(folder, load_llm(llm))
    captioner.encoder.to(device())
    aligner, not_run = _aligner(folder, captioner, given=options.align)
    targets, reason = _targets(folder, store, given=options.targets, is_own_store=is_own)
    if reason:
        not_run = {"retrieval": reason, "similarity_to_training": reason} | not_run
    sft = sft_beneath(folder) if (folder / RFT_CARD).is_file() else folder
    notes: tuple[str, ...] = ()
    if not is_own and store_of(folder) != store.sha256:
        store, notes = as_trained_on(store, card_of(sft), where=folder)
    return Checkpoints(
        folders,
        store,
        split,
        llm,
        options.precision,
        aligner,
        captioner.encoder,
        captioner.atlases,
        targets,
        not_run,
        is_own,
        "sft to start from" in _learnt_from(sft),
        notes,
    )


def tasks_of(folder: Path) -> tuple[str, ...]:
    """Tasks of questions that the system of a checkpoint was trained on."""
    sft = sft_beneath(folder) if (folder / RFT_CARD).is_file() else folder
    return tasks_with_questions(card_of(sft).get("tasks", {}).get("weights", {}))


def final_of(names: Iterable[str]) -> str:
    """The system of the headline: rft, else sft, else the first one."""
    names = list(names)
    return next((name for name in ("rft", "sft") if name in names), names[0])


def checkpoint_folder(run: Path, system: str | None) -> Path:
    """Folder of a checkpoint: ``run`` itself, or the system of that name in it."""
    if not run.is_dir():
        raise CheckpointError(f"{run}: expected the folder of a run, found none; check the path")
    names = system_names(run)
    if system is not None:
        if system not in names:
            raise CheckpointError(
                f"{run}: expected a system of the run, found `{system}`; {nearest(system, names)}"
            )
        return run / system
    if any((run / card).is_file() for card in CARDS):
        return run
    if names:
        raise CheckpointError(
            f"{run}: expected one checkpoint, found the systems {', '.join(names)}; name one with --system"
        )
    raise CheckpointError(
        f"{run}: expected a checkpoint of sft (bitllm.json) or rft (rft.json), found neither; train the stage "
        "first"
    )


def system_names(run: Path) -> list[str]:
    """Names of the checkpoints in a run's folder."""
    cards = [path for card in CARDS for path in run.glob(f"*/{card}")]
    # the demo marks its step "rft" as done with a file of the same name
    return sorted(path.parent.name for path in cards if any(path.parent.glob("*.safetensors")))


def find_llm(folder: Path, *, given: str | None) -> str:
    """Folder or hub id of the base LLM of a checkpoint."""
    if given is not None:
        if not Path(given).exists() and not _is_hub_id(given):
            raise CheckpointError(f"{given}: expected the folder of a base LLM, found none; check --llm")
        return given
    sft = sft_beneath(folder) if (folder / RFT_CARD).is_file() else folder
    name = str(card_of(sft)["base_llm"]["name"])
    # a fold of leave-one-run-out shares the LLM with the folds next to it
    for place in (folder.parent / name, sft.parent / name, folder.resolve().parent.parent / name):
        if place.exists():
            return str(place)
    if _is_hub_id(name):  # the user named it when the run was trained
        return name
    raise CheckpointError(
        f"{folder}: expected its base LLM `{name}` next to it, found no such folder; name it with --llm PATH"
    )


def find_split(folder: Path, store: Store, sha256: str, *, given: Path | None) -> Split:
    """The split that the run was trained on; an error if ``store`` is not the store of the run."""
    trained_on = store_of(folder)
    if trained_on not in (None, store.sha256):
        raise SplitError(
            f"{store.path}: expected the store that {folder} was trained on ({trained_on:.12}), found another "
            f"({store.sha256:.12}); name that store, or evaluate on this one with `bitllm evaluate --judge-on SPLIT`"
        )
    if given is not None and (named := load_split(given)).sha256 != sha256:
        raise SplitError(
            f"{given}: expected the split that {folder} was trained on ({sha256:.12}), found {named.name} "
            f"({named.sha256:.12}); name that one, or leave --split out"
        )
    # `develop` needs one subject more than `poster`
    names = PRESETS[: max(0, len(store.subjects) - 1)]
    own = {name: make_split(store, name) for name in names}
    for split in own.values():
        if split.sha256 == sha256:
            return split
    beside = [folder.parent / "split.json"] if (folder.parent / "split.json").is_file() else []
    tried = [f"{name} of {store.path} is {split.sha256[:12]}" for name, split in own.items()]
    for path in [given] if given is not None else beside:
        split = load_split(path)
        if split.sha256 == sha256 and split.name not in own:
            check_split(store, split)
            return split
        tried.append(f"{path} is {split.sha256[:12]}")
    raise SplitError(
        f"{folder}: expected the split that it was trained on ({sha256[:12]}), found others ({'; '.join(tried)}); "
        "evaluate on the store that it was trained on, or name its split with --split"
    )


def store_of(folder: Path) -> str | None:
    """Checksum of the store that a checkpoint was trained on; None if it is not recorded."""
    return _learnt_from(folder).get("store")


def precision_of(folder: Path) -> Precision:
    """Precision of the LLM that a checkpoint was trained with, from its ``run.json``; float32 if it is not recorded."""
    run = folder / "run.json"
    return read_record(run).get("precision", "fp32") if run.is_file() else "fp32"


def _learnt_from(folder: Path) -> dict[str, Any]:
    """The inputs of a stage as recorded in its ``run.json``; empty without one."""
    run = folder / "run.json"
    return read_record(run).get("learnt_from", {}) if run.is_file() else {}


def split_to_judge_on(store: Store, name: str) -> Split:
    """The split of a store that the run was not trained on: a preset, or a file."""
    if name in PRESETS:
        return make_split(store, name)
    if not Path(name).is_file():
        raise SplitError(
            f"--judge-on: expected one of {', '.join(PRESETS)} or the file of a split of {store.path}, found "
            f"`{name}`; make one with `bitllm split`"
        )
    split = load_split(Path(name))
    check_split(store, split)
    return split


def _aligner(
    folder: Path, system: Captioner, *, given: Path | None
) -> tuple[BrainAligner | None, dict[str, str]]:
    place = given or folder.parent / "align"
    if given is None and not place.is_dir():
        return None, {"retrieval": f"no aligner next to {folder.name}; name one with --align"}
    aligner = load_aligner(place).eval().to(device())
    sft = sft_beneath(folder) if (folder / RFT_CARD).is_file() else folder
    # an encoder that sft trained further has other weights than the aligner's, but began as the aligner's
    began_here = _learnt_from(sft).get("encoder") == weights_hash(aligner.encoder)
    if not began_here and not same_encoder(aligner.encoder, system.encoder):
        return None, {"retrieval": f"the encoder of {folder.name} is not that of {place.name}"}
    return aligner, {}


def _targets(
    folder: Path, store: Store, *, given: Path | None, is_own_store: bool
) -> tuple[Targets | None, str | None]:
    """CLIP embeddings of the store's images, or the reason why there are none."""
    place = given or folder.parent / "targets.safetensors"
    if given is None and not is_own_store:
        return (
            None,
            f"{place.name} next to {folder.name} is of another store; name that of this store with --targets",
        )
    if given is None and not place.is_file():
        return None, f"no embeddings of images next to {folder.name}; name them with --targets"
    return load_targets(place, store=store), None


def card_of(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint of sft or rft, which describes its training."""
    return read_record(next(folder / card for card in CARDS if (folder / card).is_file()), "split")


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
