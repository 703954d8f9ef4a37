"""The easy brain's system and its test trials, for tests that only read."""

import pytest

from bitllm.evaluation.grounding.inputs.held_out import read_held_out
from bitllm.evaluation.grounding.outcomes import outcomes
from bitllm.evaluation.grounding.system import load_system
from bitllm.model.checkpoint.base import load_llm


@pytest.fixture(scope="session")
def held_out(easy):
    """The test trials of the easy brain, averaged over repetitions."""
    return read_held_out(easy.store, easy.split, averaged=True)


@pytest.fixture(scope="session")
def system(easy):
    """Its sft system."""
    return load_system("sft", easy.folder / "sft", load_llm(easy.folder / "llm"))


@pytest.fixture(scope="session")
def found(system, held_out):
    """What came out for every input."""
    return outcomes(system, held_out, seed=0, max_new_tokens=12)
