"""Options of `bitllm evaluate`, in a module that the command line imports quickly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Input = Literal[
    "real", "zero", "shuffle", "permuted", "noise", "other_subject", "llm_alone", "constant", "nearest"
]
INPUTS: tuple[Input, ...] = get_args(Input)
"""The real betas and every control, in the order of the table."""
Likelihood = Literal["all", "permuted", "none"]
N_QUESTIONS = 300
"""Questions of each task by default."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `bitllm evaluate`."""

    systems: tuple[str, ...] = ()
    """Systems of the run; all by default."""
    inputs: tuple[Input, ...] = INPUTS
    """Controls; real and permuted betas are always used."""
    likelihood: Likelihood = "all"
    """Inputs with bits of evidence: all, only real against permuted (averaged over repetitions), or none."""
    tasks: tuple[str, ...] | None = None
    """Tasks of questions to ask every system; by default each system is asked those that it was trained on."""
    questions_per_task: int | None = None
    """Number of questions of each task, drawn with the seed; by default that of the run's recipe, else 300; 0 asks
    none."""
    subject: str | None = None
    """Subject to evaluate; needed if the part has several."""
    part: Literal["test", "validation"] = "test"
    """Part of the split; with validation the test part stays sealed."""
    transport: bool | None = None
    """Move the pooled betas of the subject onto the distribution of the training subjects, by its trials of other
    images, without captions or pictures; by default as in the run's recipe, else not."""
    rois: str | None = None
    """Atlases or regions to silence and to use alone, e.g. floc-faces,prf-visualrois:V1v; for the final system."""
    words: Path | None = None
    """Words by category, {"animals": ["dog", ...]}; a simulated store has its own."""
    maps: Path | None = None
    """New folder for the pooling map and the per-voxel attribution of the final system."""
    llm: str | None = None
    """Base LLM, a folder or hub id, if it is not next to the checkpoint."""
    split: Path | None = None
    """Split of the run, if it is not next to the checkpoint."""
    judge_on: str | None = None
    """Split (poster, develop or a file) of a store that the run was not trained on, to evaluate it there."""
    align: Path | None = None
    """Checkpoint of the align stage, if it is not next to the checkpoint."""
    targets: Path | None = None
    """CLIP embeddings of the images, if they are not next to the checkpoint."""
    precision: Literal["fp32", "bf16", "auto"] | None = None
    """Precision of the frozen LLM; by default that of the training."""
    max_new_tokens: int | None = None
    """Longest caption, in tokens; by default that of the run's recipe, else 24."""
    seed: int | None = None
    """Seed of shuffles, permutations, noise and the bootstrap; by default that of the run's recipe, else 0."""
    out: Path | None = None
    """New folder, or that of an earlier evaluation, for evaluation.parquet, evaluation.json and results.json; by
    default the run folder."""
