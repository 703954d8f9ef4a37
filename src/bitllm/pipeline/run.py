"""The run folder: everything that a recipe produces, opened on demand.

RUN/  recipe.yaml  split.json  targets.safetensors  align/  sft/  rft/  VARIANT/  steps/
      store/  nsd/  clip/  llm/     if the recipe makes them
      fold-01/  fold-02/  ...       in a run of folds, which shares store/, clip/ and llm/: one run for each fold
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.splits import Split, load_split, runs_of
from bitllm.data.store import Store, open_store
from bitllm.data.targets import Targets, load_clip, load_targets
from bitllm.errors import ConfigError, DataError
from bitllm.evaluation.new_subject import adapted, other_trials
from bitllm.files import file_written_whole
from bitllm.metrics.bertscore import BertScorer, load_bert_scorer
from bitllm.model.aligner import BrainAligner, load_aligner
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.precision import Precision, base_dtype
from bitllm.pipeline.recipe import Recipe
from bitllm.pipeline.steps import Steps
from bitllm.stages.cross_fit import load_trial_embeddings
from bitllm.stages.rewards import CLIP_F1, CompositeReward, Reward, RewardModels, reward_from
from bitllm.stages.rft import RftConfig
from bitllm.training.distributed import device, is_main
from bitllm.training.logging import Progress
from bitllm.training.loop import RunContext

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Run:
    """One run folder.

    Parameters
    ----------
    folder
        The run folder.
    recipe
        The recipe of the run.
    progress
        Called as ``progress(what, done, total)``.
    log
        Called with one line for each finished step.
    logs_kept
        Whether to log steps that an earlier process finished too.
    home
        The run that this one is a fold of; it has the store and the models. None for any other run.
    """

    folder: Path
    recipe: Recipe
    progress: Progress | None = None
    log: Callable[[str], None] = lambda _: None
    logs_kept: bool = True
    home: "Run | None" = None
    _llm_sha256: dict[torch.dtype, str] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """Open an existing run.

        Raises
        ------
        DataError
            If the folder is not that of a run.
        """
        place = Path(folder) / RECIPE
        if not place.is_file():
            raise DataError(f"{folder}: expected the folder of a run, found no {RECIPE}; check the path")
        recipe = Recipe.read(place)
        above = Path(folder).resolve().parent
        is_fold = recipe.data.fold is not None and (above / RECIPE).is_file()
        home = cls(above, Recipe.read(above / RECIPE)) if is_fold else None
        return cls(Path(folder), recipe, home=home)

    @property
    def shared(self) -> Path:
        """Folder of the store and of the models that the run makes."""
        return self.folder if self.home is None else self.home.folder

    def folds(self) -> list["Run"]:
        """The runs that a run of folds consists of; the store must be made."""
        subject = self.recipe.data.subject or self.store.subjects[0]
        return [
            replace(
                self,
                folder=self.folder / f"fold-{fold:02d}",
                recipe=self.recipe.model_copy(
                    update={"data": self.recipe.data.model_copy(update={"fold": fold})}
                ),
                home=self,
            )
            for fold in range(1, len(runs_of(self.store, subject)) + 1)
        ]

    @cached_property
    def steps(self) -> Steps:
        """Finished steps of this run."""
        return Steps(self.folder, self.log, maker="run", tells_kept=self.logs_kept)

    def record(self) -> None:
        """Write the recipe into the run folder."""
        if is_main():
            with (
                self.steps.claim("recipe", waits=True),
                file_written_whole(self.folder / RECIPE) as unfinished,
            ):
                self.recipe.write(unfinished)

    @property
    def context(self) -> RunContext:
        """Settings and progress of its stages.

        This writes the recipe, because at the first step of a stage nothing can refuse it any more.
        """
        is_recorded = False

        def progress(what: str, done: int, total: int) -> None:
            nonlocal is_recorded
            if not is_recorded:
                self.record()
                is_recorded = True
            if self.progress is not None:
                self.progress(what, done, total)

        return RunContext(self.recipe.trainer, progress)

    @cached_property
    def store(self) -> Store:
        """The store."""
        return open_store(self.recipe.data.store or self.shared / "store")

    @cached_property
    def split(self) -> Split:
        """Subjects and images for training, validation and test."""
        return load_split(self.folder / "split.json")

    @property
    def llm_source(self) -> str:
        """Folder or hub id of the base LLM."""
        return str(self.shared / "llm") if self.recipe.llm.is_made else self.recipe.llm.source

    def llm_sha256(self, precision: Precision) -> str:
        """Checksum of the base LLM's weights in the precision of a stage."""
        dtype = base_dtype(precision)
        if dtype not in self._llm_sha256:
            self._llm_sha256[dtype] = load_llm(self.llm_source, dtype=dtype).sha256
        return self._llm_sha256[dtype]

    @property
    def clip_source(self) -> str:
        """Folder or hub id of the CLIP."""
        return str(self.shared / "clip") if self.recipe.clip.is_made else self.recipe.clip.source

    @cached_property
    def targets(self) -> Targets:
        """CLIP embeddings of every image and caption."""
        place = self.recipe.data.targets or self.folder / "targets.safetensors"
        return load_targets(place, store=self.store)

    @cached_property
    def aligner(self) -> BrainAligner:
        """The encoder with the heads of the align stage."""
        return load_aligner(self.folder / "align").eval()

    def captioner(self, name: str = "rft", *, adapted_to: str | None = None) -> Captioner:
        """A trained system of the run, in the precision of its training, on the GPU if there is one.

        Parameters
        ----------
        name
            ``sft``, ``rft`` or a variant of the recipe.
        adapted_to
            A new subject of the store, to whose trials the system is adapted by its betas on other than the test
            images (`bitllm.model.transport`); by default it is not.

        Raises
        ------
        BitLlmError
            If the recipe has no such system, or it is not yet trained.
        """
        system = self.recipe.system(name)
        precision = system.rft.precision if system.stage == "rft" else system.sft.precision
        base = load_llm(self.llm_source, dtype=base_dtype(precision))
        captioner = load_captioner(self.folder / name, base, precision=precision)
        captioner.model.to(device())
        if adapted_to is None:
            return captioner
        own = other_trials(self.store, adapted_to, self.split.test_images)
        return adapted(captioner, self.store, self.split, own)

    def trials(self, subject: str, part: str = "test", *, averaged: bool = True) -> TrialSet:
        """Trials of a subject of the run.

        Parameters
        ----------
        subject
            For example ``subj08``.
        part
            ``train``, ``validation`` or ``test``: the images of that part of the split.
        averaged
            Whether to average the repetitions of an image.

        Raises
        ------
        SplitError
            If the subject does not belong to that part of the split.
        """
        return select_trials(self.store, self.split, part, averaged=averaged, subjects=[subject])

    def reward_maker(self, config: RftConfig) -> Callable[[TrialSet], Reward]:
        """A function that builds the reward of rft from the training trials.

        Raises
        ------
        ConfigError
            If BERTScore is rewarded and the recipe names no encoder for it.
        """
        rewards = config.rewards
        if self.recipe.bertscore is None and rewards.bertscore > 0:
            raise ConfigError(
                "bertscore: expected a folder or hub id of an encoder (e.g. microsoft/deberta-xlarge-mnli), found "
                "none; name one, or set rft.rewards.bertscore to 0"
            )

        def make_reward(trials: TrialSet) -> Reward:
            needs_clip = max(rewards.ip, rewards.contrast, rewards.neural_rank) > 0
            models = RewardModels(
                clip=load_clip(self.clip_source, device=device()) if needs_clip else None,
                targets=self.targets if needs_clip else None,
                bert_scorer=self._bert_scorer() if rewards.bertscore > 0 else None,
                bert_part=CLIP_F1 if self.recipe.bertscore == "clip" else "bertscore",
                trial_embeddings=load_trial_embeddings(self.folder) if rewards.neural_rank > 0 else None,
            )
            reward = CompositeReward(self.store, trials, models, rewards, seed=self.recipe.seed)
            return reward_from(reward, config.reward_references, trials, seed=self.recipe.seed)

        return make_reward

    def _bert_scorer(self) -> BertScorer:
        assert self.recipe.bertscore is not None
        source = self.clip_source if self.recipe.bertscore == "clip" else self.recipe.bertscore
        return load_bert_scorer(source, device=device())
