"""BIT-LLM: decode human brain activity (fMRI) into language, and show how much of the text comes from the brain."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULE_OF = {
    "open_store": "bitllm.data.store",
    "prepare_nsd": "bitllm.data.prepare",
    "Recipe": "bitllm.pipeline.recipe",
    "Run": "bitllm.pipeline.run",
    "Captioner": "bitllm.model.captioner",
    "evaluate": "bitllm.pipeline.evaluate",
    "BitLlmForCausalLM": "bitllm.model.modeling",
    "BitLlmModel": "bitllm.model.modeling",
    "BitLlmConfig": "bitllm.model.configuration",
    "Anatomy": "bitllm.model.voxels",
}
"""The public API. A name is imported when it is first used, so that `import bitllm` needs no torch."""

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'bitllm' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
