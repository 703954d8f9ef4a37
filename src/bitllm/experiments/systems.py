"""Train one system of a world at one learning rate, decode it under every input, and give one row per image."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm.config import StrictConfig
from bitllm.data.targets import load_clip
from bitllm.evaluation.outcomes import outcomes
from bitllm.experiments.brain import SplitName, named
from bitllm.experiments.config import ExperimentConfig, SystemConfig
from bitllm.experiments.record import rows_of, write_rows
from bitllm.experiments.world import World
from bitllm.files import sha256_of_json
from bitllm.metrics.bertscore import load_bert_scorer
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.stages.rewards import CompositeReward, Reward, Rewards, RewardWeights
from bitllm.stages.rft import train_rft
from bitllm.stages.sft import train_sft
from bitllm.training.loop import RunContext

_LONGEST_LABEL = 80


@dataclass(frozen=True)
class Trained:
    """A system of a question in one world, at the learning rates that it and the one before it have.

    Its folder is named by what it changes, not by the question's name for it: questions share what is equal.
    """

    world: World
    config: ExperimentConfig
    split: SplitName
    name: str
    rates: dict[str, float]
    """Learning rate of this system, and of the one that it starts from."""

    @property
    def system(self) -> SystemConfig:
        """What it changes."""
        return self.config.systems[self.name]

    @property
    def before(self) -> "Trained | None":
        """The sft system that it starts from, for rft or to go on."""
        start = self.system.start
        return None if start is None else Trained(self.world, self.config, self.split, start, self.rates)

    @property
    def is_rft(self) -> bool:
        """Whether its stage is rft."""
        return self.system.after is not None

    @property
    def learner(self) -> SystemConfig:
        """The system whose data and encoder it has: its own, or of the one that it starts from (but for its split)."""
        if self.before is None:
            return self.system
        if self.is_rft:
            return self.before.system
        return self.before.system.model_copy(update={"split": self.system.split})

    def settings(self, *, with_defaults: bool) -> list[Any]:
        """Everything of its own that decides what it learns, as JSON.

        Parameters
        ----------
        with_defaults
            Whether what stands at its default is told too: it decides, though names do without it.
        """

        def told(config: StrictConfig) -> dict[str, Any]:
            return config.model_dump(mode="json", exclude_defaults=not with_defaults)

        rate = self.rates[self.name]
        if self.before is None:
            sizes = told(self.config.sizes_of(self.name))
            return [told(self.config.sft_of(self.name, rate)), self.system.encoder, sizes]
        before = self.before.settings(with_defaults=with_defaults)
        if not self.is_rft:
            return [told(self.config.sft_of(self.name, rate)), before]
        return [told(self.config.rft_of(self.name, rate)), self.system.reward_references, before]

    @property
    def label(self) -> str:
        """Name of its folder and of its step."""
        stage, own = ("rft", self.system.rft) if self.is_rft else ("sft", self.system.sft)
        other = {
            key: value
            for key, value, usual in (
                ("encoder", self.learner.encoder, "aligned"),
                ("rewarded", self.system.reward_references, "own"),
                ("goes_on", self.system.goes_on is not None, False),
            )
            if value != usual
        }
        changes = named({**other, **own})[:_LONGEST_LABEL].replace("/", "")
        code = sha256_of_json(self.settings(with_defaults=False))[:6]
        words = [stage, f"{self.rates[self.name]:g}", changes, code]
        return " ".join(word for word in words if word)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.world.folder / self.world.place(self.split, self.learner) / self.label

    @property
    def step(self) -> str:
        """Name of the step that trains it."""
        place = self.world.place(self.split, self.learner).replace("/", " ")
        return self.world.step(f"{place} {self.label}")

    @property
    def kind(self) -> str:
        """Stage and what learns in it, for estimates of time."""
        if self.is_rft:
            return "rft"
        learns = self.config.sft_of(self.name, self.rates[self.name]).encoder == "trained"
        return "sft with encoder" if learns else "sft"

    @property
    def judging_step(self) -> str:
        """Name of the step that judges it."""
        return self.step + self._judged

    @property
    def encoder_step(self) -> str:
        """Name of the step that judges its encoder alone."""
        return self.step + self._encoder

    @property
    def encoder_path(self) -> Path:
        """Where the rows of its encoder lie."""
        return self.folder.with_name(self.folder.name + self._encoder + ".parquet")

    @property
    def rows_path(self) -> Path:
        """Where its rows lie."""
        return self.folder.with_name(self.folder.name + self._judged + ".parquet")

    @property
    def has_diagnostics(self) -> bool:
        """Whether its encoder is judged alone: in a question about encoders, but not again after rft."""
        return self.config.diagnostics and self.before is None

    @property
    def is_judged(self) -> bool:
        """Whether all its rows are there."""
        return self.rows_path.exists() and (not self.has_diagnostics or self.encoder_path.exists())

    @property
    def _judged(self) -> str:
        return " judged" if self.system.averaged else " judged on single trials"

    @property
    def _encoder(self) -> str:
        return " encoder" if self.system.averaged else " encoder on single trials"

    def make(self) -> None:
        """Train it, and judge it."""
        world, steps = self.world, self.world.steps
        make = self._train_rft if self.is_rft else self._train_sft
        world.make_toy_models()
        after = [world.step("llm"), world.step("targets")]
        if self.before is not None:
            self.before.make()
            after.append(self.before.step)
        elif self.system.encoder == "aligned":
            after.append(world.make_align(self.split, self.config, self.name))
        data = [world.store(self.learner).sha256, world.split(self.split, self.learner).sha256]
        settings = [self.settings(with_defaults=True), data]
        steps.run(self.step, make, settings=settings, after=tuple(after))
        recipe = self.config.recipe
        steps.run(
            self.judging_step,
            self._judge,
            settings=[recipe.max_new_tokens, list(recipe.controls)],
            after=(self.step,),
        )

    def rows(self) -> pd.DataFrame:
        """Per-image rows under every input."""
        return pd.read_parquet(self.rows_path).assign(system=self.name, learning_rate=self.rates[self.name])

    def _train_sft(self) -> None:
        world, system, before = self.world, self.learner, self.before
        sizes = self.config.sizes_of(self.name if before is None else before.name)
        store = world.store(system)
        train_sft(
            store,
            world.split(self.split, system),
            self.folder,
            start=world.encoder(self.split, system, sizes) if before is None else before.folder,
            encoder_arguments=sizes.arguments(store),
            atlases=sizes.atlases,
            llm_path=world.folder / "llm",
            config=self.config.sft_of(self.name, self.rates[self.name]),
            seed=world.model_seed,
            context=RunContext(progress=world.progress),
        )

    def _train_rft(self) -> None:
        world, before = self.world, self.before
        assert before is not None
        train_rft(
            world.store(before.system),
            world.split(self.split, before.system),
            self.folder,
            sft_folder=before.folder,
            llm_path=world.folder / "llm",
            make_reward=partial(make_reward, world, permuted=self.system.reward_references == "permuted"),
            config=self.config.rft_of(self.name, self.rates[self.name]),
            seed=world.model_seed,
            context=RunContext(progress=world.progress),
        )

    def _judge(self) -> None:
        world, recipe = self.world, self.config.recipe
        base = load_llm(world.folder / "llm")
        system = load_captioner(self.folder, base, name=self.name, precision=recipe.sft.precision)
        found = outcomes(
            system,
            world.held_out(self.split, self.system.model_copy(update=_data_of(self.learner))),
            seed=world.model_seed,
            max_new_tokens=recipe.max_new_tokens,
            controls=recipe.controls if self.split == "poster" else (),
            likelihood_of=("real",),
            progress=world.progress,
        )
        write_rows(self.rows_path, world, rows_of(found, seed=world.model_seed))


def _data_of(learner: SystemConfig) -> dict[str, Any]:
    return {key: getattr(learner, key) for key in ("simulation", "coordinates", "split")}


def make_reward(world: World, nsd_ids: list[int], weights: RewardWeights, *, permuted: bool) -> Reward:
    """The composite reward; permuted, each image is rewarded by the references and the picture of another one."""
    reward = CompositeReward(
        world.store(),
        nsd_ids,
        world.targets(),
        clip=load_clip(world.folder / "clip"),
        weights=weights,
        bert_scorer=load_bert_scorer(world.folder / "clip"),
    )
    if not permuted:
        return reward
    order = np.random.default_rng(world.model_seed).permutation(sorted(set(nsd_ids))).tolist()
    other = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: no image keeps its own

    def of_another(nsd_ids: Any, captions: Any, has_ended: Any) -> Rewards:
        return reward([other[int(nsd_id)] for nsd_id in nsd_ids], captions, has_ended)

    return of_another
