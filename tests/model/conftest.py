"""Tiny random models, and programs that need a process of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from bitllm.model.build import build_bit_llm
from bitllm.model.modeling import BitLlmForCausalLM
from tiny_model import ENCODER, make_llama


@pytest.fixture
def encoder_sizes() -> dict[str, Any]:
    """Arguments of a tiny encoder."""
    return dict(ENCODER)


@pytest.fixture
def llm() -> LlamaForCausalLM:
    """The random Llama."""
    return make_llama()


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
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, *words],
        cwd=here / "programs",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
