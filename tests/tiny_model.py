"""A tiny random model and a batch, for tests and for programs that run outside of pytest."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitllm.model.build import build_bit_llm
from bitllm.model.modeling import BitLlmForCausalLM

ENCODER = {
    "n_queries": 16,
    "rank": 8,
    "n_brain_tokens": 5,
    "token_width": 12,
    "n_labels": [3, 4],
    "n_blocks": 1,
    "n_frequencies": 8,
}


def make_llama() -> LlamaForCausalLM:
    """A random Llama with tied heads and grouped queries, the same in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def make_model(interface: str = "cross_attention") -> BitLlmForCausalLM:
    """A model whose brain says something, the same in every process."""
    model = build_bit_llm(
        make_llama(),
        encoder=ENCODER,
        interface=interface,
        adapter_layers=[0, 2],
        prefix_hidden_width=9,
        brain_token_id=3,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter.o_proj" in name:
                parameter.normal_(std=0.5)
        model.lm_head.weight.mul_(20)
    return model.eval()


def make_batch(interface: str = "cross_attention") -> dict[str, torch.Tensor]:
    """Four trials of two subjects with their prompts."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 50, (4, 6), generator=generator)
    if interface != "cross_attention":
        ids = torch.cat([torch.full((4, 5), 3), ids], dim=1)
    return {
        "input_ids": ids,
        "betas": torch.randn(4, 30, generator=generator),
        "subject_index": torch.tensor([0, 1, 0, 1]),
        "coords_mm": 30 * torch.randn(2, 30, 3, generator=generator),
        "atlas_labels": torch.randint(0, 4, (2, 30, 2), generator=generator),
    }
