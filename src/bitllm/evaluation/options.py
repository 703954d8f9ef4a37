"""The options of ``bitllm ground``, light enough to be read before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class GroundOptions:
    """The options of ``bitllm ground``."""

    system: str | None = None
    """Which system of a demo's folder."""
    subject: str | None = None
    """Whose betas; needed where the part has several subjects."""
    part: Literal["test", "validation"] = "test"
    """test, or validation to choose settings without opening the test."""
    rois: str | None = None
    """Atlases or ROIs to silence one at a time and to keep alone, e.g. floc-faces,prf-visualrois:V1v."""
    words: Path | None = None
    """Words by category, {"animals": ["dog", ...]}; a simulated store has its own."""
    llm: str | None = None
    """Base LLM, a folder or hub id, where it does not lie beside the run."""
    split: Path | None = None
    """Split of the run, where it does not lie beside it."""
    judge_on: str | None = None
    """A split (poster, develop or a file) of a store that the run was not trained on, to be judged there."""
    align: Path | None = None
    """Checkpoint of the align stage, where it does not lie beside the run."""
    targets: Path | None = None
    """Embeddings of the pictures, where they do not lie beside the run."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Of the frozen LLM."""
    max_new_tokens: int = 24
    """Longest caption, in tokens."""
    seed: int = 0
    """Of shuffles, exchanges, noise and the bootstrap."""
    out: Path | None = None
    """Where grounding.json goes; into the run's own folder by default."""
    maps: Path | None = None
    """A new folder for the subject's fixed pooling map and the per-voxel attribution."""
