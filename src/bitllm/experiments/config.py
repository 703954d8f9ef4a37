"""One experiment: its question, the systems that differ in one thing, its worlds, and the claims with their rule."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bitllm.config import StrictConfig, nearest, read_yaml
from bitllm.errors import ConfigError
from bitllm.experiments.recipe import QUICK, RECIPES, Recipe, changed, read_recipe
from bitllm.experiments.verdict import ENCODER_MEASURES, MEASURED_UNDER, Arm, Claim
from bitllm.files import require_plain_name
from bitllm.simulation.parameters import preset
from bitllm.stages.align import EncoderConfig
from bitllm.stages.rft import RftConfig
from bitllm.stages.sft import SftConfig

CONFIG = "config.yaml"


class SplitChanges(StrictConfig):
    """What a system changes of the poster's split (train on all subjects but the last, test the last)."""

    held_out: str | None = None
    """Subject that is tested; all others train."""
    n_train_subjects: int | None = Field(default=None, gt=0)
    """Number of training subjects: the first ones."""
    training_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training images that is used."""
    n_shots: int | None = Field(default=None, gt=0)
    """Number of trials of the held-out subject, on images of its own, that join the training (about as many)."""
    # what came later is told only where it is set, so that records from before it stay valid
    n_shots_alone: int | None = Field(default=None, gt=0, exclude_if=lambda n: n is None)
    """Number of such trials that are learnt from alone, by a system that goes on from another."""


class SystemConfig(StrictConfig):
    """One system: what it changes of the recipe that all systems have in common."""

    encoder: Literal["aligned", "random", "trained"] = "aligned"
    """The encoder: frozen after stage 1, frozen as it starts, or trained with the interface by captioning."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Changes of the sft stage."""
    after: str | None = None
    """For a system of rft: the system whose sft it starts from."""
    goes_on: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """For a system of sft: the system whose sft it goes on from, on a split of its own."""
    rft: dict[str, Any] = Field(default_factory=dict)
    """Changes of the rft stage."""
    reward_references: Literal["own", "permuted"] = "own"
    """Whose references and picture the reward looks at: the image's own, or (as a check) another's."""
    simulation: dict[str, float] = Field(default_factory=dict)
    """Changes of the simulated brain; pictures and captions are those of the unchanged one."""
    coordinates: Literal["mni", "indices"] = "mni"
    """What the encoder knows of a voxel's place: MNI coordinates, or its indices in its subject's own volume."""
    split: SplitChanges = SplitChanges()
    """Changes of the split."""
    sizes: dict[str, Any] = Field(default_factory=dict)
    """Changes of the encoder's configuration."""
    averaged: bool = True
    """Whether the held-out subject's repetitions are averaged, or each image has its first trial alone."""
    rate_of: str | None = None
    """System whose chosen learning rate it takes, where it is not tried with all."""
    learning_rates: tuple[float, ...] | None = Field(
        default=None, min_length=1, exclude_if=lambda rates: rates is None
    )
    """Learning rates that it is tried with, instead of the recipe's."""

    @property
    def start(self) -> str | None:
        """The system that it starts from, for rft or to go on."""
        return self.after or self.goes_on

    @property
    def idle(self) -> list[str]:
        """What is set but changes nothing: data and encoder are those of the system that it starts from."""
        unread: tuple[str, ...] = () if self.rate_of is None else ("learning_rates",)
        unread += ("rft", "reward_references") if self.after is None else ("split", "sft")
        if self.start is not None:
            unread += ("encoder", "simulation", "coordinates", "sizes")
        usual = SystemConfig()
        return [key for key in unread if getattr(self, key) != getattr(usual, key)]


class ExperimentConfig(StrictConfig):
    """Everything that decides an experiment."""

    question: str
    """The question in one sentence."""
    recipe: Recipe
    """What all systems have in common."""
    simulator_seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of the simulated brains."""
    model_seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of the models; every brain meets every one."""
    diagnostics: bool = False
    """Whether the encoders of all sft systems are judged by themselves: retrieval, cosine of real and zero betas."""
    systems: dict[str, SystemConfig]
    """The systems, by name."""
    claims: tuple[Claim, ...]
    """What is claimed, and the rule of its verdict."""
    along: dict[str, float] = Field(default_factory=dict)
    """For a question about an amount: the amount of each system, for the figure."""
    unit: str = ""
    """What that amount is."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "ExperimentConfig":
        for key in ("simulator_seeds", "model_seeds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"`{key}` holds a seed twice")
        names = list(self.systems)
        for name, system in self.systems.items():
            require_plain_name(name, "systems", "a system", error=ValueError)
            for before in (system.after, system.goes_on, system.rate_of):
                if before is not None and names.index(name) <= _place(names, before):
                    raise ValueError(f"system {name} comes after {before}, which must stand above it")
            if (system.goes_on is None) != (system.split.n_shots_alone is None):
                raise ValueError(f"system {name}: expected goes_on and split.n_shots_alone together")
            if system.start is not None and self.systems[system.start].start is not None:
                raise ValueError(
                    f"system {name} starts from {system.start}, which must start from an encoder"
                )
            if idle := system.idle:
                raise ValueError(f"system {name}: {', '.join(idle)} would change nothing; leave it out")
            self.sft_of(name)
            self.rft_of(name)
            self.sizes_of(name)
            preset(self.recipe.preset).changed(**system.simulation)
        for claim in self.claims:
            for arm in (claim.more, claim.less):
                _place(names, arm.system)
                self._require_measured(arm, claim.measure)
        for name in self.along:
            _place(names, name)
        return self

    def _require_measured(self, arm: Arm, measure: str) -> None:
        """Refuse a claim that no run could answer: a rule cannot be changed once there are results."""
        inputs = ("real", "permuted", "llm_alone", *self.recipe.controls)
        if arm.control not in inputs:
            raise ValueError(f"a claim needs the control {arm.control}; {nearest(arm.control, list(inputs))}")
        measured = MEASURED_UNDER.get(measure, inputs)
        if arm.control not in measured:
            raise ValueError(
                f"a claim needs {measure} of {arm}, which is measured for {', '.join(measured)} alone"
            )
        of_encoder = measure in ENCODER_MEASURES
        if of_encoder and not (self.diagnostics and self.systems[arm.system].start is None):
            raise ValueError(
                f"a claim needs {measure} of {arm}, which `diagnostics: true` measures, of systems that start from an "
                "encoder"
            )

    def sft_of(self, name: str, learning_rate: float | None = None) -> SftConfig:
        """The sft stage of a system, with a learning rate."""
        system = self.systems[name]
        changes = system.sft | ({"encoder": "trained"} if system.encoder == "trained" else {})
        return _with_rate(changed(self.recipe.sft, changes, f"system {name}, sft"), learning_rate)

    def rft_of(self, name: str, learning_rate: float | None = None) -> RftConfig:
        """The rft stage of a system, with a learning rate."""
        return _with_rate(
            changed(self.recipe.rft, self.systems[name].rft, f"system {name}, rft"), learning_rate
        )

    def sizes_of(self, name: str) -> EncoderConfig:
        """The encoder's configuration of a system."""
        sizes: EncoderConfig = changed(self.recipe.encoder, self.systems[name].sizes, f"system {name}, sizes")
        return sizes

    def rates_of(self, name: str) -> tuple[float, ...]:
        """Learning rates that a system is tried with; none where it takes another's."""
        return () if self.systems[name].rate_of is not None else self.grid_of(name)

    def grid_of(self, name: str) -> tuple[float, ...]:
        """The learning rates of a system, or of its stage."""
        if (own := self.systems[name].learning_rates) is not None:
            return own
        is_sft = self.systems[name].after is None
        return self.recipe.learning_rates if is_sft else self.recipe.rft_learning_rates

    @property
    def worlds(self) -> tuple[tuple[int, int], ...]:
        """Simulator seed and model seed of every world: all brains with the first model seed, then with the next."""
        return tuple((brain, models) for models in self.model_seeds for brain in self.simulator_seeds)


def _with_rate(config: Any, learning_rate: float | None) -> Any:
    if learning_rate is None:
        return config
    optimizer = config.optimizer.model_copy(update={"learning_rate": learning_rate})
    return config.model_copy(update={"optimizer": optimizer})


def _place(names: list[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"no system {name}; {nearest(name, names)}")
    return names.index(name)


def read_experiment(name: str, folder: Path, *, is_quick: bool = False) -> ExperimentConfig:
    """The configuration of a named experiment in the folder of all experiments.

    Parameters
    ----------
    is_quick
        The same systems and claims in one tiny world, with few steps and one learning rate: its numbers mean nothing.

    Raises
    ------
    ConfigError
        If there is no such folder or no such experiment, or its configuration is wrong.
    """
    path, values = _read_values(name, folder)
    full = values | {"recipe": read_recipe(folder, values["recipe"]).model_dump()}
    config = ExperimentConfig.parse(full, source=str(path))
    if not is_quick:
        return config
    values["recipe"] = read_recipe(folder, QUICK).model_dump()
    values |= {key: values[key][:1] for key in ("simulator_seeds", "model_seeds")}
    values["systems"] = {system: _quick_system(changes) for system, changes in values["systems"].items()}
    return ExperimentConfig.parse(values, source=str(path))


def read_experiments(
    names: tuple[str, ...], folder: Path, *, is_quick: bool
) -> tuple[str, dict[str, ExperimentConfig]]:
    """The recipe that some experiments share, by name, and their configurations; ``all``: those of the recipe small.

    Raises
    ------
    ConfigError
        If none is named, or they have different recipes.
    """
    known = experiment_names(folder)
    if names == ("all",):
        names = tuple(name for name in known if _read_values(name, folder)[1]["recipe"] == "small")
    if not names:
        raise ConfigError(
            f"reproduce: expected experiments ({', '.join(known)}) or all, found none; name one"
        )
    recipes = {name: _read_values(name, folder)[1]["recipe"] for name in names}
    if len(set(recipes.values())) > 1 and not is_quick:
        found = ", ".join(f"{name} ({recipe})" for name, recipe in recipes.items())
        raise ConfigError(
            f"reproduce: expected experiments of one recipe, found {found}; run them one by one"
        )
    configs = {name: read_experiment(name, folder, is_quick=is_quick) for name in names}
    return QUICK if is_quick else next(iter(recipes.values())), configs


def _read_values(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    names = experiment_names(folder)
    if name not in names:
        raise ConfigError(
            f"reproduce: expected an experiment of {folder} ({', '.join(names)}), found `{name}`; "
            f"{nearest(name, names)}"
        )
    path = Path(folder) / name / CONFIG
    values = read_yaml(path)
    if not isinstance(values.get("recipe"), str):
        raise ConfigError(
            f"{path}: expected the name of a recipe, found {values.get('recipe')!r}; name one of {RECIPES}/"
        )
    return path, values


def _quick_system(system: dict[str, Any]) -> dict[str, Any]:
    """A system that fits the quick recipe: an LLM of two layers, few trials of a subject."""
    system = {key: dict(value) if isinstance(value, dict) else value for key, value in system.items()}
    if "adapter_layers" in system.get("sft", {}):
        system["sft"]["adapter_layers"] = [0]
    for key in {"n_shots", "n_shots_alone"} & system.get("split", {}).keys():
        system["split"][key] //= 10
    return system


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
