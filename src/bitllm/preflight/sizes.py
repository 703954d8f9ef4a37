"""What a recipe says of the sizes of its networks; neither weights nor data are read."""

from typing import Any

from transformers import LlamaConfig

from bitllm.config import nearest
from bitllm.errors import ConfigError
from bitllm.model.configuration import BitLlmConfig
from bitllm.model.interface import matched_prefix_width
from bitllm.pipeline.recipe import Recipe


def encoder_arguments(recipe: Recipe) -> dict[str, Any]:
    """Arguments of `bitllm.model.encoder.BrainEncoder`.

    Raises
    ------
    ConfigError
        If the recipe gives no number of labels for an atlas of the encoder.
    """
    known = recipe.data.atlas_labels
    for atlas in recipe.encoder.atlases:
        if atlas not in known:
            raise ConfigError(
                f"data.atlas_labels: expected the number of labels of `{atlas}`, found none; "
                f"{nearest(atlas, list(known))}"
            )
    return recipe.encoder.sizes([known[atlas] for atlas in recipe.encoder.atlases])


def model_config(recipe: Recipe) -> BitLlmConfig:
    """Configuration of the model that sft builds.

    Raises
    ------
    ConfigError
        If the sizes of the LLM are unknown, or the parts do not fit one another.
    """
    llama = LlamaConfig(**recipe.llm.published_sizes().model_dump())
    hidden = recipe.sft.prefix_hidden_width or matched_prefix_width(
        llama, token_width=recipe.encoder.token_width, n_adapters=len(recipe.sft.adapter_layers)
    )
    return BitLlmConfig(
        text_config=llama,
        encoder=encoder_arguments(recipe),
        interface=recipe.sft.interface,
        adapter_layers=list(recipe.sft.adapter_layers),
        gate_start=recipe.sft.gate_start,
        prefix_hidden_width=hidden,
        brain_token_id=4,  # `<brain>` in dummy vocabularies; no parameter depends on it
    )
