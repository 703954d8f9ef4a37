"""Train one system of a world at one learning rate, decode it under every input, and give one row per image."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm import __version__
from bitllm.config import StrictConfig
from bitllm.data.targets import load_clip
from bitllm.evaluation.grounding.bits import evidence_per_image
from bitllm.evaluation.grounding.outcomes import Outcomes, outcomes
from bitllm.evaluation.grounding.system import load_system
from bitllm.experiments.world import SplitName, World
from bitllm.files import file_written_whole
from bitllm.metrics.bertscore import load_bert_scorer
from bitllm.model.checkpoint.base import load_llm
from bitllm.simulation.parameters import SIMULATION_VERSION
from bitllm.stages.rewards import CompositeReward, Reward, Rewards, RewardWeights
from bitllm.stages.rft import train_rft
from bitllm.stages.sft import train_sft
from bitllm.training.workspace import Running, git_revision


def folder_of(world: World, split: SplitName, name: str, rate: float) -> Path:
    """Where a system at a learning rate lies."""
    return world.folder / split / f"{name}-{rate:g}"


def make_system(world: World, split: SplitName, name: str, rates: dict[str, float]) -> str:
    """Train a system at its learning rate, and judge it; the name of the step that judged it.

    Parameters
    ----------
    rates
        Learning rate of the system, and of the one that it starts from.
    """
    system, rate = world.config.systems[name], rates[name]
    step = f"{split} {name}-{rate:g}"
    stage: StrictConfig
    if system.after is None:
        stage, after = world.config.sft_of(name, rate), f"{split} align"
        make = partial(_train_sft, world, split, name, rate)
    else:
        stage, after = world.config.rft_of(name, rate), f"{split} {system.after}-{rates[system.after]:g}"
        make = partial(_train_rft, world, split, name, rates)
    settings = [stage.model_dump(mode="json"), system.encoder, system.reward_references]
    world.step(step, make, settings, (after,))
    controls = world.config.controls if split == "poster" else ()
    judged = f"{step} judged"
    world.step(
        judged,
        lambda: _judge(world, split, name, rates),
        [world.config.max_new_tokens, list(controls)],
        (step,),
    )
    return judged


def read_rows(world: World, split: SplitName, name: str, rate: float) -> pd.DataFrame:
    """Per-image rows of a judged system."""
    return pd.read_parquet(_rows_path(world, split, name, rate))


def _rows_path(world: World, split: SplitName, name: str, rate: float) -> Path:
    return world.folder / "rows" / f"{split}-{name}-{rate:g}.parquet"


def _train_sft(world: World, split: SplitName, name: str, rate: float) -> None:
    config = world.config
    train_sft(
        world.store,
        world.split(split),
        folder_of(world, split, name, rate),
        encoder=world.encoder(split, config.systems[name].encoder),
        encoder_arguments=config.encoder.arguments(world.store),
        atlases=config.encoder.atlases,
        llm_path=world.folder / "llm",
        config=config.sft_of(name, rate),
        seed=world.model_seed,
        running=Running(progress=world.progress),
    )


def _train_rft(world: World, split: SplitName, name: str, rates: dict[str, float]) -> None:
    system = world.config.systems[name]
    assert system.after is not None
    train_rft(
        world.store,
        world.split(split),
        folder_of(world, split, name, rates[name]),
        sft_folder=folder_of(world, split, system.after, rates[system.after]),
        llm_path=world.folder / "llm",
        make_reward=partial(make_reward, world, permuted=system.reward_references == "permuted"),
        config=world.config.rft_of(name, rates[name]),
        seed=world.model_seed,
        running=Running(progress=world.progress),
    )


def make_reward(world: World, nsd_ids: list[int], weights: RewardWeights, *, permuted: bool) -> Reward:
    """The composite reward; permuted, each image is rewarded by the references and the picture of another one."""
    reward = CompositeReward(
        world.store,
        nsd_ids,
        world.targets,
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


def _judge(world: World, split: SplitName, name: str, rates: dict[str, float]) -> None:
    folder, precision = folder_of(world, split, name, rates[name]), world.config.sft.precision
    system = load_system(name, folder, load_llm(world.folder / "llm"), precision=precision)
    found = outcomes(
        system,
        world.held_out(split),
        seed=world.model_seed,
        max_new_tokens=world.config.max_new_tokens,
        controls=world.config.controls if split == "poster" else (),
        likelihood_of=("real",),
        progress=world.progress,
    )
    rows = rows_of(found, seed=world.model_seed).assign(
        world=world.name,
        simulator_seed=world.simulator_seed,
        model_seed=world.model_seed,
        system=name,
        learning_rate=rates[name],
        simulation_version=SIMULATION_VERSION,
        bitllm_version=__version__,
        git_revision=git_revision() or "unknown",
    )
    with file_written_whole(_rows_path(world, split, name, rates[name])) as unfinished:
        rows.to_parquet(unfinished, index=False)


def rows_of(found: Outcomes, *, seed: int) -> pd.DataFrame:
    """One row for each input and image: caption, CIDEr, ROUGE-L (points), words; for real betas the bits per caption.

    The bits of real betas are against those of another image, so no other input has any.
    """
    held_out, log2 = found.held_out, found.log2_probs
    n = len(held_out.trials)
    bits = evidence_per_image(log2["real"], log2["permuted"], found.tokens, n)
    parts = []
    for control, captions in found.captions.items():
        score = held_out.scorer.score(captions, seed=seed).per_image
        part = {
            "control": control,
            "subject": held_out.subject,
            "nsd_id": held_out.nsd_id,
            "n_repetitions": held_out.n_repetitions,
            "caption": captions,
            "cider": score.cider,
            "rouge_l": score.rouge_l,
            "length": [float(len(caption.split())) for caption in captions],
            "bits": bits if control == "real" else np.full(n, np.nan),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)
