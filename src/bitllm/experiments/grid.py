"""The runs of a grid: every system of an experiment in every world; what systems share is made once.

    worlds/brain11/                      store              once for each brain (and each change of it)
    worlds/brain11-models0/              CLIP, LLM, targets once for each model seed and its images (they use no betas)
    worlds/brain11-models0 poster/       align and systems  once for each split and each change of data or encoder

Each folder is a `bitllm.pipeline.run.Run`. A system is named by its settings, so that experiments share equal
systems.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bitllm import __version__
from bitllm.data.targets import ClipEmbedder, load_clip
from bitllm.evaluation.held_out import HeldOut, first_trials, read_held_out
from bitllm.evaluation.new_subject import adapted, other_trials
from bitllm.evaluation.outcomes import outcomes
from bitllm.experiments.answers import answer_rows
from bitllm.experiments.config import ExperimentConfig, SystemConfig
from bitllm.experiments.encoders import encoder_rows, nearest_captions, with_caption_measures
from bitllm.experiments.record import published_rows
from bitllm.files import file_written_whole, sha256_of_json
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.pipeline.data import SPLIT_CHANGES
from bitllm.pipeline.make import make_data, make_models, make_system
from bitllm.pipeline.recipe import Recipe, Variant, merged
from bitllm.pipeline.run import RECIPE, Run
from bitllm.simulation.parameters import SIMULATION_VERSION
from bitllm.stages.workspace import git_revision
from bitllm.training.logging import Progress

SplitName = Literal["develop", "poster"]
_JUDGE = 1000
"""Added to the seed of the models for the CLIP that judges captions."""
Changes = Mapping[str, Mapping[str, Any]]
"""Changed settings by part of the recipe."""


@dataclass(frozen=True)
class World:
    """One simulated brain, with models of one seed."""

    root: Path
    """Folder of all worlds."""
    recipe: Recipe
    """The recipe that the systems change."""
    brain: int
    """Seed of the simulation."""
    models: int
    """Seed of the models and their training."""
    log: Callable[[str], None]
    progress: Progress
    _runs: dict[str, Run] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Name of the world."""
        return f"brain{self.brain}-models{self.models}"

    def brain_name(self, changes: Changes) -> str:
        """Name of the run with the store of the brain, as changed by a system."""
        return _with(f"brain{self.brain}", _data(changes, of_split=False))

    def group_name(self, changes: Changes, split: SplitName) -> str:
        """Name of the run of all systems with the same data and encoder."""
        return _with(f"{self.name} {split}", {**changes.get("data", {}), **changes.get("encoder", {})})

    def data(self, changes: Changes) -> Run:
        """The run with the store of a brain; the store is made if it is missing."""

        def make(run: Run) -> None:
            make_data(run)
            shutil.rmtree(run.folder / "nsd", ignore_errors=True)  # all that follows reads the store

        data = {**_data(changes, of_split=False), "seed": self.brain}
        return self._run(self.brain_name(changes), {"data": data}, make)

    def models_name(self, changes: Changes) -> str:
        """Name of the run of the models that systems with these changes share."""
        return _with(self.name, _of_images(changes))

    def shared_models(self, changes: Changes) -> Run:
        """The run with CLIP, LLM and targets on the images of the data; they are made if they are missing."""
        store = self.data({"data": _of_images(changes)}).folder / "store"
        return self._run(
            self.models_name(changes), {"data": {"store": store}, "seed": self.models}, make_models
        )

    def judge(self, changes: Changes) -> ClipEmbedder:
        """A CLIP of another seed on the images of the data, which no system was trained with."""
        models = self.shared_models(changes)
        own = {
            "data": {
                "store": models.recipe.data.store,
                "targets": models.folder / "targets.safetensors",
            },
            "llm": {"source": models.llm_source},
            "seed": self.models + _JUDGE,
        }
        return load_clip(self._run(f"{self.models_name(changes)} judge", own, make_models).clip_source)

    def group(self, changes: Changes, split: SplitName) -> Run:
        """The run of all systems with the same data and encoder; shared parts are made if they are missing."""
        models = self.shared_models(changes)
        data = {
            **_data(changes, of_split=True),
            "split": split,
            "store": self.data(changes).folder / "store",
            "targets": models.folder / "targets.safetensors",
        }
        own = {
            "data": data,
            "seed": self.models,
            "llm": {"source": models.llm_source},
            "clip": {"source": models.clip_source},
        }
        if "encoder" in changes:
            own["encoder"] = changes["encoder"]
        return self._run(self.group_name(changes, split), own, make_data)

    def steps(self, changes: Changes) -> list[tuple[str, str]]:
        """Names and kinds of the steps that systems with these changes of the data share, for the plan."""
        of_images = {"data": _of_images(changes)}
        brains = [(f"{self.brain_name(some)}/prepare", "data") for some in (of_images, changes)]
        models = self.models_name(changes)
        return [*brains, *((f"{models}/{kind}", kind) for kind in ("clip", "llm", "targets"))]

    def write_rows(self, path: Path, make: Callable[[], pd.DataFrame]) -> None:
        """Write rows with their origin."""
        rows = make().assign(
            world=self.name,
            simulator_seed=self.brain,
            model_seed=self.models,
            simulation_version=SIMULATION_VERSION,
            bitllm_version=__version__,
            git_revision=git_revision() or "unknown",
        )
        with file_written_whole(path) as unfinished:
            rows.to_parquet(unfinished, index=False)

    def _run(self, name: str, changes: dict[str, Any], make: Callable[[Run], None]) -> Run:
        if name not in self._runs:
            folder = self.root / name
            values = merged(self.recipe.model_dump(), changes)
            # the recipe of a finished process lists its systems
            there = (folder / RECIPE).is_file()
            values["variants"] = Run.open(folder).recipe.variants if there else {}
            recipe = Recipe.parse(values, source=name)
            run = Run(folder, recipe, self.progress, lambda line: self.log(f"{name} {line}"), logs_kept=False)
            make(run)
            run.record()
            self._runs[name] = run
        return self._runs[name]


@dataclass(frozen=True)
class Cell:
    """One system of an experiment in one world, trained on one split with given learning rates."""

    world: World
    config: ExperimentConfig
    split: SplitName
    name: str
    rates: dict[str, float]
    """Learning rate of this system, and of the one that it starts from."""

    @property
    def system(self) -> SystemConfig:
        """Configuration of the system."""
        return self.config.systems[self.name]

    @property
    def parent(self) -> "Cell | None":
        """The sft system that this one starts from."""
        name = self.system.parent
        return None if name is None else Cell(self.world, self.config, self.split, name, self.rates)

    @property
    def starts_from_align(self) -> bool:
        """Whether the encoder is that of the align stage."""
        return self.system.start in (None, "align") and self.system.rft is None

    @property
    def stage(self) -> Literal["sft", "rft"]:
        """Stage of the system."""
        return "sft" if self.system.rft is None else "rft"

    @cached_property
    def changes(self) -> Changes:
        """Changes of the recipe. The develop split tests the same subject for every system."""
        changes = self.config.changes_of(self.name)
        if self.split == "develop" and "held_out" in changes.get("data", {}):
            changes["data"] = {key: value for key, value in changes["data"].items() if key != "held_out"}
        return changes

    @cached_property
    def label(self) -> str:
        """Name of the system's folder: stage, changed settings, learning rates, and what it starts from."""
        own, rate = self.changes.get(self.stage, {}), f"{self.rates[self.name]:g}"
        start = ("align" if self.starts_from_align else "random") if self.parent is None else self.parent.step
        words = [self.stage, *(["random"] if start == "random" else []), *_flat(own)]
        readable = re.sub(r"\W+", "-", " ".join(words))[:60]
        code = sha256_of_json([self.stage, own, start, rate])[:6]
        return f"{readable}-{rate.replace('.', '_')}-{code}"

    @property
    def place(self) -> str:
        """Name of the run of this system."""
        return self.world.group_name(self.changes, self.split)

    @property
    def step(self) -> str:
        """Name of the step that trains the system, among those of all runs."""
        return f"{self.place}/{self.label}"

    @property
    def _evaluations(self) -> dict[str, Callable[[], pd.DataFrame]]:
        """Kinds of evaluation: captions, in an experiment about encoders the encoder (once), and answers."""
        has_diagnostics = self.config.diagnostics and self.split == "poster" and self.parent is None
        is_asked = self.split == "poster" and bool(self.config.tasks_of(self.name))
        return {
            "judge": self._caption_rows,
            **({"encoder": self._encoder_rows} if has_diagnostics else {}),
            **({"questions": self._answer_rows} if is_asked else {}),
        }

    @property
    def _is_verified(self) -> bool:
        return self.config.verified and self.split == "poster"

    def _part(self, kind: str) -> str:
        """Name of the step of an evaluation."""
        verified = " verified" if kind == "judge" and self._is_verified else ""
        moved = " transported" if self.system.transport else ""
        return f"{self.label} {kind}{verified}{moved}" + ("" if self.system.averaged else " on single trials")

    def path(self, kind: str) -> Path:
        """File with the rows of an evaluation."""
        return self.world.root / self.place / f"{self._part(kind)}.parquet"

    @property
    def is_evaluated(self) -> bool:
        """Whether all rows exist."""
        return all(self.path(kind).exists() for kind in self._evaluations)

    def steps(self) -> list[tuple[str, str]]:
        """Names and kinds of the steps, for the plan, without those of the system that it starts from."""
        trains_encoder = self.stage == "sft" and self.changes.get("sft", {}).get("encoder") == "trained"
        kind: str = "sft with encoder" if trains_encoder else self.stage
        found = [(self.step, kind)]
        found += [(f"{self.place}/{self._part(kind)}", kind) for kind in self._evaluations]
        if self.starts_from_align:
            found.append((f"{self.place}/align", "align"))
        return [*found, *self.world.steps(self.changes)]

    @cached_property
    def run(self) -> Run:
        """The run of this system, with the system among its variants; parts that systems share are made."""
        run, parent, start = self.world.group(self.changes, self.split), self.parent, self.system.start
        if parent is not None:
            is_here = parent.run.folder == run.folder
            start = parent.label if is_here else str(parent.run.folder / parent.label)
        rate = {"optimizer": {"learning_rate": self.rates[self.name]}}
        own = {"start": start, self.stage: merged(dict(self.changes.get(self.stage, {})), rate)}
        run.recipe.variants[self.label] = Variant.parse(own)
        return run

    def make(self) -> None:
        """Train and evaluate the system, unless that is done."""
        for kind, rows in self._evaluations.items():
            path = self.path(kind)
            if not path.exists():
                self._train()
                write = partial(self.world.write_rows, path, rows)
                self.run.steps.run(self._part(kind), write, settings=None, after=(self.label,), file=path)

    def _train(self) -> None:
        """Train the system and what it starts from."""
        run, parent = self.run, self.parent
        if parent is not None:
            parent._train()
        elif self.starts_from_align:
            make_system(run, "align")
        make_system(run, self.label)

    def rows(self) -> pd.DataFrame:
        """Rows for each image under every input, with the measures of the encoder and of the answers."""
        rows = pd.read_parquet(self.path("judge"))
        for kind in [kind for kind in self._evaluations if kind != "judge"]:
            found = pd.read_parquet(self.path(kind))
            keys = ["control", "nsd_id"]
            found = found[[*keys, *(column for column in found if column not in rows)]]
            rows = rows.merge(found, on=keys, how="left", validate="one_to_one")
        return rows.assign(system=self.name, learning_rate=self.rates[self.name])

    def _captioner(self) -> Captioner:
        run, precision = self.run, self.config.recipe.sft.precision
        found = load_captioner(
            run.folder / self.label, load_llm(run.llm_source), name=self.name, precision=precision
        )
        if not self.system.transport:
            return found
        (subject,) = run.split.test_subjects
        return adapted(found, run.store, run.split, other_trials(run.store, subject, run.split.test_images))

    def _held_out(self) -> HeldOut:
        run = self.run
        if self.system.averaged:
            return read_held_out(run.store, run.split, averaged=True)
        return first_trials(read_held_out(run.store, run.split, averaged=False))

    def _caption_rows(self) -> pd.DataFrame:
        found = outcomes(
            self._captioner(),
            self._held_out(),
            seed=self.world.models,
            max_new_tokens=self.config.recipe.evaluation.max_new_tokens,
            controls=self.config.controls if self.split == "poster" else (),
            likelihood_of=("real",),
            progress=self.world.progress,
        )
        if not self._is_verified:
            return published_rows(found)
        baselines = (
            {"nearest": nearest_captions(self.run, found.held_out)} if self.starts_from_align else None
        )
        rows = published_rows(found, baselines)
        return with_caption_measures(
            rows, self.run.store, self.world.judge(self.changes), seed=self.world.models
        )

    def _encoder_rows(self) -> pd.DataFrame:
        return encoder_rows(
            self.run,
            self._captioner().encoder,
            self._held_out(),
            is_aligned=self.starts_from_align,
            seed=self.world.models,
        )

    def _answer_rows(self) -> pd.DataFrame:
        return answer_rows(
            self.run,
            self._captioner(),
            self._held_out(),
            self.config.asked_of(self.name),
            controls=(*self.config.controls, "llm_alone"),
            seed=self.world.brain,  # the same questions for all model seeds
            progress=self.world.progress,
        )


def _data(changes: Changes, *, of_split: bool) -> dict[str, Any]:
    """Changes of the data, either those of the split or those of the store."""
    return {
        key: value for key, value in changes.get("data", {}).items() if (key in SPLIT_CHANGES) == of_split
    }


def _of_images(changes: Changes) -> dict[str, Any]:
    """Changes of the data that add images, and so concern the models that are trained on images and captions."""
    return {key: value for key, value in changes.get("data", {}).items() if key == "bold5000"}


def _with(name: str, changes: Mapping[str, Any]) -> str:
    long = " ".join([name, *_flat(changes)])
    return long if len(long) <= 100 else f"{long[:90]} {sha256_of_json(long)[:6]}"


def _flat(changes: Mapping[str, Any]) -> list[str]:
    """Changes as words, e.g. ``signal=0.5``."""
    found = []
    for key, value in sorted(changes.items()):
        if isinstance(value, Mapping):
            found += [f"{key}.{word}" for word in _flat(value)]
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            found.append(re.sub(r"[][() '/]", "", f"{key}={text}"))
    return found
