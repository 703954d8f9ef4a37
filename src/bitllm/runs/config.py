"""The configuration of a run: where the data and the models are, the three stages, and how they are run."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from bitllm.config import StrictConfig, parse_yaml, read_yaml
from bitllm.errors import ConfigError
from bitllm.stages.align import AlignConfig, EncoderConfig
from bitllm.stages.rft import RftConfig
from bitllm.stages.sft import SftConfig
from bitllm.training.loop import TrainerSettings


class RunConfig(StrictConfig):
    """Everything that `bitllm train` needs to know."""

    run: Path
    """Folder of the run; each stage has a folder in it."""
    store: Path
    """What `bitllm prepare` wrote."""
    split: str = "poster"
    """Name of a preset, or the file of `bitllm split`."""
    llm: str
    """Base LLM: folder, GGUF file or hub id of a Llama."""
    clip: str
    """CLIP whose space align aims at and IP rewards: folder or hub id."""
    targets: Path | None = None
    """CLIP's embeddings of the store's pictures and captions; made in the run's folder where it is not given."""
    bertscore: str | None = None
    """Encoder of the BERTScore reward: folder or hub id; needed unless its weight is 0."""
    encoder_from: Literal["align", "random"] = "align"
    """Encoder that sft starts from: that of the align stage, or an untrained one as a baseline."""
    seed: int = Field(default=0, ge=0)
    """Of everything."""
    encoder: EncoderConfig = EncoderConfig()
    """The brain encoder."""
    align: AlignConfig = AlignConfig()
    """Stage 1."""
    sft: SftConfig = SftConfig()
    """Stage 2; holds the interface."""
    rft: RftConfig = RftConfig()
    """Stage 3."""
    how: TrainerSettings = TrainerSettings(if_changed="refuse")
    """How the stages are run: checkpoints, processes, trackers."""


def read_run_config(path: Path, changes: list[str]) -> RunConfig:
    """Read a run's configuration and change some of its values.

    Parameters
    ----------
    path
        YAML file; relative paths in it are taken from where the command runs.
    changes
        ``key=value`` each, the key with dots (``sft.optimizer.steps=100``), the value in YAML.

    Raises
    ------
    ConfigError
        If the file or a change is not valid; a wrong key is answered with the nearest valid one.
    """
    values = read_yaml(path, is_written=True)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {change}: expected KEY=VALUE, found no `=`; e.g. --set sft.optimizer.steps=100"
            )
        try:
            _put(values, key.split("."), parse_yaml(value, f"--set {change}"))
        except (TypeError, yaml.YAMLError):
            raise ConfigError(
                f"--set {change}: expected the key of one value, as in --set sft.optimizer.steps=100"
            ) from None
    return RunConfig.parse(values, source=f"{path} with --set" if changes else str(path))


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value
