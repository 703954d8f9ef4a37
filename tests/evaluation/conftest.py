"""Where the real captions of BrainHub lie, which are not part of the project."""

from pathlib import Path

import pytest

from bitllm.evaluation.scoring.captions_file import CaptionPairs, read_caption_pairs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def brainhub() -> CaptionPairs:
    """Captions that UMBRAE decoded from NSD's subject 1, and their COCO references (982 images)."""
    folder = ROOT.parent / "shared" / "real"
    if not (folder / "brainhub_references.json").is_file():
        pytest.skip("BrainHub's captions are not there: no folder shared/real beside the checkout")
    return read_caption_pairs(folder / "brainhub_umbrae_s1.json", folder / "brainhub_references.json")
