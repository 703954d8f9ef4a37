"""One optimiser step of each stage and a short decode, at full size, by the stages' own functions."""

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitllm.model.build import n_trainable, train_interface
from bitllm.model.captioner import Captioner
from bitllm.model.embed import encode_betas
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.precision import base_dtype
from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.dummy_inputs import (
    MadeUpPrompter,
    make_aligner,
    make_answers,
    make_betas,
    make_model,
    make_prompter,
)
from bitllm.preflight.memory import PeakMemory
from bitllm.stages.rewards import Rewards
from bitllm.stages.rft import RftObjective, with_lora
from bitllm.stages.sft import answer_loss, make_optimizer

PROMPT_TOKENS, CAPTION_TOKENS = 48, 16
"""Length of made-up prompts (a chat template with one instruction) and of captions."""


class Measured(NamedTuple):
    """What one step took here."""

    batch: int
    """Examples in the step (rft: brain inputs)."""
    seconds: float
    peak_gb: float
    n_trainable: int
    loss: float | None = None


Tell = Callable[[str, Measured], None]
"""Called with each step's name and figures as soon as it has ended."""


def align_step(config: Recipe, *, batch: int) -> Measured:
    """One step of the align stage."""
    aligner = make_aligner(config).train()
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=config.align.optimizer.learning_rate)
    betas, subject_index, anatomy = make_betas(config, batch, seed=0)
    image, text = (F.normalize(torch.randn(batch, config.clip.embedding_width), dim=-1) for _ in range(2))

    def step() -> Tensor:
        loss = aligner(betas, subject_index, *anatomy, image=image, text=text, nsd_id=torch.arange(batch))[
            "loss"
        ]
        return _update(loss, optimizer)

    return _measure(step, batch=batch, learns=n_trainable(aligner))


def llm_steps(config: Recipe, *, sft_batch: int, rft_batch: int, stages: tuple[str, ...], tell: Tell) -> None:
    """Encoding, a step of sft, a short decode and a step of rft with one model of full size."""
    model = make_model(config, dtype=base_dtype(config.sft.precision))
    prompter = make_prompter(config, model, n_tokens=PROMPT_TOKENS)
    n = max(sft_batch, rft_batch)
    betas, subject_index, anatomy = make_betas(config, n, seed=1)
    kept: list[Tensor] = []

    def encode() -> None:
        kept.append(encode_betas(model.model.encoder, betas, subject_index, anatomy))

    tell("encode", _measure(encode, batch=n, learns=0))
    model.model.encoder.train().eval()  # lets go of the pooling maps
    if "sft" in stages:
        brain = {"brain_tokens": kept[0][:sft_batch]}
        if config.sft.encoder == "trained":
            row = {"betas": betas[:sft_batch], "subject_index": subject_index[:sft_batch]}
            brain = row | anatomy._asdict()
        tell("sft", _sft_step(config, model, prompter, brain))
    if "decode" in stages:
        tokens = kept[0][:sft_batch]
        captioner = Captioner(model, prompter)
        tell(
            "decode",
            _measure(
                lambda: captioner.greedy(tokens, max_new_tokens=CAPTION_TOKENS), batch=len(tokens), learns=0
            ),
        )
    if "rft" in stages:
        tell("rft", _rft_step(config, model, prompter, kept[0][:rft_batch]))


def _sft_step(
    config: Recipe, model: BitLlmForCausalLM, prompter: MadeUpPrompter, brain: dict[str, Tensor]
) -> Measured:
    train_interface(model, with_encoder=config.sft.encoder == "trained")
    model.train()
    optimizer = make_optimizer(model, config.sft)
    batch = len(next(iter(brain.values())))
    inputs = make_answers(prompter, batch, n_tokens=CAPTION_TOKENS) | brain
    found = _measure(
        lambda: _update(answer_loss(model, inputs), optimizer),
        batch=batch,
        learns=n_trainable(model),
    )
    model.zero_grad(set_to_none=True)
    model.eval()
    return found


def _rft_step(
    config: Recipe, model: BitLlmForCausalLM, prompter: MadeUpPrompter, brain_tokens: Tensor
) -> Measured:
    """The objective that `train_rft` trains, with random rewards."""
    policy = with_lora(model, config.rft).train()
    learning = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=config.rft.optimizer.learning_rate)
    settings = config.rft.model_copy(update={"max_new_tokens": CAPTION_TOKENS})
    objective = RftObjective(policy, Captioner(model, prompter), _random_rewards, settings, seed=0)
    rows = torch.arange(len(brain_tokens))
    inputs = {"brain_tokens": brain_tokens, "nsd_id": rows, "example": torch.stack([rows, rows], dim=-1)}

    def step() -> Tensor:
        return _update(objective(**inputs)["loss"], optimizer)

    return _measure(step, batch=len(brain_tokens), learns=n_trainable(policy))


def _random_rewards(nsd_ids: Sequence[int], captions: Sequence[str], has_ended: Sequence[bool]) -> Rewards:
    drawn = np.random.default_rng(0).random((4, len(captions)))
    return Rewards(*drawn)


def _update(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _measure(step: Callable[[], Any], *, batch: int, learns: int) -> Measured:
    gc.collect()
    with PeakMemory() as peak:
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
    value = float(loss.detach()) if isinstance(loss, Tensor) else None
    return Measured(batch, seconds, peak.gb, learns, value)
