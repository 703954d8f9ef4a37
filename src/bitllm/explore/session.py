"""The run and the store that the page shows: what can be chosen, and the systems, loaded when they are asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitllm.config import nearest
from bitllm.data.batch import Anatomies
from bitllm.data.splits import Split
from bitllm.data.store import Store, open_store
from bitllm.errors import CheckpointError
from bitllm.evaluation.rois import find_rois
from bitllm.evaluation.runs import (
    CARDS,
    card_of,
    checkpoint_folder,
    find_llm,
    find_split,
    system_names,
)
from bitllm.explore.schemas import Brain, ImageInfo, ImageList, RoiInfo, RunInfo, SubjectInfo, SystemInfo, Use
from bitllm.explore.trials import SubjectTrials
from bitllm.files import read_record
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import BaseLlm, load_llm
from bitllm.model.checkpoint.rft import RFT_CARD, sft_beneath
from bitllm.model.embed import brain_tokens_of_betas
from bitllm.model.precision import Precision

MAX_SHOWN_VOXELS = 20_000
_SYSTEMS_LOADED = 2
_PREFERRED = ("rft", "sft")


@dataclass
class Session:
    """One run on one store.

    Parameters
    ----------
    run
        Name of the run.
    folders
        Checkpoint of each system.
    store, split
        The data, and what the run was trained and tested on.
    base
        The base LLM that all systems share.
    precision
        That it is kept in.
    """

    run: str
    folders: dict[str, Path]
    store: Store
    split: Split
    base: BaseLlm
    precision: Precision = "fp32"
    _loaded: dict[str, Captioner] = field(default_factory=dict)
    _subjects: dict[str, SubjectTrials] = field(default_factory=dict)

    def system(self, name: str) -> Captioner:
        """A system; the two that were asked for last stay in memory.

        Raises
        ------
        CheckpointError
            If the run has no such system, or it does not load.
        """
        if name not in self.folders:
            raise CheckpointError(
                f"{self.run}: expected a system of the run, found `{name}`; {nearest(name, list(self.folders))}"
            )
        system = self._loaded.pop(name, None)
        if system is None:
            system = load_captioner(self.folders[name], self.base, name=name, precision=self.precision)
            if torch.cuda.is_available():
                system.model.to("cuda")
        self._loaded[name] = system
        for old in list(self._loaded)[:-_SYSTEMS_LOADED]:
            del self._loaded[old]
        return system

    def trials(self, subject: str) -> SubjectTrials:
        """A subject's trials by image.

        Raises
        ------
        DataError
            If the store has no such subject.
        """
        if subject not in self._subjects:
            self.store.subject(subject)
            self._subjects[subject] = SubjectTrials(self.store, self.split, subject)
        return self._subjects[subject]

    def roi(self, subject: str, name: str) -> Bool[np.ndarray, " voxels"]:
        """The voxels of a region, named ``ATLAS`` or ``ATLAS:LABEL``.

        Raises
        ------
        DataError
            If the store has no such region, or the subject no voxel in it.
        """
        return find_rois(self.store, subject, [name])[0].voxels

    def brain_tokens(
        self, system: Captioner, subject: str, betas: Float[np.ndarray, "n voxels"]
    ) -> Float[Tensor, "n N width"]:
        """What the LLM is given to read."""
        anatomies = Anatomies.of(self.store, [subject], system.atlases)
        return brain_tokens_of_betas(system.encoder, list(betas), subject, anatomies)

    def info(self) -> RunInfo:
        """Everything that can be chosen."""
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
        """Whether the store holds the pictures that were seen."""
        return "pictures.npy" in self.store.manifest.sha256

    @property
    def subjects(self) -> list[str]:
        """Subjects, those that are tested first."""
        tested = [name for name in self.store.subjects if name in self.split.test_subjects]
        return tested + [name for name in self.store.subjects if name not in tested]

    def images(self, subject: str, use: Use, *, offset: int, limit: int) -> ImageList:
        """Some of the images of one use that a subject saw.

        Raises
        ------
        DataError
            If the store has no such subject.
        """
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
        """Places of a subject's voxels, evenly thinned where there are very many.

        Raises
        ------
        DataError
            If the store has no such subject.
        """
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
        """The picture of an image that a subject of the store saw.

        Raises
        ------
        DataError
            If the store has no pictures, or not this one.
        """
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
    precision: Precision = "fp32",
) -> Session:
    """Open a checkpoint, or all systems of a demo's folder, on a store.

    Parameters
    ----------
    run
        Folder of a checkpoint of sft or rft, or a folder of such checkpoints.
    store
        The store that the run was trained on.
    llm, split
        Where they do not lie beside the run.
    precision
        Of the frozen LLM.

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
    # kept as it is stored until a system asks for its precision: a copy in float32 would double Llama's memory
    base = load_llm(find_llm(first, given=llm), dtype=None)
    session = Session(run.resolve().name, of_split, data, found, base, precision)
    session.system(next(iter(of_split)))
    return session


def system_folders(run: Path) -> dict[str, Path]:
    """The checkpoints of a run by name, rft and sft first.

    Raises
    ------
    CheckpointError
        If there is none.
    """
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
    )
