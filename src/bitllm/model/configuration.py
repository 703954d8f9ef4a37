"""Configuration of a BIT-LLM in the Hugging Face convention (model_type ``bit_llm``)."""

from typing import Any, ClassVar, cast

from transformers import LlamaConfig, PreTrainedConfig

from bitllm.errors import ConfigError
from bitllm.model.interface import INTERFACES


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
        Decoder layers (0-based) that are followed by an adapter; the poster's {3, 7, 11, 15}.
    gate_start
        First value of the adapters' gates; 0 closes them (see `CrossAttentionAdapter`).
    prefix_hidden_width
        Hidden width of ``prefix_mlp``.
    brain_token_id
        Token whose places in the prompt the prefix interfaces fill; unused by ``cross_attention``.
    """

    model_type = "bit_llm"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": LlamaConfig}

    text_config: dict | PreTrainedConfig | None = None
    encoder: dict | None = None
    interface: str = "cross_attention"
    adapter_layers: list[int] | tuple[int, ...] = (3, 7, 11, 15)
    gate_start: float = 1.0
    prefix_hidden_width: int = 24576
    brain_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = LlamaConfig()
        elif isinstance(self.text_config, dict):
            self.text_config = LlamaConfig(**self.text_config)
        self.adapter_layers = list(self.adapter_layers)
        self.encoder = dict(self.encoder or {})
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(self, token, getattr(self.text_config, token))
        super().__post_init__(**kwargs)
        self._check()

    @property
    def llama(self) -> LlamaConfig:
        """The LLM's configuration, which is never a plain dictionary after `__post_init__`."""
        return cast(LlamaConfig, self.text_config)

    def _check(self) -> None:
        if self.llama.model_type != "llama":
            raise ConfigError(
                f"LLM: expected a checkpoint of model_type llama, found "
                f"{self.llama.model_type}; choose a Llama, e.g. Llama-3.2-3B-Instruct or SmolLM2"
            )
        if self.interface not in INTERFACES:
            raise ConfigError(f"interface: expected one of {', '.join(INTERFACES)}, found {self.interface!r}")
        depth = self.llama.num_hidden_layers
        layers = self.adapter_layers
        is_cross = self.interface == "cross_attention"
        if is_cross and (len(set(layers)) != len(layers) or any(not 0 <= layer < depth for layer in layers)):
            raise ConfigError(
                f"adapter_layers: expected different layers from 0 to {depth - 1} (the LLM has {depth}), "
                f"found {layers}"
            )
