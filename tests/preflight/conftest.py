"""A system small enough to run every step in a second."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tiny_recipe() -> dict[str, Any]:
    """The values of a recipe."""
    return {
        "llm": {
            "source": "tiny",
            "sizes": {
                "vocab_size": 60,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
        },
        "data": {"voxels": {"subj01": 40, "subj02": 30}, "atlas_labels": {"streams": 7}},
        "clip": {"embedding_width": 6},
        "encoder": {
            "n_queries": 16,
            "rank": 8,
            "n_brain_tokens": 5,
            "token_width": 12,
            "n_blocks": 1,
            "n_frequencies": 8,
            "atlases": ["streams"],
        },
        "sft": {"interface": "cross_attention", "adapter_layers": [0, 1]},
        "rft": {"n_captions": 2},
    }


@pytest.fixture
def llm_folder(easy: Any) -> Path:
    """A small Llama that was trained."""
    return easy.folder / "llm"
