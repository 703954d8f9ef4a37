"""The work behind the page: trials and systems of a run, changes of betas, and decodes.

A decode has two panels: the trial, and the control (the same system with betas of another image of the same
subject). If the betas were changed there is a third panel. The words of all panels are scored with the trial's own,
unchanged betas, because an out-of-distribution input scores its own output highly, which is not evidence. Questions
about the trial are answered after the captions (`bitllm.explore.conversation`).
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from bitllm.config import nearest
from bitllm.data.batch import Anatomies
from bitllm.data.dataset import rows_of_images
from bitllm.data.prompt import plain_question
from bitllm.data.splits import Split
from bitllm.data.store import Store, open_store
from bitllm.data.tasks import Exchange, exchanges
from bitllm.errors import CheckpointError, DataError
from bitllm.evaluation.attention import adapter_readings
from bitllm.evaluation.controls import shuffled
from bitllm.evaluation.held_out import betas_of, trials_of
from bitllm.evaluation.new_subject import adapted, other_trials
from bitllm.evaluation.pairing import neighbors
from bitllm.evaluation.rois import find_rois, silenced
from bitllm.evaluation.runs import (
    CARDS,
    card_of,
    checkpoint_folder,
    find_llm,
    find_split,
    precision_of,
    system_names,
    tasks_of,
)
from bitllm.explore.conversation import CHANGED, CONTROL, REAL, Inputs, converse, mean_word_bits
from bitllm.explore.jobs import Job
from bitllm.explore.schemas import (
    Brain,
    ImageInfo,
    ImageList,
    Kind,
    RoiInfo,
    RunInfo,
    SubjectInfo,
    SystemInfo,
    Use,
)
from bitllm.files import read_record
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import BaseLlm, load_llm
from bitllm.model.checkpoint.weights import RFT_CARD, sft_beneath
from bitllm.model.embed import brain_tokens_of_betas
from bitllm.model.precision import Precision
from bitllm.model.transport import Transport
from bitllm.pipeline.run import RECIPE, Run
from bitllm.training.distributed import device

NEEDS_ROI = frozenset({"silence", "alone"})
N_OTHERS = 8
"""Number of other images for the bits of a word."""
MAX_NEW_TOKENS = 24
MAX_SHOWN_VOXELS = 20_000
_SYSTEMS_LOADED, _PANELS_CACHED = 2, 64
_PREFERRED = ("rft", "sft")


@dataclass(frozen=True)
class SubjectTrials:
    """All trials of one subject, by image."""

    store: Store
    split: Split
    subject: str

    @cached_property
    def rows(self) -> dict[int, tuple[int, ...]]:
        """Rows of the betas for each image, in the order of the trials."""
        nsd_id = self.store.subject(self.subject).trials["nsd_id"].to_numpy()
        rows = {int(nsd_id[item[0]]): item for item in rows_of_images(nsd_id, nsd_id, averaged=True)}
        return dict(sorted(rows.items()))

    def use_of(self, nsd_id: int) -> str:
        """Part of the run's split: ``test``, ``validation``, ``train`` or ``unused``."""
        parts = {"test": self.split.test_images, "validation": self.split.validation_images}
        parts["train"] = self.split.train_images
        return next((use for use, images in parts.items() if nsd_id in images), "unused")

    def betas(self, nsd_id: int, repetition: int | None) -> Float[np.ndarray, " voxels"]:
        """Betas of an image: the mean over its repetitions, or one repetition, counted from 1."""
        if nsd_id not in self.rows:
            raise DataError(
                f"{self.subject}: expected an image that was seen, found nsd_id {nsd_id}; choose another"
            )
        rows = self.rows[nsd_id]
        if repetition is not None:
            if repetition > len(rows):
                raise DataError(
                    f"{self.subject}: expected repetition 1 to {len(rows)} of nsd_id {nsd_id}, found {repetition}; "
                    "choose another"
                )
            rows = (rows[repetition - 1],)
        return self._betas([rows])[0]

    def others(self, nsd_id: int, *, n: int, single: bool, seed: int) -> Float[np.ndarray, "n voxels"]:
        """Betas of ``n`` other images of the same part, averaged over repetitions or single.

        Neighbors of this image (`bitllm.evaluation.pairing.neighbors`) are not used. If there are fewer than ``n``
        other images, some are repeated.
        """
        use = self.use_of(nsd_id)
        same_use = [other for other in self.rows if other != nsd_id and self.use_of(other) == use]
        sessions = self.store.subject(self.subject).trials["session"].to_numpy().astype(np.int64)
        near = neighbors([self.rows[nsd_id]], [self.rows[other] for other in same_use], sessions)[0]
        candidates = np.array(same_use, dtype=np.int64)[~near]
        if not len(candidates):
            raise DataError(
                f"{self.subject}: expected another {use} image for the control, found none; choose another subject"
            )
        order = np.random.default_rng([seed, nsd_id]).permutation(candidates)
        rows = [self.rows[other] for other in np.resize(order, n).tolist()]
        return self._betas([item[:1] if single else item for item in rows])

    def _betas(self, rows: list[tuple[int, ...]]) -> Float[np.ndarray, "n voxels"]:
        return betas_of(trials_of(self.store, self.subject, rows))


@dataclass
class Session:
    """A run with its store; systems are loaded on demand."""

    run: str
    folders: dict[str, Path]
    """Checkpoint of each system."""
    store: Store
    split: Split
    base: BaseLlm
    precision: Precision | None = None
    """Precision of the frozen LLM; None for that of each system's training."""
    transport: bool = False
    """Whether the encoder is adapted to a new subject, as in the run's evaluation."""
    _loaded: dict[str, Captioner] = field(default_factory=dict)
    _transports: dict[tuple[str, str], Transport | None] = field(default_factory=dict)
    _subjects: dict[str, SubjectTrials] = field(default_factory=dict)

    @property
    def system_to_ask(self) -> str:
        """The first system that was trained on questions, else the first of all."""
        return next(
            (name for name, folder in self.folders.items() if tasks_of(folder)), next(iter(self.folders))
        )

    def system(self, name: str) -> Captioner:
        """A system of the run; the last two stay in memory."""
        if name not in self.folders:
            raise CheckpointError(
                f"{self.run}: expected a system of the run, found `{name}`; {nearest(name, list(self.folders))}"
            )
        system = self._loaded.pop(name, None)
        if system is None:
            precision = self.precision or precision_of(self.folders[name])
            system = load_captioner(self.folders[name], self.base, name=name, precision=precision)
            system.model.to(device())
        self._loaded[name] = system
        for old in list(self._loaded)[:-_SYSTEMS_LOADED]:
            del self._loaded[old]
        return system

    def trials(self, subject: str) -> SubjectTrials:
        """Trials of a subject, by image."""
        if subject not in self._subjects:
            self.store.subject(subject)
            self._subjects[subject] = SubjectTrials(self.store, self.split, subject)
        return self._subjects[subject]

    def roi(self, subject: str, name: str) -> Bool[np.ndarray, " voxels"]:
        """Voxels of a region ``ATLAS`` or ``ATLAS:LABEL``."""
        return find_rois(self.store, subject, [name])[0].voxels

    def brain_tokens(
        self, system: Captioner, subject: str, betas: Float[np.ndarray, "n voxels"]
    ) -> Float[Tensor, "n N width"]:
        """Output of the encoder for betas of a subject."""
        anatomies = Anatomies.of(self.store, [subject], system.atlases)
        encoder = replace(system, transport=self._transport_of(system, subject)).encoder
        return brain_tokens_of_betas(encoder, list(betas), subject, anatomies)

    def _transport_of(self, system: Captioner, subject: str) -> Transport | None:
        if not self.transport or subject in self.split.train_subjects:
            return None
        key = system.name, subject
        if key not in self._transports:
            own = other_trials(self.store, subject, self.split.test_images)
            self._transports[key] = adapted(system, self.store, self.split, own).transport
        return self._transports[key]

    def inputs(
        self,
        system: Captioner,
        subject: str,
        nsd_id: int,
        repetition: int | None = None,
        *,
        changed: Float[np.ndarray, " voxels"] | None = None,
    ) -> Inputs:
        """Brain tokens of a trial, of its betas after a change, and of other images' betas."""
        trials = self.trials(subject)
        own = [trials.betas(nsd_id, repetition), *([] if changed is None else [changed])]
        others = trials.others(nsd_id, n=N_OTHERS + 1, single=repetition is not None, seed=0)
        tokens = self.brain_tokens(system, subject, np.stack([*own, *others]))
        n = len(own)
        return Inputs(
            tokens[:1], tokens[n : n + 1], tokens[n + 1 :], None if changed is None else tokens[1:2]
        )

    def exchanges(self, nsd_id: int) -> tuple[Exchange, ...]:
        """Questions about an image with their true answers, if the store has any."""
        return exchanges(self.store, nsd_ids=[nsd_id]) if self.store.has_tasks else ()

    def true_answers(self, nsd_id: int) -> dict[str, tuple[str, ...]]:
        """Accepted answers to the store's questions about an image, by question in plain form."""
        return {
            plain_question(question): answers
            for one in self.exchanges(nsd_id)
            for question, answers in zip(one.questions, one.answers, strict=True)
        }

    def info(self) -> RunInfo:
        """Systems, subjects, regions and images that can be chosen on the page."""
        return RunInfo(
            run=self.run,
            data=self.store.manifest.source,
            llm=self.base.name,
            split=self.split.name,
            has_pictures=self.has_pictures,
            systems=[_system_info(name, folder) for name, folder in self.folders.items()],
            subjects=[self._subject_info(name) for name in self.subjects],
        )

    @property
    def has_pictures(self) -> bool:
        """Whether the store contains images."""
        return "pictures.npy" in self.store.manifest.sha256

    @property
    def subjects(self) -> list[str]:
        """Subjects, test subjects first."""
        tested = [name for name in self.store.subjects if name in self.split.test_subjects]
        return tested + [name for name in self.store.subjects if name not in tested]

    def images(self, subject: str, use: Use, *, offset: int, limit: int) -> ImageList:
        """Images of one part that a subject saw, from ``offset``."""
        trials = self.trials(subject)
        of_use = [nsd_id for nsd_id in trials.rows if trials.use_of(nsd_id) == use]
        return ImageList(
            total=len(of_use),
            images=[
                ImageInfo(
                    nsd_id=nsd_id,
                    n_repetitions=len(trials.rows[nsd_id]),
                    references=list(self.store.captions.get(nsd_id, ())),
                )
                for nsd_id in of_use[offset : offset + limit]
            ],
        )

    def brain(self, subject: str) -> Brain:
        """Coordinates of a subject's voxels, evenly subsampled if there are more than `MAX_SHOWN_VOXELS`."""
        voxels = self.trials(subject).store.subject(subject).voxels
        step = -(-len(voxels) // MAX_SHOWN_VOXELS)
        shown = np.arange(0, len(voxels), step)
        x, y, z = (
            voxels[axis].to_numpy(np.float64)[shown].round(1).tolist() for axis in ("x_mm", "y_mm", "z_mm")
        )
        rois = {
            roi.name: np.flatnonzero(roi.voxels[shown]).tolist()
            for roi in find_rois(self.store, subject, list(self.store.atlases))
        }
        return Brain(n_voxels=len(voxels), shown=shown.tolist(), x_mm=x, y_mm=y, z_mm=z, rois=rois)

    def picture(self, nsd_id: int) -> np.ndarray:
        """An image of the store."""
        return self.store.pictures([nsd_id])[0]

    def _subject_info(self, name: str) -> SubjectInfo:
        trials = self.trials(name)
        uses = [trials.use_of(nsd_id) for nsd_id in trials.rows]
        rois = find_rois(self.store, name, list(self.store.atlases))
        return SubjectInfo(
            name=name,
            n_voxels=self.store.manifest.subjects[name].n_voxels,
            is_trained_on=name in self.split.train_subjects,
            n_images={use: uses.count(use) for use in get_args(Use)},
            rois=[RoiInfo(name=roi.name, n_voxels=int(roi.voxels.sum())) for roi in rois],
        )


def open_session(
    run: Path,
    store: Path,
    *,
    llm: str | None = None,
    split: Path | None = None,
    precision: Precision | None = None,
) -> Session:
    """Open a checkpoint, or all systems of a run, on a store.

    Parameters
    ----------
    run
        Folder of a checkpoint of sft or rft, or a folder of such checkpoints.
    store
        The store that the run was trained on.
    llm, split
        If they are not in the folder of the run.
    precision
        Of the frozen LLM; by default that of the training.

    Raises
    ------
    BitLlmError
        If run, store, split or base LLM are missing or do not fit each other.
    """
    run, data = Path(run).resolve(), open_store(store)
    folders = system_folders(run)
    chosen, first = next(iter(folders.items()))
    sha256 = {name: card_of(folder)["split"] for name, folder in folders.items()}
    found = find_split(first, data, sha256[chosen], given=split)
    of_split = {name: folder for name, folder in folders.items() if sha256[name] == found.sha256}
    # in its stored precision, unless a system needs another: a float32 copy would double the memory of a Llama
    base = load_llm(find_llm(first, given=llm), dtype=None)
    recipes = [Run.open(place).recipe for place in (run, run.parent) if (place / RECIPE).is_file()]
    transport = any(recipe.evaluation.transport for recipe in recipes)
    session = Session(run.resolve().name, of_split, data, found, base, precision, transport)
    session.system(next(iter(of_split)))
    return session


def system_folders(run: Path) -> dict[str, Path]:
    """The checkpoints of a run by name, rft and sft first."""
    if any((run / card).is_file() for card in CARDS):
        return {run.resolve().name: run}
    names = set(system_names(run))
    if not names:
        checkpoint_folder(run, None)  # says what is wrong
    order = [name for name in _PREFERRED if name in names] + sorted(names - set(_PREFERRED))
    return {name: run / name for name in order}


def _system_info(name: str, folder: Path) -> SystemInfo:
    card = card_of(folder)
    sft = sft_beneath(folder) if (folder / RFT_CARD).is_file() else folder
    return SystemInfo(
        name=name,
        interface=read_record(sft / "config.json", "interface")["interface"],
        stage=str(card["stage"]),
        tasks=list(tasks_of(folder)),
    )


def perturbed(
    betas: Float[np.ndarray, " voxels"],
    kind: Kind,
    *,
    roi: Bool[np.ndarray, " voxels"] | None = None,
    factor: float = 1.0,
    seed: int = 0,
) -> Float[np.ndarray, " voxels"]:
    """A perturbed copy of the betas.

    Parameters
    ----------
    kind
        ``silence`` sets the ROI to 0, the mean of each voxel's z-scores; ``alone`` sets all other voxels to 0;
        ``scale`` multiplies by ``factor``; ``shuffle`` permutes the values over voxels; ``zero`` sets all to 0.
    roi
        The voxels of the region, for ``silence`` and ``alone``.
    seed
        Seed of the shuffle, which is the evaluation's control.
    """
    if kind == "zero":
        return np.zeros_like(betas)
    if kind == "shuffle":
        return shuffled(betas[None], seed=seed)[0]
    if kind == "scale":
        return (betas * factor).astype(betas.dtype)
    if kind in NEEDS_ROI and roi is not None:
        return silenced(betas, ~roi if kind == "alone" else roi)
    return betas.copy()


class Decoder:
    """Computes decodes; panels that do not depend on the perturbation are cached."""

    def __init__(self, session: Session, *, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.session, self.max_new_tokens = session, max_new_tokens
        self._cached: OrderedDict[tuple, dict[str, dict[str, Any]]] = OrderedDict()

    def __call__(self, job: Job) -> None:
        """Emit the panels ``real``, ``control`` and, if the betas were changed, ``perturbed``."""
        ask = job.ask
        trials = self.session.trials(ask.subject)
        real = trials.betas(ask.nsd_id, ask.repetition)
        roi = self.session.roi(ask.subject, ask.roi) if ask.perturbation in NEEDS_ROI and ask.roi else None
        changed = perturbed(real, ask.perturbation, roi=roi, factor=ask.factor, seed=ask.seed)
        shown = np.asarray(self.session.brain(ask.subject).shown)
        job.tell("betas", values=np.round(changed[shown].astype(np.float64), 2).tolist())
        job.tell("loading", system=ask.system)
        system = self.session.system(ask.system)
        inputs = self.session.inputs(
            system,
            ask.subject,
            ask.nsd_id,
            ask.repetition,
            changed=None if ask.perturbation == "none" else changed,
        )
        self._panels(job, system, inputs)
        if ask.questions:
            converse(
                system,
                inputs,
                ask.questions,
                max_new_tokens=self.max_new_tokens,
                known=self.session.true_answers(ask.nsd_id),
                tell=lambda kind, turn, name, content: job.tell(kind, turn=turn, panel=name, **content),
            )

    def _panels(self, job: Job, system: Captioner, inputs: Inputs) -> None:
        ask = job.ask
        real, others = inputs.real, inputs.others
        key = (ask.system, ask.subject, ask.nsd_id, ask.repetition)
        if key in self._cached:
            self._cached.move_to_end(key)
            for panel in self._cached[key].values():
                job.tell("panel", **panel)
        else:
            self._cached[key] = {
                name: self._panel(job, system, name, reads, scored_with=real, others=others)
                for name, reads in ((REAL, real), (CONTROL, inputs.control))
            }
            while len(self._cached) > _PANELS_CACHED:
                self._cached.popitem(last=False)
        if inputs.changed is not None:
            lost = mean_word_bits(system, self._cached[key][REAL]["caption"], real, inputs.changed)
            self._panel(job, system, CHANGED, inputs.changed, scored_with=real, others=others, lost=lost)

    def _panel(
        self,
        job: Job,
        system: Captioner,
        name: str,
        reads: Float[Tensor, "1 N width"],
        *,
        scored_with: Float[Tensor, "1 N width"],
        others: Float[Tensor, "k N width"],
        lost: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        (caption,) = system.greedy(
            reads,
            max_new_tokens=self.max_new_tokens,
            on_text=lambda text: job.tell("text", panel=name, text=text),
        )
        panel = {
            "panel": name,
            "caption": caption,
            "words": mean_word_bits(system, caption, scored_with, others),
            "lost": lost,
            "adapters": [
                {
                    "layer": reading.layer,
                    "openness": round(reading.openness, 4),
                    "weights": np.round(reading.weights.numpy().astype(np.float64), 4).tolist(),
                }
                for reading in adapter_readings(system, caption, reads)
            ],
        }
        job.tell("panel", **panel)
        return panel
