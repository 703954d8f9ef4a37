"""BIT-LLM: a frozen Llama that reads brain tokens at every decoding step.

Parameters of the base LLM have their original names, so any Llama checkpoint loads; adapters add keys. The brain
memory is computed once per input and is an argument of every ``forward``.

References
----------
The poster, "BIT-LLM: persistent neural access via interleaved cross-attention".
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from bitllm.errors import ConfigError, DataError
from bitllm.model.adapter import BitLlmTextModel
from bitllm.model.checkpoint.loading import ExactCheckpoints
from bitllm.model.configuration import BitLlmConfig
from bitllm.model.encoder import BrainEncoder
from bitllm.model.interface import BrainInterface
from bitllm.model.precision import float32_parameters
from bitllm.model.voxels import Anatomy, FourierPositions

_BRAIN_ARGUMENTS = (
    "betas",
    "subject_index",
    "anatomy",
    "coords_mm",
    "atlas_labels",
    "voxel_mask",
    "brain_tokens",
)


class BitLlmPreTrainedModel(ExactCheckpoints):
    """Loading, saving and initialization of all BIT-LLM models."""

    config_class = BitLlmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BitLlmDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # coordinates in mm need more than the 8 bits of bfloat16's mantissa, and small updates of trained weights too
    _keep_in_fp32_modules_strict = ["encoder", "interface", "adapter"]

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None, **kw: Any
    ) -> None:
        """Recompute activations in the backward pass, which must not be re-entrant."""
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ConfigError(
                "gradient checkpointing: expected use_reentrant=False, found True; leave it out: the re-entrant kind "
                "computes no gradient of the brain memory"
            )
        # Re-entrant checkpointing drops gradients of keyword arguments, and the brain memory is one.
        super().gradient_checkpointing_enable({"use_reentrant": False}, **kw)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BrainEncoder | FourierPositions):
            module.reset_parameters()
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.5 * module.embedding_dim**-0.5)
        else:
            super()._init_weights(module)


class BitLlmModel(BitLlmPreTrainedModel):
    """Encoder, interface and language model.

    Notes
    -----
    Legend: B inputs, T text tokens, N brain tokens, d the LLM's width.
    """

    def __init__(self, config: BitLlmConfig) -> None:
        super().__init__(config)
        encoder = dict(config.encoder or {})
        is_cross = config.interface == "cross_attention"
        with float32_parameters():
            self.encoder = BrainEncoder(**{**encoder, "n_labels": tuple(encoder["n_labels"])})
            self.interface = BrainInterface(
                config.llama,
                interface=config.interface,
                token_width=self.encoder.token_width,
                n_adapters=len(config.adapter_layers),
                prefix_hidden_width=config.prefix_hidden_width,
            )
        self.language_model = BitLlmTextModel(
            config.llama,
            adapter_layers=list(config.adapter_layers) if is_cross else [],
            gate_start=config.gate_start,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value  # type: ignore[assignment]

    def brain_memory(
        self,
        betas: Float[Tensor, "B betas"] | None = None,
        subject_index: Int[Tensor, " trials"] | None = None,
        anatomy: Anatomy | None = None,
        coords_mm: Float[Tensor, "S V 3"] | None = None,
        atlas_labels: Int[Tensor, "S W A"] | None = None,
        voxel_mask: Bool[Tensor, "S V"] | None = None,
        brain_tokens: Float[Tensor, "B N width"] | None = None,
    ) -> Float[Tensor, "B ..."] | None:
        """The tensor that the LLM reads: from brain tokens if they are given, else from betas; None without either.

        Betas need their anatomy, as one object or as its three tensors (which a data loader can move to another
        device). Without ``subject_index`` all trials belong to the first subject.
        """
        if brain_tokens is None and betas is not None:
            if anatomy is None:
                if coords_mm is None or atlas_labels is None:
                    raise DataError(
                        "betas: expected the anatomy of their voxels with them, found none; give anatomy="
                    )
                real = torch.ones(coords_mm.shape[:2], dtype=torch.bool, device=betas.device)
                anatomy = Anatomy(coords_mm, atlas_labels, real if voxel_mask is None else voxel_mask)
            if subject_index is None:
                subject_index = torch.zeros(betas.shape[0], dtype=torch.long, device=betas.device)
            # without autocast, so that brain tokens do not depend on the precision of the LLM
            with torch.autocast(betas.device.type, enabled=False):
                brain_tokens = self.encoder(betas, subject_index, anatomy)
        return None if brain_tokens is None else self.interface(brain_tokens)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        brain_memory: Float[Tensor, "B ..."] | None = None,
        inputs_embeds: Float[Tensor, "B T d"] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the LLM under a brain memory or a brain input; without either, those of the plain LLM."""
        brain = {name: kwargs.pop(name, None) for name in _BRAIN_ARGUMENTS}
        if brain_memory is None:
            brain_memory = self.brain_memory(**brain)
            has_begun = past_key_values is not None and past_key_values.get_seq_length() > 0
            if not (torch.compiler.is_compiling() or has_begun):
                self.check_places(input_ids, brain_memory)
        if self.config.interface != "cross_attention" and brain_memory is not None and input_ids is not None:
            inputs_embeds, input_ids = self._with_prefix(input_ids, brain_memory), None
            brain_memory = None
        return self.language_model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            brain_memory=brain_memory,
            past_key_values=past_key_values,
            **kwargs,
        )

    def _with_prefix(
        self, input_ids: Int[Tensor, "B T"], prefix: Float[Tensor, "B N d"]
    ) -> Float[Tensor, "B T d"]:
        """Token embeddings, with soft tokens in place of the prompt's placeholders."""
        embeds = self.get_input_embeddings()(input_ids)
        places = input_ids == self.config.brain_token_id
        return embeds.masked_scatter(places[..., None], prefix.to(embeds.dtype))

    def check_places(self, input_ids: Tensor | None, brain_memory: Tensor | None) -> None:
        """Require a placeholder for each soft token of a prefix."""
        if self.config.interface == "cross_attention" or brain_memory is None or input_ids is None:
            return
        n_expected, n_places = brain_memory.shape[1], (input_ids == self.config.brain_token_id).sum(-1)
        if not bool((n_places == n_expected).all()):
            raise ConfigError(
                f"prompt: expected {n_expected} placeholder tokens (id {self.config.brain_token_id}) in each, "
                f"found {sorted(set(n_places.tolist()))}; make prompts with `bitllm.model.captioner.Captioner`"
            )


class BitLlmForCausalLM(BitLlmPreTrainedModel, GenerationMixin):
    """BIT-LLM with its language head: loss, logits and ``generate``."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: BitLlmConfig) -> None:
        super().__init__(config)
        self.model = BitLlmModel(config)
        self.vocab_size = config.llama.vocab_size
        self.lm_head = nn.Linear(config.llama.hidden_size, self.vocab_size, bias=False)
        self.post_init()

    def forward(  # noqa: PLR0913 - the convention of transformers
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | dict | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T d"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        betas: Float[Tensor, "B betas"] | None = None,
        subject_index: Int[Tensor, " trials"] | None = None,
        anatomy: Anatomy | None = None,
        coords_mm: Float[Tensor, "S V 3"] | None = None,
        atlas_labels: Int[Tensor, "S W A"] | None = None,
        voxel_mask: Bool[Tensor, "S V"] | None = None,
        brain_tokens: Float[Tensor, "B N width"] | None = None,
        brain_memory: Float[Tensor, "B ..."] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss if ``labels`` are given (-100 at positions without a target)."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            betas=betas,
            subject_index=subject_index,
            anatomy=anatomy,
            coords_mm=coords_mm,
            atlas_labels=atlas_labels,
            voxel_mask=voxel_mask,
            brain_tokens=brain_tokens,
            brain_memory=brain_memory,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = (
            slice(-logits_to_keep, None)
            if isinstance(logits_to_keep, int) and logits_to_keep
            else slice(None)
        )
        # without contiguous() torch multiplies row by row and copies the whole head for each (6.4 GB for 8 prompts)
        hidden = hidden[:, kept if isinstance(logits_to_keep, int) else logits_to_keep].contiguous()
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict]:
        """Encode the brain input once; all beams and samples of it share the memory."""
        brain = {name: model_kwargs.pop(name, None) for name in _BRAIN_ARGUMENTS}
        if model_kwargs.get("brain_memory") is None:
            model_kwargs["brain_memory"] = self.model.brain_memory(**brain)
            self.model.check_places(input_ids, model_kwargs["brain_memory"])
        return super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,  # type: ignore[arg-type]
            **model_kwargs,
        )


# Importing this module makes AutoModelForCausalLM.from_pretrained load our checkpoints.
AutoConfig.register(BitLlmConfig.model_type, BitLlmConfig)
AutoModel.register(BitLlmConfig, BitLlmModel)
AutoModelForCausalLM.register(BitLlmConfig, BitLlmForCausalLM)
