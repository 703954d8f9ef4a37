"""Configuration of an experiment: a question, the systems that answer it, the worlds, and the claims with their rule.

The systems are changes of one recipe (`experiments/recipes/NAME.yaml`), written like the variants of a recipe.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bitllm.config import StrictConfig, nearest, read_yaml
from bitllm.data.tasks.mixture import tasks_with_questions
from bitllm.errors import ConfigError
from bitllm.experiments.verdict import (
    CAPTION_MEASURES,
    ENCODER_MEASURES,
    MEASURED_UNDER,
    TYPE_OF_TASK,
    Arm,
    Claim,
)
from bitllm.files import require_plain_name
from bitllm.pipeline.recipe import Recipe, Variant, merged, read_recipe

CONFIG, RECIPES, SECONDS = "config.yaml", "recipes", "seconds.yaml"
QUICK = "quick"

Control = Literal["zero", "shuffle", "noise", "other_subject"]


class SystemConfig(Variant):
    """One system: its changes of the recipe, or of the system that it starts from."""

    data: dict[str, Any] = Field(default_factory=dict)
    """Changed settings of the data: simulated signal, coordinates, split."""
    encoder: dict[str, Any] = Field(default_factory=dict)
    """Changed settings of the encoder."""
    averaged: bool = True
    """Whether the test subject's repetitions are averaged; otherwise only the first trial of each image is used."""
    transport: bool = Field(default=False, exclude_if=lambda moves: not moves)
    """Whether the pooled betas of the test subject are moved onto the distribution of the training subjects."""
    rate_of: str | None = None
    """System whose learning rate this one uses instead of its own choice."""
    learning_rates: tuple[float, ...] | None = Field(default=None, min_length=1)
    """Learning rates to choose from, instead of the experiment's."""

    @property
    def parent(self) -> str | None:
        """The sft system that this one starts from."""
        return None if self.start in (None, "align", "random") else self.start

    @property
    def without_effect(self) -> list[str]:
        """Settings that would change nothing."""
        unread = ["learning_rates"] if self.rate_of is not None else []
        unread += [] if self.rft is None else ["data", "sft"]
        unread += [] if self.parent is None else ["encoder"]
        return [key for key in unread if getattr(self, key)]


class ExperimentConfig(StrictConfig):
    """Everything that determines an experiment."""

    question: str
    """The question in one sentence."""
    recipe: Recipe
    """The recipe that the systems change."""
    simulator_seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of the simulated brains."""
    model_seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of the models; each is used on every brain."""
    learning_rates: tuple[float, ...] = Field(default=(0.001, 0.003, 0.01, 0.03), min_length=1)
    """Learning rates of sft to choose from for each system."""
    rft_learning_rates: tuple[float, ...] = Field(default=(0.0001, 0.0003, 0.001), min_length=1)
    """Learning rates of rft to choose from for each system."""
    controls: tuple[Control, ...] = ("zero", "shuffle", "noise")
    """Controls in addition to permuted betas and the LLM alone, which are always run."""
    diagnostics: bool = False
    """Whether the encoders of the sft systems are evaluated alone: retrieval, cosine of real and zero betas."""
    verified: bool = False
    """Whether captions are also compared with the image: F1 of the named objects, retrieval of the image by a CLIP that
    no system was trained with. Systems with an aligned encoder then have the input ``nearest``: the caption of the
    training image with the nearest brain embedding."""
    systems: dict[str, SystemConfig]
    """The systems, by name."""
    claims: tuple[Claim, ...]
    """The claims with the rule of their verdict."""
    along: dict[str, float] = Field(default_factory=dict)
    """For a question about an amount: the amount of each system, for the figure."""
    unit: str = ""
    """Name and unit of that amount."""
    seconds: dict[str, float] = Field(default_factory=dict, exclude=True)
    """Time of each kind of step in one process, for estimates."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "ExperimentConfig":
        for key in ("simulator_seeds", "model_seeds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"`{key}`: expected each seed once, found one twice; remove one")
        names = list(self.systems)
        for place, (name, system) in enumerate(self.systems.items()):
            require_plain_name(name, "systems", "a system", error=ValueError)
            for above in (system.parent, system.rate_of):
                if above is not None and place <= _place(names, above):
                    raise ValueError(
                        f"`systems.{name}`: expected {above} above it, found it below; move it up"
                    )
            if system.parent is not None and self.systems[system.parent].parent is not None:
                raise ValueError(
                    f"`systems.{name}.start`: expected a system that starts from an encoder, found "
                    f"`{system.parent}`; name another"
                )
            if system.rft is not None and system.parent is None:
                raise ValueError(
                    f"`systems.{name}.start`: expected a system of sft to start rft from, found none; name one"
                )
            if idle := system.without_effect:
                raise ValueError(
                    f"`systems.{name}`: expected changed values, found {', '.join(idle)} as before; leave it out"
                )
            self.recipe_of(name)
        for claim in self.claims:
            for arm in (claim.more, claim.less):
                _place(names, arm.system)
                self._require_measured(arm, claim)
        for name in self.along:
            _place(names, name)
        return self

    def _require_measured(self, arm: Arm, claim: Claim) -> None:
        """Refuse a claim that no run can answer, because rules must not be changed after results."""
        measure, asked = claim.measure, self.tasks_of(arm.system)
        if claim.task is not None and claim.task.partition(TYPE_OF_TASK)[0] not in asked:
            raise ValueError(
                f"`claims`: expected a task that {arm.system} is trained on ({', '.join(asked) or 'none'}), found "
                f"`{claim.task}`; give it a weight in `sft.tasks`"
            )
        if measure in CAPTION_MEASURES and not self.verified:
            raise ValueError(f"`claims`: expected `verified: true` for {measure}, found none; add it")
        has_nearest = self.verified and self.systems[arm.system].start in (None, "align")
        inputs = ("real", "permuted", "llm_alone", *self.controls, *(["nearest"] if has_nearest else []))
        if len(arm.inputs) > 2 or (len(arm.inputs) == 2 and measure == "bleu_4"):
            raise ValueError(
                f"`claims`: expected a number of each image, found {measure} of {arm}; choose another"
            )
        measured = MEASURED_UNDER.get(measure, inputs)
        for one in arm.inputs:
            if one not in inputs:
                raise ValueError(
                    f"`claims`: expected a control of the experiment, found `{one}`; {nearest(one, list(inputs))}"
                )
            if one not in measured:
                raise ValueError(
                    f"`claims`: expected {measure} under one of {', '.join(measured)}, found {arm}; choose another"
                )
        of_encoder = measure in ENCODER_MEASURES
        if of_encoder and not (self.diagnostics and self.systems[arm.system].parent is None):
            raise ValueError(
                f"`claims`: expected {measure} of a system that starts from an encoder, with `diagnostics: true`, "
                f"found {arm}; change one of them"
            )

    def changes_of(self, name: str) -> dict[str, dict[str, Any]]:
        """Changed settings of a system and of its parents, by part of the recipe."""
        system = self.systems[name]
        own = {"data": system.data, "encoder": system.encoder, "sft": system.sft, "rft": system.rft or {}}
        above = {} if system.parent is None else self.changes_of(system.parent)
        return merged(above, {part: changes for part, changes in own.items() if changes})

    def recipe_of(self, name: str) -> Recipe:
        """The recipe of a system."""
        return Recipe.parse(merged(self.recipe.model_dump(), self.changes_of(name)), source=f"systems.{name}")

    def tasks_of(self, name: str) -> tuple[str, ...]:
        """Tasks of questions that a system is trained on."""
        return tasks_with_questions(self.recipe_of(name).sft.tasks)

    def asked_of(self, name: str) -> tuple[str, ...]:
        """What a system is asked: its tasks, and the types of questions that claims name."""
        tasks = self.tasks_of(name)
        named = (claim.task for claim in self.claims if claim.task is not None)
        types = [task for task in named if TYPE_OF_TASK in task and task.partition(TYPE_OF_TASK)[0] in tasks]
        return tuple(dict.fromkeys([*tasks, *types]))

    def grid_of(self, name: str) -> tuple[float, ...]:
        """Learning rates to try for a system; a system that takes another's rate has those of its stage."""
        system = self.systems[name]
        if system.learning_rates is not None:
            return system.learning_rates
        return self.learning_rates if system.rft is None else self.rft_learning_rates

    @property
    def worlds(self) -> tuple[tuple[int, int], ...]:
        """Simulator seed and model seed of each world: all brains with the first model seed, then with the next."""
        return tuple((brain, models) for models in self.model_seeds for brain in self.simulator_seeds)

    def first(self, brains: int | None, models: int | None) -> "ExperimentConfig":
        """The same experiment with only its first brains and model seeds; None for all."""
        seeds = {
            "simulator_seeds": _first(self.simulator_seeds, brains, "--seeds"),
            "model_seeds": _first(self.model_seeds, models, "--model-seeds"),
        }
        return self.model_copy(update=seeds)


def _first(seeds: tuple[int, ...], n: int | None, option: str) -> tuple[int, ...]:
    if n is not None and not 1 <= n <= len(seeds):
        raise ConfigError(
            f"reproduce: expected {option} of 1 to {len(seeds)}, the seeds of the configuration, found {n}; change it"
        )
    return seeds[:n]


def _place(names: list[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"expected a system of the experiment, found `{name}`; {nearest(name, names)}")
    return names.index(name)


def read_experiment(name: str, folder: Path, *, is_quick: bool = False) -> ExperimentConfig:
    """Read the configuration of an experiment by name.

    Parameters
    ----------
    is_quick
        Whether to read the quick version: the same systems and claims in one tiny world, with few steps.
    """
    path, values = _read_values(name, folder)
    full = ExperimentConfig.parse(values | _recipe(values["recipe"], folder), source=str(path))
    return _quick(values, path, folder) if is_quick else full


def _quick(values: dict[str, Any], path: Path, folder: Path) -> ExperimentConfig:
    small = {key: values[key][:1] for key in ("simulator_seeds", "model_seeds")}
    grids = {"learning_rates": (0.003, 0.01), "rft_learning_rates": (0.001,)}
    values = {key: value for key, value in values.items() if key != "controls"} | small | grids
    values["systems"] = {name: _quick_system(system) for name, system in values["systems"].items()}
    tasks, parts = _recipe(values["recipe"], folder)["recipe"].sft.tasks, _recipe(QUICK, folder)
    asked = merged(parts["recipe"].model_dump(), {"sft": {"tasks": tasks}})
    parts["recipe"] = Recipe.parse(asked, source=QUICK)
    return ExperimentConfig.parse(values | parts, source=str(path))


def _quick_system(system: dict[str, Any]) -> dict[str, Any]:
    """A system that fits the quick recipe: an LLM of two layers, few trials of a subject, few steps."""
    sft, data = dict(system.get("sft", {})), dict(system.get("data", {}))
    if "adapter_layers" in sft:
        sft["adapter_layers"] = [0]
    if "steps" in sft.get("optimizer", {}):
        sft["optimizer"] = sft["optimizer"] | {"steps": min(sft["optimizer"]["steps"] // 10, 40)}
    for key in {"n_shots", "n_shots_alone"} & data.keys():
        data[key] //= 10
    return system | {"sft": sft, "data": data}


def _recipe(name: str, folder: Path) -> dict[str, Any]:
    """The recipe with a name, and the measured times of its steps."""
    seconds = Path(folder) / SECONDS
    return {
        "recipe": read_recipe(str(Path(folder) / RECIPES / f"{name}.yaml")),
        "seconds": read_yaml(seconds).get(name, {}) if seconds.exists() else {},
    }


def read_experiments(
    names: tuple[str, ...], folder: Path, *, is_quick: bool
) -> tuple[str, dict[str, ExperimentConfig]]:
    """Name of the common recipe, and configurations of the experiments; ``all`` is every one of recipe small."""
    known = experiment_names(folder)
    if names == ("all",):
        names = tuple(name for name in known if _read_values(name, folder)[1]["recipe"] == "small")
    if not names:
        raise ConfigError(
            f"reproduce: expected experiments ({', '.join(known)}) or all, found none; name one"
        )
    recipes = {name: _read_values(name, folder)[1]["recipe"] for name in names}
    configs = {name: read_experiment(name, folder, is_quick=is_quick) for name in names}
    if any(config.recipe != configs[names[0]].recipe for config in configs.values()):
        found = ", ".join(f"{name} ({recipe})" for name, recipe in recipes.items())
        raise ConfigError(
            f"reproduce: expected experiments of one recipe, found {found}; run them one by one"
        )
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


def experiment_names(folder: Path) -> list[str]:
    """Names of the experiments in a folder."""
    names = sorted(path.parent.name for path in Path(folder).glob(f"*/{CONFIG}"))
    if not names:
        raise ConfigError(
            f"{folder}: expected a folder with experiments (NAME/{CONFIG}), found none; run this in the project's "
            "own folder, or name the folder with --experiments"
        )
    return names
