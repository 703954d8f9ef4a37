"""A whole system as one file: the LLM's published sizes, the brain's, and the configuration of each stage.

The sizes stand in the file, so that neither weights nor data are needed to count parameters or to try a step.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import LlamaConfig

from bitllm.config import StrictConfig, nearest
from bitllm.errors import ConfigError
from bitllm.model.configuration import BitLlmConfig
from bitllm.model.interface import matched_prefix_width
from bitllm.stages.align import AlignConfig, EncoderConfig
from bitllm.stages.rft import RftConfig
from bitllm.stages.sft import SftConfig


class LlmSizes(StrictConfig):
    """The part of a Llama's ``config.json`` that decides its parameters."""

    model_type: str = "llama"
    """Architecture; only llama is understood."""
    vocab_size: int = Field(gt=0)
    """Number of tokens."""
    hidden_size: int = Field(gt=0)
    """Width of the hidden states."""
    intermediate_size: int = Field(gt=0)
    """Width of the feed-forward layers."""
    num_hidden_layers: int = Field(gt=0)
    """Decoder layers."""
    num_attention_heads: int = Field(gt=0)
    """Query heads."""
    num_key_value_heads: int = Field(gt=0)
    """Key and value heads."""
    head_dim: int | None = Field(default=None, gt=0)
    """Width of a head; hidden_size / num_attention_heads where it is not given."""
    tie_word_embeddings: bool = True
    """Whether input embeddings and language head are one matrix."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """ε of the norms."""


class LlmPlan(StrictConfig):
    """The base LLM."""

    name: str
    """Hub id or folder that training will load."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    sizes: LlmSizes
    """Its published sizes."""


class SystemConfig(StrictConfig):
    """Everything that decides what a system costs."""

    llm: LlmPlan
    """The base LLM."""
    voxels: dict[str, int]
    """Number of voxels of each subject."""
    atlas_labels: dict[str, int]
    """Largest label of each atlas."""
    embedding_width: int = Field(gt=0)
    """Width of the CLIP embeddings that align learns."""
    encoder: EncoderConfig = EncoderConfig()
    """The brain encoder."""
    align: AlignConfig = AlignConfig()
    """Stage 1."""
    sft: SftConfig = SftConfig()
    """Stage 2; holds the interface."""
    rft: RftConfig = RftConfig()
    """Stage 3."""

    def encoder_arguments(self) -> dict[str, Any]:
        """Arguments of `bitllm.model.encoder.BrainEncoder`.

        Raises
        ------
        ConfigError
            If an atlas of the encoder has no number of labels.
        """
        for atlas in self.encoder.atlases:
            if atlas not in self.atlas_labels:
                raise ConfigError(
                    f"atlas_labels: expected the number of labels of `{atlas}`, found none; "
                    f"{nearest(atlas, list(self.atlas_labels))}"
                )
        return self.encoder.sizes([self.atlas_labels[atlas] for atlas in self.encoder.atlases])

    def model_config_of(self) -> BitLlmConfig:
        """The configuration of the model that sft builds."""
        sizes = self.llm.sizes
        if sizes.model_type != "llama":
            raise ConfigError(
                f"llm.sizes.model_type: expected llama, found {sizes.model_type}; choose a Llama, e.g. "
                "Llama-3.2-3B-Instruct or SmolLM2"
            )
        llama = LlamaConfig(**sizes.model_dump(exclude={"model_type"}))
        hidden = self.sft.prefix_hidden_width or matched_prefix_width(
            llama, token_width=self.encoder.token_width, n_adapters=len(self.sft.adapter_layers)
        )
        return BitLlmConfig(
            text_config=llama,
            encoder=self.encoder_arguments(),
            interface=self.sft.interface,
            adapter_layers=list(self.sft.adapter_layers),
            gate_start=self.sft.gate_start,
            prefix_hidden_width=hidden,
            brain_token_id=4,  # `<brain>` in made-up vocabularies; no parameter depends on it
        )


def read_system_config(path: Path) -> SystemConfig:
    """Read a system's configuration and check that its parts fit one another.

    Raises
    ------
    ConfigError
        If the file is not one, or a part does not fit.
    """
    config = SystemConfig.read(path)
    if not config.voxels or min(config.voxels.values()) < 1:
        raise ConfigError(
            f"{path}: `voxels`: expected at least one subject with voxels, found {config.voxels}"
        )
    try:
        with torch.device("meta"):
            config.model_config_of()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config
