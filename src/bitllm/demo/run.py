"""One demo in one folder: its settings, its steps, and what the finished steps left there."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitllm.data.splits import Split, load_split
from bitllm.data.store import Store, open_store
from bitllm.data.targets import Targets, load_targets
from bitllm.demo.config import DemoConfig
from bitllm.evaluation.grounding.inputs.held_out import HeldOut, read_held_out
from bitllm.model.aligner import BrainAligner, load_aligner
from bitllm.pipeline.steps import Steps
from bitllm.training.logging import Progress

ALL_BASELINES = ("prefix", "prefix_mlp", "no_align")


@dataclass(frozen=True)
class DemoRun:
    """One demo in one folder.

    Parameters
    ----------
    folder
        Where everything is written.
    config
        Sizes and schedules.
    seed
        Of the simulation and of everything else.
    signal
        Strength of the simulated signal; None keeps the preset's.
    split
        ``poster``: the held-out subject is the last one. ``develop``: choose settings on the one before, with
        validation images; the last subject and the test images stay untouched.
    full
        Whether every baseline is trained.
    """

    folder: Path
    config: DemoConfig
    seed: int
    signal: float | None
    split_preset: str
    full: bool
    progress: Progress
    tell: Callable[[str], None]

    @cached_property
    def steps(self) -> Steps:
        """Steps with their marks."""
        return Steps(self.folder, self.tell)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Baselines of this run."""
        return ALL_BASELINES if self.full else self.config.baselines

    @property
    def systems(self) -> tuple[str, ...]:
        """Everything that is judged."""
        return ("sft", "rft", *self.baselines)

    @property
    def validation_fraction(self) -> float:
        """Share of the training images set aside; larger where choices are made on them."""
        return 0.25 if self.split_preset == "develop" else 0.08

    @cached_property
    def store(self) -> Store:
        """The prepared store."""
        return open_store(self.folder / "store")

    @cached_property
    def split(self) -> Split:
        """Subjects and images to train and to test on."""
        return load_split(self.folder / "split.json")

    @cached_property
    def targets(self) -> Targets:
        """CLIP's embeddings of every picture and caption."""
        return load_targets(self.folder / "targets.safetensors", store=self.store)

    @cached_property
    def aligner(self) -> BrainAligner:
        """The encoder after stage 1."""
        return load_aligner(self.folder / "align").eval()

    @cached_property
    def held_out(self) -> dict[str, HeldOut]:
        """Test trials, averaged over repetitions and single."""
        return {
            "averaged": read_held_out(self.store, self.split, averaged=True),
            "single": read_held_out(self.store, self.split, averaged=False),
        }
