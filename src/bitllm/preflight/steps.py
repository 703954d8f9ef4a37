"""``bitllm preflight``: one step of each stage in the training loop, with random weights and synthetic data.

The betas have the real numbers of voxels, the prompts are random words. Stages that do not fit in memory are listed;
the memory that a GPU needs is estimated.
"""

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from bitllm.config import require_number
from bitllm.data.batch import pad_answers
from bitllm.data.prompt import Prompter
from bitllm.model.build import freeze, n_trainable, train_interface
from bitllm.model.captioner import Captioner
from bitllm.model.checkpoint.weights import is_ours
from bitllm.model.embed import encode_betas
from bitllm.model.likelihood import Due
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.precision import base_dtype
from bitllm.model.voxels import Anatomy
from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.cost import (
    GB,
    GPUS_GB,
    ParameterTable,
    StageMemory,
    count_parameters,
    estimate_memory,
    largest_batch,
    make_aligner,
    model_config,
)
from bitllm.stages.rewards import Answers
from bitllm.stages.rft import RftObjective, with_lora
from bitllm.stages.sft import SftObjective, n_answer_tokens, sft_optimizers
from bitllm.toy_models import make_word_tokenizer
from bitllm.training.distributed import device
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainerSettings, TrainingData

STAGES = ("align", "sft", "decode", "rft")
PROMPT_TOKENS, CAPTION_TOKENS = 48, 16
"""Lengths of synthetic prompts (a chat template with one instruction) and of captions."""
_LARGEST_BATCH, _BLOCK = 2**20, 2**20


class Measured(NamedTuple):
    """Time and memory of one step on this machine."""

    batch: int
    """Examples in the step (rft: brain inputs)."""
    seconds: float
    peak_gb: float
    n_trainable: int
    loss: float | None = None


Tell = Callable[[str, Measured], None]
"""Called with the name and figures of each step when it ends."""


class Preflight(NamedTuple):
    """Measurements on this machine, and estimates for a GPU."""

    parameters: ParameterTable
    measured: dict[str, Measured]
    not_run: dict[str, str]
    """Stages that were not run, with the reason."""
    planned: dict[str, StageMemory]
    """Estimated memory of each stage with the recipe's batch size."""
    planned_batch: dict[str, int]
    largest_batch: dict[str, dict[str, int]]
    """Largest batch that fits, for each stage and size of GPU (GB); 0 if not even one example fits."""

    def to_json(self) -> dict[str, Any]:
        """Output of ``--json``."""
        return {
            **self.parameters.to_json(),
            "measured": {name: one._asdict() for name, one in self.measured.items()},
            "not_run": self.not_run,
            "gpu_estimate_gb": {stage: round(memory.gb, 2) for stage, memory in self.planned.items()},
            "planned_batch": self.planned_batch,
            "largest_batch": self.largest_batch,
        }


def run_preflight(
    recipe: Recipe,
    *,
    sft_batch: int = 2,
    rft_batch: int = 1,
    align_batch: int = 16,
    limit_gb: float | None = None,
    console: Console,
) -> Preflight:
    """Run one step of each stage at full size if it fits, and print each result.

    Parameters
    ----------
    sft_batch, rft_batch, align_batch
        Examples in each step (rft: brain inputs, each with its G captions).
    limit_gb
        Largest memory to use; by default the free memory of the GPU, or of the machine.
    """
    here = {"align": align_batch, "sft": sft_batch, "rft": rft_batch}
    for stage, batch in here.items():
        require_number(f"--{stage}-batch", batch, least=1, most=_LARGEST_BATCH)
    if limit_gb is not None:
        require_number("--limit-gb", limit_gb, least=0)
    table = count_parameters(recipe)
    planned_batch = {stage: getattr(recipe, stage).optimizer.batch_size for stage in ("align", "sft", "rft")}
    prefix = 0 if recipe.sft.interface == "cross_attention" else recipe.encoder.n_brain_tokens
    n_tokens = prefix + PROMPT_TOKENS + CAPTION_TOKENS
    needed = estimate_memory(recipe, table, n_tokens=n_tokens, batch=here)
    limit = available_gb() if limit_gb is None else limit_gb
    not_run = {
        stage: f"would not fit: needs about {memory.gb:.1f} GB, {limit:.1f} GB are free; run it on a larger machine"
        for stage, memory in needed.items()
        if memory.gb > limit
    }
    if "sft" in not_run:
        not_run["decode"] = not_run["sft"]
    measured: dict[str, Measured] = {}

    def tell(name: str, one: Measured) -> None:
        measured[name] = one
        console.print(f"{name:<7} {one.seconds:8.1f} s   peak {one.peak_gb:5.1f} GB   batch {one.batch}")

    if "align" not in not_run:
        tell("align", align_step(recipe, batch=align_batch))
    stages = tuple(stage for stage in STAGES if stage not in not_run and stage != "align")
    if stages:
        llm_steps(recipe, sft_batch=sft_batch, rft_batch=rft_batch, stages=stages, tell=tell)
    planned = estimate_memory(recipe, table, n_tokens=n_tokens, batch=planned_batch)
    largest = {
        stage: {str(gpu): largest_batch(memory, planned_batch[stage], gpu) for gpu in GPUS_GB}
        for stage, memory in planned.items()
    }
    return Preflight(table, measured, not_run, planned, planned_batch, largest)


def align_step(recipe: Recipe, *, batch: int) -> Measured:
    """One step of align."""
    aligner = make_aligner(recipe)
    betas, subject_index, anatomy = make_betas(recipe, batch, seed=0)
    image, text = (F.normalize(torch.randn(batch, recipe.clip.embedding_width), dim=-1) for _ in range(2))
    targets = {"image": image, "text": text, "nsd_id": torch.arange(batch)}
    inputs = {"betas": betas, "subject_index": subject_index, **anatomy._asdict(), **targets}
    return _trained(aligner, inputs, recipe.align.optimizer, batch=batch)


def llm_steps(recipe: Recipe, *, sft_batch: int, rft_batch: int, stages: tuple[str, ...], tell: Tell) -> None:
    """Encoding, an sft step, a short decode and an rft step, all with one model of full size."""
    model = make_model(recipe, dtype=base_dtype(recipe.sft.precision))
    nn.Module.to(model, device())
    prompter = make_prompter(recipe, model, n_tokens=PROMPT_TOKENS)
    captioner = Captioner(model, prompter)
    betas, subject_index, anatomy = make_betas(recipe, max(sft_batch, rft_batch), seed=1)
    brain = {"betas": betas, "subject_index": subject_index, **anatomy._asdict()}
    brain = {name: tensor.to(device()) for name, tensor in brain.items()}
    found: list[Tensor] = []

    def encode() -> None:
        where = Anatomy(*(brain[name] for name in Anatomy._fields))
        found.append(encode_betas(model.model.encoder, brain["betas"], brain["subject_index"], where))

    tell("encode", _measure(encode, batch=len(betas)))
    model.model.encoder.train().eval()  # frees the pooling maps
    if "sft" in stages:
        inputs: dict[str, Any] = make_answers(prompter, sft_batch, n_tokens=CAPTION_TOKENS)
        inputs["due"] = Due.of(inputs["labels"])
        if recipe.sft.encoder == "trained":
            inputs |= brain | {name: brain[name][:sft_batch] for name in ("betas", "subject_index")}
        else:
            inputs["brain_tokens"] = found[0][:sft_batch]
        train_interface(model, with_encoder=recipe.sft.encoder == "trained")
        objective = SftObjective(model)
        tell(
            "sft",
            _trained(
                objective,
                inputs,
                recipe.sft.optimizer,
                batch=sft_batch,
                n_targets=n_answer_tokens,
                make_optimizers=lambda: sft_optimizers(model, recipe.sft),
            ),
        )
        model.eval()
    if "decode" in stages:
        tokens = found[0][:sft_batch]
        tell(
            "decode",
            _measure(lambda: captioner.greedy(tokens, max_new_tokens=CAPTION_TOKENS), batch=len(tokens)),
        )
    if "rft" in stages:
        tell("rft", _rft_step(recipe, captioner, torch.randn(rft_batch, recipe.encoder.n_queries)))


def _rft_step(recipe: Recipe, captioner: Captioner, pooled: Tensor) -> Measured:
    policy = with_lora(captioner.model, recipe.rft)
    config = recipe.rft.model_copy(update={"max_new_tokens": CAPTION_TOKENS})
    rows = np.arange(len(pooled))
    inputs = {"pooled": pooled, "nsd_id": rows, "example": np.stack([rows, rows], axis=-1)}
    objective = RftObjective(policy, captioner, _random_rewards, config, seed=0)
    return _trained(objective, inputs, config.optimizer, batch=len(pooled))


def _random_rewards(answers: Answers) -> dict[str, np.ndarray]:
    return {"random": np.random.default_rng(0).random(len(answers.captions))}


def _trained(
    module: nn.Module, inputs: dict[str, Any], optimizer: OptimizerConfig, *, batch: int, **how: Any
) -> Measured:
    """One step of the training loop on synthetic inputs, without checkpoint or log."""
    config = optimizer.model_copy(update={"steps": 1, "batch_size": batch, "log_every": 2})
    settings = TrainerSettings(save_minutes=None, report_to=())
    data = TrainingData(batch, lambda _: inputs, n_targets=how.pop("n_targets", None))
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(module, data, config, Path(folder), 0, context=RunContext(settings), **how)
        measured = _measure(loop.fit, batch=batch)
    loss = float(loop.since_last_row["loss"][0])
    return measured._replace(n_trainable=n_trainable(module), loss=loss)


def _measure(step: Callable[[], Any], *, batch: int) -> Measured:
    gc.collect()
    with PeakMemory() as peak:
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return Measured(batch, seconds, peak.gb, 0)


class PeakMemory:
    """Largest memory within a block: of the GPU, or of this process (sampled every 5 ms).

    Attributes
    ----------
    gb
        The peak in GB, once the block has ended.
    """

    def __init__(self) -> None:
        self.gb = 0.0
        self._process, self._is_done = psutil.Process(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if torch.cuda.is_available():
            self.gb = torch.cuda.max_memory_allocated() / GB
        else:
            self._is_done.set()
            self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.gb = max(self.gb, self._process.memory_info().rss / GB)
            if self._is_done.wait(0.005):
                return


def available_gb() -> float:
    """Free memory of the GPU, or of the machine if it has none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / GB
    return psutil.virtual_memory().available / GB


@dataclass(frozen=True)
class MadeUpPrompter(Prompter):
    """Prompts of a given length from random words, with placeholders in front for a prefix interface."""

    n_tokens: int = 48
    vocab_size: int = 100

    def prompt_ids(self, instruction: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Random token ids, as many as a prompt has; the instruction only seeds them."""
        words = np.random.default_rng(len(instruction)).integers(8, self.vocab_size, self.n_tokens)
        return [self.placeholder_id or 0] * self.n_placeholders + words.tolist()


def make_prompter(recipe: Recipe, model: BitLlmForCausalLM, *, n_tokens: int) -> MadeUpPrompter:
    """A prompter for prompts of ``n_tokens`` words."""
    is_prefix = recipe.sft.interface != "cross_attention"
    return MadeUpPrompter(
        make_word_tokenizer([], wrap=False),
        recipe.encoder.n_brain_tokens if is_prefix else 0,
        model.config.brain_token_id,
        n_tokens=n_tokens,
        vocab_size=recipe.llm.published_sizes().vocab_size,
    )


def make_answers(prompter: MadeUpPrompter, n: int, *, n_tokens: int) -> dict[str, Tensor]:
    """Prompts with answers of ``n_tokens`` random words."""
    rng = np.random.default_rng(1)
    answers = rng.integers(8, prompter.vocab_size, (n, n_tokens)).tolist()
    return pad_answers([prompter.prompt_ids("describe")] * n, answers, 0)


def make_model(recipe: Recipe, *, dtype: torch.dtype) -> BitLlmForCausalLM:
    """A model of full size with random weights, with the LLM in ``dtype``; nothing is downloaded."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = BitLlmForCausalLM(model_config(recipe))
    finally:
        torch.set_default_dtype(default)
    model.to_empty(device="cpu")
    model.tie_weights()
    block = torch.randn(_BLOCK)
    for name, module in reversed(list(model.named_modules())):  # parts before wholes, as transformers does
        if isinstance(module, nn.Linear | nn.Embedding) and not is_ours(name + "."):
            _fill(module.weight, block)  # billions of normal draws would take longer than the steps
        else:
            owner = model.model.language_model if name.startswith("model.language_model") else model
            owner._init_weights(module)
    freeze(model)
    return model.eval()


@torch.no_grad()
def _fill(weight: Tensor, block: Tensor) -> None:
    flat, scaled = weight.view(-1), (block * weight.shape[-1] ** -0.5).to(weight.dtype)
    for start in range(0, len(flat), _BLOCK):
        part = flat[start : start + _BLOCK]
        part.copy_(scaled[: len(part)])


def make_betas(recipe: Recipe, n_trials: int, seed: int) -> tuple[Tensor, Tensor, Anatomy]:
    """Betas, subject indices and anatomy of ``n_trials`` trials, dealt to all subjects in turn."""
    generator = torch.Generator().manual_seed(seed)
    n_voxels = list(recipe.data.voxels.values())[:n_trials]
    width = max(n_voxels)
    labels = [recipe.data.atlas_labels[atlas] for atlas in recipe.encoder.atlases]
    anatomy = Anatomy(
        60 * (torch.rand(len(n_voxels), width, 3, generator=generator) - 0.5),
        torch.stack(
            [torch.randint(0, n + 1, (len(n_voxels), width), generator=generator) for n in labels], -1
        )
        if labels
        else torch.zeros(len(n_voxels), width, 0, dtype=torch.long),
        torch.arange(width)[None] < torch.tensor(n_voxels)[:, None],
    )
    betas = torch.randn(n_trials, width, generator=generator)
    return betas, torch.arange(n_trials) % len(n_voxels), anatomy


def render_preflight(found: Preflight) -> Group:
    """The tables for the terminal, 80 columns wide."""
    here = Table(title="Measured here, random weights", box=None, title_justify="left")
    here.add_column("step")
    for column in ("trainable", "batch", "s / step", "peak GB"):
        here.add_column(column, justify="right")
    for name, one in found.measured.items():
        here.add_row(name, f"{one.n_trainable:,}", str(one.batch), f"{one.seconds:.1f}", f"{one.peak_gb:.1f}")
    gpu = Table(title="Memory of one GPU, estimated by arithmetic", box=None, title_justify="left")
    gpu.add_column("stage")
    for column in ("weights", "learning", "activations", "GB in all", "batch"):
        gpu.add_column(column, justify="right")
    gpu.add_column(f"largest batch on {' / '.join(map(str, GPUS_GB))} GB", justify="right")
    for stage, memory in found.planned.items():
        parts = [f"{part / GB:.1f}" for part in memory]
        largest = " / ".join(str(n) if n else "—" for n in found.largest_batch[stage].values())
        gpu.add_row(stage, *parts, f"{memory.gb:.1f}", str(found.planned_batch[stage]), largest)
    skipped = [Text(f"{stage}: {reason}", style="yellow") for stage, reason in found.not_run.items()]
    return Group(here, Text(), gpu, *skipped, Text(_sentence(found)))


def _sentence(found: Preflight) -> str:
    too_large = [
        f"{stage} (batch {found.planned_batch[stage]}) on {gpu} GB"
        for stage, of_gpu in found.largest_batch.items()
        for gpu, largest in of_gpu.items()
        if largest < found.planned_batch[stage]
    ]
    if not too_large:
        return "Every stage fits on every one of these GPUs at the configuration's batch."
    return (
        f"Would not fit at the configuration's batch: {'; '.join(too_large)}. Take a smaller batch and accumulate "
        "gradients (— : not even one example)."
    )
