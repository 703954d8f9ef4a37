"""One world of an experiment: a simulated brain and the models made on it, up to the aligned encoder.

simulate → prepare → splits      once for each simulator seed
small CLIP → targets, small Llama, align of each split      once for each model seed on it
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import PRESETS, Split, load_split, make_split, save_split
from bitllm.data.store import Store, open_store
from bitllm.data.targets import Targets, load_clip, load_targets, make_targets, save_targets
from bitllm.evaluation.grounding.inputs.held_out import HeldOut, read_held_out
from bitllm.experiments.config import ExperimentConfig
from bitllm.model.aligner import load_aligner
from bitllm.model.encoder import BrainEncoder
from bitllm.neighbours.clip import train_small_clip
from bitllm.neighbours.llm import train_small_llm
from bitllm.neighbours.smollm2 import unpack_smollm2
from bitllm.simulation.parameters import SIMULATION_VERSION, preset
from bitllm.simulation.release import simulate_release
from bitllm.stages.align import make_encoder, train_align
from bitllm.training.callbacks import Progress
from bitllm.training.steps import Steps
from bitllm.training.workspace import Running, versions

SplitName = Literal["develop", "poster"]


@dataclass(frozen=True)
class World:
    """One simulated brain with models of one seed.

    Parameters
    ----------
    root
        Folder of the whole experiment.
    config
        Of the experiment.
    simulator_seed, model_seed
        Of everything random.
    steps
        Of the whole experiment.
    progress
        Called as ``progress(what, done, total)``.
    """

    root: Path
    config: ExperimentConfig
    simulator_seed: int
    model_seed: int
    steps: Steps
    progress: Progress

    @property
    def brain(self) -> str:
        """Name of the simulated brain."""
        return f"brain{self.simulator_seed}"

    @property
    def name(self) -> str:
        """Name of the world."""
        return f"{self.brain}-models{self.model_seed}"

    @property
    def data(self) -> Path:
        """Folder of the simulated brain, which all model seeds share."""
        return self.root / self.brain

    @property
    def folder(self) -> Path:
        """Folder of the models."""
        return self.root / self.name

    @cached_property
    def store(self) -> Store:
        """The prepared store."""
        return open_store(self.data / "store")

    @cached_property
    def targets(self) -> Targets:
        """CLIP's embeddings of every picture and caption."""
        return load_targets(self.folder / "targets.safetensors")

    def split(self, name: SplitName) -> Split:
        """Develop (subj07's validation images) or poster (subj08's test images)."""
        return load_split(self.data / f"{name}.json")

    def held_out(self, name: SplitName) -> HeldOut:
        """Trials of the held-out subject, averaged over repetitions."""
        return read_held_out(self.store, self.split(name), averaged=True)

    def encoder(self, name: SplitName, kind: str) -> BrainEncoder:
        """The aligned encoder, or the same one as it starts."""
        if kind == "aligned":
            return load_aligner(self.folder / name / "align").eval().encoder
        return make_encoder(self.store, self.split(name), self.config.encoder, seed=self.model_seed)

    def step(self, name: str, make: Callable[[], None], settings: object, after: tuple[str, ...]) -> None:
        """A step of this world, after steps of this world."""
        named = tuple(f"{self.name} {step}" for step in after)
        self.steps.run(f"{self.name} {name}", make, settings=settings, after=named)

    def make_data(self) -> None:
        """Release, store and splits, unless another world on the same brain made them."""
        config, seed = self.config, self.simulator_seed
        simulation = preset(config.preset)
        if f"{self.brain} splits" in self.steps.keys:
            return
        self.steps.run(
            f"{self.brain} simulate",
            lambda: simulate_release(
                _cleared(self.data / "nsd"), simulation, seed=seed, progress=self.progress
            ),
            settings=[versions()["bitllm"], SIMULATION_VERSION, simulation.model_dump(mode="json"), seed],
        )
        self.steps.run(
            f"{self.brain} prepare",
            lambda: prepare_nsd(
                self.data / "nsd",
                _cleared(self.data / "store"),
                seed=seed,
                validation_fraction=config.validation_fraction,
                progress=self.progress,
            ),
            settings=[seed, config.validation_fraction],
            after=(f"{self.brain} simulate",),
        )
        self.steps.run(
            f"{self.brain} splits",
            self._save_splits,
            settings=PRESETS,
            after=(f"{self.brain} prepare",),
        )

    def _save_splits(self) -> None:
        for name in PRESETS:
            save_split(make_split(self.store, name), self.data / f"{name}.json")

    def make_neighbours(self) -> None:
        """Small CLIP with its targets, and the LLM."""
        config, seed = self.config, self.model_seed
        prepared = (f"{self.brain} prepare",)
        self.steps.run(
            f"{self.name} clip",
            lambda: train_small_clip(
                self.store, self.folder / "clip", config.small_clip, seed=seed, progress=self.progress
            ),
            settings=[config.small_clip.model_dump(mode="json"), seed],
            after=prepared,
        )
        if config.llm == "smollm2":
            self.steps.run(
                f"{self.name} llm", lambda: unpack_smollm2(self.folder / "llm"), settings="smollm2"
            )
        else:
            self.steps.run(
                f"{self.name} llm",
                lambda: train_small_llm(
                    self.store, self.folder / "llm", config.small_llm, seed=seed, progress=self.progress
                ),
                settings=[config.small_llm.model_dump(mode="json"), seed],
                after=prepared,
            )
        self.step(
            "targets",
            lambda: save_targets(
                make_targets(self.store, load_clip(self.folder / "clip")), self.folder / "targets.safetensors"
            ),
            None,
            ("clip",),
        )

    def make_align(self, name: SplitName) -> None:
        """Stage 1 on the training subjects of a split."""
        config = self.config
        self.step(
            f"{name} align",
            lambda: train_align(
                self.store,
                self.split(name),
                self.targets,
                self.folder / name / "align",
                encoder_config=config.encoder,
                config=config.align,
                seed=self.model_seed,
                running=Running(progress=self.progress),
            ),
            [config.encoder.model_dump(mode="json"), config.align.model_dump(mode="json")],
            ("targets", "llm"),
        )


def _cleared(folder: Path) -> Path:
    """The place of a folder, without what a killed run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
