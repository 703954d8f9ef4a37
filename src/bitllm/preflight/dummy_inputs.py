"""Made-up models and inputs of real sizes: random weights, random betas of the real voxel counts, random words."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bitllm.data.prompt import Prompter, pad_answers
from bitllm.model.aligner import BrainAligner
from bitllm.model.build import freeze
from bitllm.model.checkpoint.weights import is_ours
from bitllm.model.encoder import BrainEncoder
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.voxels import Anatomy
from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.sizes import encoder_arguments, model_config
from bitllm.toy_models import make_word_tokenizer

_BLOCK = 2**20


@dataclass(frozen=True)
class MadeUpPrompter(Prompter):
    """Prompts of a given length, of random words; placeholders in front where the interface is a prefix."""

    n_tokens: int = 48
    vocab_size: int = 100

    def prompt_ids(self, instruction: str) -> list[int]:
        """Token ids of a prompt (whatever the instruction)."""
        words = np.random.default_rng(len(instruction)).integers(8, self.vocab_size, self.n_tokens)
        return [self.placeholder_id or 0] * self.n_placeholders + words.tolist()


def make_model(config: Recipe, *, dtype: torch.dtype) -> BitLlmForCausalLM:
    """A model of full size with random weights, the LLM in ``dtype``; nothing is downloaded."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = BitLlmForCausalLM(model_config(config))
    finally:
        torch.set_default_dtype(default)
    model.to_empty(device="cpu")
    model.tie_weights()
    block = torch.randn(_BLOCK)
    for name, module in reversed(list(model.named_modules())):  # parts before wholes, as transformers does
        if isinstance(module, nn.Linear | nn.Embedding) and not is_ours(name + "."):
            _fill(module.weight, block)  # billions of normal draws would take longer than the steps
        else:
            owner = model.model.language_model if name.startswith("model.language_model") else model
            owner._init_weights(module)
    freeze(model)
    return model.eval()


@torch.no_grad()
def _fill(weight: Tensor, block: Tensor) -> None:
    flat, scaled = weight.view(-1), (block * weight.shape[-1] ** -0.5).to(weight.dtype)
    for start in range(0, len(flat), _BLOCK):
        part = flat[start : start + _BLOCK]
        part.copy_(scaled[: len(part)])


def make_aligner(config: Recipe) -> BrainAligner:
    """Encoder and heads with first values."""
    arguments = encoder_arguments(config)
    encoder = BrainEncoder(**{**arguments, "n_labels": tuple(arguments["n_labels"])})
    return BrainAligner(encoder, embedding_width=config.clip.embedding_width)


def make_betas(config: Recipe, n_trials: int, seed: int) -> tuple[Tensor, Tensor, Anatomy]:
    """Betas, subject rows and anatomy of ``n_trials`` trials that go through all subjects in turn."""
    generator = torch.Generator().manual_seed(seed)
    n_voxels = list(config.data.voxels.values())[:n_trials]
    width = max(n_voxels)
    labels = [config.data.atlas_labels[atlas] for atlas in config.encoder.atlases]
    anatomy = Anatomy(
        60 * (torch.rand(len(n_voxels), width, 3, generator=generator) - 0.5),
        torch.stack(
            [torch.randint(0, n + 1, (len(n_voxels), width), generator=generator) for n in labels], -1
        )
        if labels
        else torch.zeros(len(n_voxels), width, 0, dtype=torch.long),
        torch.arange(width)[None] < torch.tensor(n_voxels)[:, None],
    )
    betas = torch.randn(n_trials, width, generator=generator)
    return betas, torch.arange(n_trials) % len(n_voxels), anatomy


def make_prompter(config: Recipe, model: BitLlmForCausalLM, *, n_tokens: int) -> MadeUpPrompter:
    """A prompter for prompts of ``n_tokens`` words."""
    is_prefix = config.sft.interface != "cross_attention"
    return MadeUpPrompter(
        make_word_tokenizer([], wrap=False),
        config.encoder.n_brain_tokens if is_prefix else 0,
        model.config.brain_token_id,
        n_tokens=n_tokens,
        vocab_size=config.llm.published_sizes().vocab_size,
    )


def make_answers(prompter: MadeUpPrompter, n: int, *, n_tokens: int) -> dict[str, Tensor]:
    """Prompts with answers of ``n_tokens`` random words."""
    rng = np.random.default_rng(1)
    answers = rng.integers(8, prompter.vocab_size, (n, n_tokens)).tolist()
    return pad_answers([prompter.prompt_ids("describe")] * n, answers, 0)
