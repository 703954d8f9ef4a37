"""Configuration of a BIT-LLM in the Hugging Face convention (model_type ``bit_llm``)."""

import copy
from typing import Any, ClassVar, cast, no_type_check

from transformers import LlamaConfig, PreTrainedConfig

from bitllm.errors import ConfigError
from bitllm.model.interface import INTERFACES

ADAPTER_STARTS = ("random", "self_attention")


@no_type_check  # saved configurations have more keys than fields, which the type checker of the tests would refuse
class BitLlmConfig(PreTrainedConfig):
    """A Llama, a brain encoder and the interface between them.

    Attributes
    ----------
    text_config
        The LLM's own configuration (any ``model_type`` llama).
    encoder
        Arguments of `bitllm.model.encoder.BrainEncoder`.
    interface
        ``cross_attention``, ``prefix`` or ``prefix_mlp``.
    adapter_layers
        Decoder layers (0-based) that are followed by an adapter; by default those of the poster.
    gate_start
        Initial value of the gates; 0 closes the adapters (see `CrossAttentionAdapter`).
    adapter_start
        Initial norm, query, key and value of the adapters: ``random``, or copies of the layer's ``self_attention``.
    prefix_hidden_width
        Hidden width of ``prefix_mlp``.
    brain_token_id
        Token in the prompt that the prefix interfaces replace by brain tokens; unused by ``cross_attention``.
    base_llm
        Name, revision and sha256 of the base LLM if the checkpoint does not contain it, else None.
    """

    model_type = "bit_llm"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": LlamaConfig}

    text_config: dict | PreTrainedConfig | None = None
    encoder: dict | None = None
    interface: str = "cross_attention"
    adapter_layers: list[int] | tuple[int, ...] = (3, 7, 11, 15)
    gate_start: float = 1.0
    adapter_start: str = "random"
    prefix_hidden_width: int = 24576
    brain_token_id: int | None = None
    base_llm: dict | None = None
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = LlamaConfig()
        elif isinstance(self.text_config, dict):
            self.text_config = LlamaConfig(**self.text_config)
        else:  # a copy, because transformers modifies it (dtype, attention) and the caller's LLM uses the original
            self.text_config = copy.deepcopy(self.text_config)
        self.text_config._name_or_path = ""  # a path of this machine; `base_llm` names the LLM
        self.adapter_layers = list(self.adapter_layers)
        self.encoder = dict(self.encoder or {})
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(self, token, getattr(self.text_config, token))
        super().__post_init__(**kwargs)
        self._check()

    @property
    def llama(self) -> LlamaConfig:
        """``text_config`` with its type: `__post_init__` has replaced dictionaries."""
        return cast(LlamaConfig, self.text_config)

    def _check(self) -> None:
        if self.llama.model_type != "llama":
            raise ConfigError(
                f"LLM: expected a checkpoint of model_type llama, found "
                f"{self.llama.model_type}; choose a Llama, e.g. Llama-3.2-3B-Instruct or SmolLM2"
            )
        if self.interface not in INTERFACES:
            raise ConfigError(
                f"interface: expected one of {', '.join(INTERFACES)}, found {self.interface!r}; choose one"
            )
        if self.adapter_start not in ADAPTER_STARTS:
            raise ConfigError(
                f"adapter_start: expected one of {', '.join(ADAPTER_STARTS)}, found {self.adapter_start!r}; choose one"
            )
        depth = self.llama.num_hidden_layers
        layers = self.adapter_layers
        is_cross = self.interface == "cross_attention"
        if is_cross and (len(set(layers)) != len(layers) or any(not 0 <= layer < depth for layer in layers)):
            raise ConfigError(
                f"adapter_layers: expected different layers from 0 to {depth - 1} (the LLM has {depth}), "
                f"found {layers}; change them"
            )
