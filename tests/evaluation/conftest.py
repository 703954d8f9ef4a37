"""The easy brain's system and test trials, and the captions of BrainHub, which are not part of the project."""

from pathlib import Path

import pytest

from bitllm.evaluation.held_out import read_held_out
from bitllm.evaluation.outcomes import outcomes
from bitllm.evaluation.scoring.captions_file import CaptionPairs, read_caption_pairs
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def brainhub() -> CaptionPairs:
    """Captions that UMBRAE decoded from NSD's subject 1, and their COCO references (982 images)."""
    folder = ROOT.parent / "shared" / "real"
    if not (folder / "brainhub_references.json").is_file():
        pytest.skip("BrainHub's captions are not there: no folder shared/real beside the checkout")
    return read_caption_pairs(folder / "brainhub_umbrae_s1.json", folder / "brainhub_references.json")


@pytest.fixture(scope="session")
def held_out(easy):
    """The test trials of the easy brain, averaged over repetitions."""
    return read_held_out(easy.store, easy.split, averaged=True)


@pytest.fixture(scope="session")
def system(easy):
    """Its sft system."""
    return load_captioner(easy.folder / "sft", load_llm(easy.folder / "llm"))


@pytest.fixture(scope="session")
def found(system, held_out):
    """What came out for every input."""
    return outcomes(system, held_out, seed=0, max_new_tokens=12)
