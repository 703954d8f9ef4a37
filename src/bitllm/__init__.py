"""BIT-LLM: decode human brain activity (fMRI) into language, and show how much of the text comes from the brain."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODEL = {
    "BitLlmConfig": "bitllm.model.configuration",
    "BitLlmModel": "bitllm.model.modeling",
    "BitLlmForCausalLM": "bitllm.model.modeling",
    "Anatomy": "bitllm.model.voxels",
}


def __getattr__(name: str) -> Any:
    """The model's classes, imported when they are first asked for: the command line starts without torch."""
    if name not in _MODEL:
        raise AttributeError(f"module 'bitllm' has no attribute {name!r}")
    return getattr(import_module(_MODEL[name]), name)
