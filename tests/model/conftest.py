"""Tiny random models, and programs that need a process of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


@pytest.fixture
def encoder_sizes() -> dict[str, Any]:
    """Arguments of a tiny encoder."""
    return dict(ENCODER)


@pytest.fixture
def llm() -> LlamaForCausalLM:
    """A random Llama with tied heads and grouped queries."""
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


@pytest.fixture
def open_model(llm: LlamaForCausalLM) -> BitLlmForCausalLM:
    """A BIT-LLM whose adapters say something, and whose logits are peaky."""
    torch.manual_seed(1)
    model = build_bit_llm(llm, encoder=ENCODER, interface="cross_attention", adapter_layers=[0, 2]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter.o_proj" in name:
                parameter.normal_(std=0.5)
        model.lm_head.weight.mul_(20)
    return model


@pytest.fixture
def brain() -> dict[str, Any]:
    """A batch that mixes two subjects; the second has fewer voxels."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 22:] = False
    return {
        "betas": torch.randn(3, 30, generator=generator),
        "subject_index": torch.tensor([0, 1, 0]),
        "coords_mm": 30 * torch.randn(2, 30, 3, generator=generator),
        "atlas_labels": torch.randint(0, 4, (2, 30, 2), generator=generator),
        "voxel_mask": mask,
    }


@pytest.fixture(scope="session")
def run_program() -> Callable[..., str]:
    """Run a program of the folder ``programs`` and return what it prints."""
    return _run_program


def _run_program(*words: str) -> str:
    """What a program of the folder ``programs`` prints."""
    run = subprocess.run(
        [sys.executable, *words],
        cwd=Path(__file__).parent / "programs",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
