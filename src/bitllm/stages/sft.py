"""Stage 2, sft: brain instruction fine-tuning.

Encoder and LLM are frozen. The interface (projection and adapters, or a prefix) is trained by causal language
modeling on the tokens of a caption and the end token, after one of several instructions in the LLM's chat template.
With a frozen encoder, betas are pooled once; its blocks and head, which are cheap, run in every step. One of the
image's captions is chosen by (seed, epoch, index).

With other tasks than captions, an example is a caption or an exchange about the image (a question, or several in
turn); the loss is that of the answers and their end tokens. Task and exchange are chosen by (seed, epoch, index).

Optionally the encoder is trained too, from captions only; brain tokens are then computed in every step. The stage
can also start from a finished sft instead of an encoder, for example to adapt it to a new subject.

References
----------
The poster, "Stage 2: Brain Instruction Fine-Tuning". MindLLM (Qiu et al. 2025, arXiv 2502.15786) trains encoder and
interface together; ours differs in the encoder (see `bitllm.model.encoder`) and in the data.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from bitllm.config import StrictConfig
from bitllm.data.dataset import sealed_test, select_trials
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store
from bitllm.data.tasks.mixture import CAPTIONS_ALONE, TaskWeights, is_captions_alone
from bitllm.data.tasks.summary import licenses_of_tasks
from bitllm.data.transfer import require_same_space, space_of_training
from bitllm.errors import CheckpointError
from bitllm.files import read_record, sha256_of_file
from bitllm.model.build import (
    CARD,
    build_bit_llm,
    load_trained,
    n_trainable,
    save_trained,
    train_interface,
)
from bitllm.model.checkpoint.base import BaseLlm, load_llm, placeholder_token_id, weights_hash
from bitllm.model.checkpoint.weights import WEIGHTS, is_encoder_parameter
from bitllm.model.encoder import BrainEncoder
from bitllm.model.interface import Interface, matched_prefix_width
from bitllm.model.likelihood import Due, token_log_probs
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.precision import Precision, base_dtype, computing, name_of
from bitllm.model.voxels import Anatomy
from bitllm.stages.examples import InstructedTrials, frozen_brain_tokens
from bitllm.stages.workspace import workspace
from bitllm.training.distributed import device, full_state, is_main
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainingData, Validation
from bitllm.training.optimizers import make_optimizers

METRIC = "validation_loss"


class SftConfig(StrictConfig):
    """The sft stage."""

    interface: Interface = "cross_attention"
    """How brain tokens reach the LLM."""
    adapter_layers: tuple[int, ...] = (3, 7, 11, 15)
    """Decoder layers (0-based) followed by an adapter."""
    gate_start: float = 1.0
    """Initial value of the gates; 0 closes the adapters, otherwise W_o starts at 0."""
    adapter_start: Literal["random", "self_attention"] = "random"
    """Initial weights of the adapters: random, or copies of the layer's self-attention."""
    prefix_hidden_width: int | None = Field(default=None, gt=0)
    """Hidden width of prefix_mlp; null for the width with as many parameters as cross_attention."""
    precision: Precision = "fp32"
    """Precision of the frozen LLM; auto chooses bf16 if it is faster on this machine."""
    compile_layers: bool = Field(default=False, exclude_if=lambda compiles: not compiles)
    """Whether the LLM's layers are compiled for training: minutes at the start, faster steps, other rounding."""
    gate_learning_rate: float | None = None
    """Learning rate of the gates; null for that of the other parameters."""
    # the next two are recorded only if they are set, so that records of runs without them remain valid
    encoder: Literal["frozen", "trained"] = Field(
        default="frozen", exclude_if=lambda encoder: encoder == "frozen"
    )
    """Whether the encoder is frozen, or trained on captions together with the interface."""
    encoder_learning_rate: float | None = Field(default=None, gt=0, exclude_if=lambda rate: rate is None)
    """Learning rate of a trained encoder; null for that of the other parameters."""
    tasks: TaskWeights = Field(
        default_factory=lambda: dict(CAPTIONS_ALONE), exclude_if=lambda tasks: tasks == CAPTIONS_ALONE
    )
    """Weight of each task of the store (`bitllm tasks STORE` lists them) and of `caption`."""
    questions_each: int = Field(default=1, gt=0, exclude_if=lambda n: n == 1)
    """Most questions about its image in an example, one after the other; dialogues are as long as they are."""
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=300, batch_size=64, learning_rate=3e-3, weight_decay=0.01
    )
    """Steps, batch size and learning rate."""
    group_by_length: bool = False
    """Whether the examples of a step have similar lengths, which reduces padding."""
    validate_every: int = Field(default=50, gt=0)
    """Steps between two validations (loss on validation images)."""

    @field_validator("encoder_learning_rate")
    @classmethod
    def _has_an_encoder_to_train(cls, rate: float | None, info: Any) -> float | None:
        if rate is not None and info.data.get("encoder") == "frozen":
            raise ValueError("expected none with a frozen encoder; set encoder to trained, or leave it out")
        return rate


class SftObjective(nn.Module):
    """Module for the training loop: batch → loss of the model."""

    def __init__(self, model: BitLlmForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Mean negative log-likelihood (nats) per answer token."""
        return {"loss": answer_loss(self.model, batch)}


def n_answer_tokens(batch: dict[str, Any]) -> int:
    """Number of tokens over which `answer_loss` averages."""
    return batch["due"].places.shape[1]


def answer_loss(model: Any, inputs: dict[str, Any]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood (nats) per answer token, given the brain input of each row.

    The input is ``betas`` with their anatomy, ``pooled`` betas of a frozen encoder, or ``brain_tokens``.
    """
    due = inputs["due"] if "due" in inputs else Due.of(inputs["labels"])
    brain_tokens = _brain_tokens(model.model.encoder, inputs)
    with computing(model):
        memory = model.model.brain_memory(brain_tokens=brain_tokens)
    log_probs, _ = token_log_probs(
        model, input_ids=inputs["input_ids"], labels=inputs["labels"], due=due, brain_memory=memory
    )
    return -log_probs.sum() / due.places.shape[1]


def _brain_tokens(encoder: BrainEncoder, inputs: dict[str, Any]) -> Float[Tensor, "B N width"] | None:
    if "pooled" in inputs:
        return frozen_brain_tokens(encoder, inputs["pooled"])
    if "betas" not in inputs:
        return inputs.get("brain_tokens")
    anatomy = Anatomy(*(inputs[name] for name in Anatomy._fields))
    # The encoder is trained in float32, whatever the precision of the LLM.
    with torch.autocast(inputs["betas"].device.type, enabled=False):
        return encoder(
            inputs["betas"], inputs["subject_index"], anatomy, per_subject=inputs.get("per_subject")
        )


def train_sft(  # noqa: PLR0913 - the parts of the stage
    store: Store,
    split: Split,
    folder: Path,
    *,
    start: BrainEncoder | Path,
    encoder_arguments: dict[str, Any],
    atlases: tuple[str, ...],
    llm_path: Path | str,
    config: SftConfig,
    seed: int,
    context: RunContext = RunContext(),  # noqa: B008 - frozen
) -> None:
    """Train the interface on the training trials of ``split``; the checkpoint appears only when it is complete.

    Parameters
    ----------
    start
        Encoder of the brain tokens (copied; trained if configured), or the folder of a finished sft with encoder and
        interface to start from.

    Raises
    ------
    CheckpointError
        If interface, encoder or LLM of the sft to start from differ from the configuration.
    """
    _check_data(store, split, start)
    base = load_llm(llm_path, dtype=base_dtype(config.precision))
    fingerprint = sft_fingerprint(store, split, start=start, llm_sha256=base.sha256, config=config, seed=seed)
    about = config.optimizer.selection(METRIC, split.train_subjects) | {"precision": name_of(base.llm.dtype)}
    train_encoder, micro_batch = config.encoder == "trained", context.settings.micro_batch
    with sealed_test(), workspace(folder, fingerprint, about=about, settings=context.settings) as work:
        torch.manual_seed(seed)
        model = _initial_model(start, base, encoder_arguments, atlases, config)
        train_interface(model, with_encoder=train_encoder)
        if config.compile_layers:
            model.model.language_model.compile_layers()
        model.model.encoder.to(device())  # the loop moves the rest, shard by shard with fsdp
        how: Any = {"atlases": atlases, "seed": seed, "train_encoder": train_encoder}
        how |= {"tasks": config.tasks, "questions_each": config.questions_each}
        training, validation = (
            InstructedTrials.of(
                select_trials(store, split, part, averaged=False), model, base.tokenizer, **how
            )
            for part in ("train", "validation")
        )
        at_once = micro_batch or config.optimizer.batch_size
        measure = partial(validation_loss, model, validation, at_once=at_once)
        loop = Loop(
            SftObjective(model),
            TrainingData(
                len(training.trials),
                training.batch,
                lengths=training.lengths if config.group_by_length else None,
                groups=training.trials.subject_index if train_encoder else None,  # as in align
                n_targets=n_answer_tokens,
            ),
            config.optimizer,
            work.folder,
            seed,
            name=f"sft ({config.interface})",
            context=context,
            micro_batch=micro_batch,
            make_optimizers=lambda: sft_optimizers(model, config),
            validation=Validation(config.validate_every, measure, METRIC, greater_is_better=False),
        )
        loop.fit()
        card = {"stage": "sft", "split": split.sha256, "seed": seed, "atlases": list(atlases)}
        card |= (
            space_of_training(store, atlases) | _tasks_of(store, config) | {"n_trainable": n_trainable(model)}
        )
        state = full_state(model, model.is_ours)
        if is_main():
            save_trained(model, work.folder, base=base, about=card, state=state)


def _check_data(store: Store, split: Split, start: BrainEncoder | Path) -> None:
    check_split(store, split)
    if isinstance(start, Path) and (start / CARD).is_file():  # without its card it is refused later
        require_same_space(store, read_record(start / CARD), where=start)


def _tasks_of(store: Store, config: SftConfig) -> dict[str, Any]:
    """Weights of the tasks and licenses of their sources, for the card; nothing for captions alone."""
    if is_captions_alone(config.tasks):
        return {}
    used = {task for task, weight in config.tasks.items() if weight > 0}
    return {"tasks": {"weights": config.tasks, "licenses": licenses_of_tasks(store, used)}}


def sft_fingerprint(
    store: Store, split: Split, *, start: BrainEncoder | Path, llm_sha256: str, config: SftConfig, seed: int
) -> dict[str, Any]:
    """Everything that determines the result of the sft stage."""
    begun = (
        {"sft to start from": sha256_of_file(start / WEIGHTS)}
        if isinstance(start, Path)
        else {"encoder": weights_hash(start)}
    )
    tasks = {} if is_captions_alone(config.tasks) else {"tasks": store.tasks_sha256}
    return {
        "stage": "sft",
        "sft": config.model_dump(mode="json"),
        "seed": seed,
        "split": split.sha256,
        "store": store.sha256,
        **begun,
        "llm": llm_sha256,
        **tasks,
    }


def _initial_model(
    start: BrainEncoder | Path,
    base: BaseLlm,
    encoder_arguments: dict[str, Any],
    atlases: tuple[str, ...],
    config: SftConfig,
) -> BitLlmForCausalLM:
    if isinstance(start, Path):
        return _init_from(start, base, encoder_arguments, atlases, config)
    return _untrained(base, start, encoder_arguments, config)


def _untrained(
    base: BaseLlm, encoder: BrainEncoder, encoder_arguments: dict[str, Any], config: SftConfig
) -> BitLlmForCausalLM:
    """A model with the given encoder and a newly initialized interface."""
    model = build_bit_llm(
        base.llm,
        encoder=encoder_arguments,
        interface=config.interface,
        adapter_layers=list(config.adapter_layers),
        gate_start=config.gate_start,
        adapter_start=config.adapter_start,
        brain_token_id=placeholder_token_id(base.tokenizer),
        prefix_hidden_width=config.prefix_hidden_width
        or matched_prefix_width(
            base.llm.config, token_width=encoder.token_width, n_adapters=len(config.adapter_layers)
        ),
    )
    model.model.encoder.load_state_dict(encoder.state_dict())
    return model


def _init_from(
    folder: Path,
    base: BaseLlm,
    encoder_arguments: dict[str, Any],
    atlases: tuple[str, ...],
    config: SftConfig,
) -> BitLlmForCausalLM:
    """The model of a finished sft; refused if the configuration describes another model."""
    model = load_trained(folder, base, interface=config.interface)
    found: dict[str, Any] = {
        "encoder": model.config.encoder,
        "atlases": read_record(folder / CARD, "atlases")["atlases"],
    }
    expected: dict[str, Any] = {"encoder": encoder_arguments, "atlases": list(atlases)}
    if config.interface == "cross_attention":
        found["adapter_layers"] = model.config.adapter_layers
        expected["adapter_layers"] = list(config.adapter_layers)
    for name, value in expected.items():
        if json.dumps(found[name], sort_keys=True) != json.dumps(value, sort_keys=True):
            raise CheckpointError(
                f"{folder}: expected an sft with the {name} of this configuration and store ({json.dumps(value)}), "
                f"found {json.dumps(found[name])}; set the value that it was trained with"
            )
    return model


@torch.no_grad()
def validation_loss(
    model: BitLlmForCausalLM, examples: InstructedTrials, *, at_once: int = 64
) -> dict[str, float]:
    """Loss on fewer than 512 evenly spaced trials, always the same ones, ``at_once`` in a forward pass."""
    n = len(examples.trials)
    chosen = [(0, index) for index in range(0, n, max(1, n // 256))]
    was_training = model.training
    model.eval()
    losses, n_tokens = [], 0
    for start in range(0, len(chosen), at_once):
        batch = send_to_device(examples.batch(chosen[start : start + at_once]), model.device)
        # Sums, so that batches with more tokens have more weight; the transfer to the CPU comes once, at the
        # end.
        losses.append(answer_loss(model, batch).double() * n_answer_tokens(batch))
        n_tokens += n_answer_tokens(batch)
    model.train(was_training)
    return {"validation_loss": float(torch.stack(losses).sum()) / n_tokens}


def sft_optimizers(model: BitLlmForCausalLM, config: SftConfig) -> list[torch.optim.Optimizer]:
    """Optimizers without weight decay on gates, norms and biases; gates and encoder can have their own learning rates.

    In a trained encoder, matrices and the inverse temperature have weight decay, as in align.
    """
    settings = config.optimizer
    every = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    interface = [(name, p) for name, p in every if not is_encoder_parameter(name)]
    of_encoder = [(name, p) for name, p in every if is_encoder_parameter(name)]
    encoder_rate = {"lr": config.encoder_learning_rate or settings.learning_rate}
    groups = [
        {
            "params": [p for name, p in interface if name.endswith(".gate")],
            "weight_decay": 0.0,
            "lr": config.gate_learning_rate or settings.learning_rate,
        },
        {
            "params": [p for name, p in interface if p.ndim < 2 and not name.endswith(".gate")],
            "weight_decay": 0.0,
        },
        {"params": [p for _, p in interface if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {
            "params": [p for name, p in of_encoder if not _decays(name, p)],
            "weight_decay": 0.0,
            **encoder_rate,
        },
        {
            "params": [p for name, p in of_encoder if _decays(name, p)],
            "weight_decay": settings.weight_decay,
            **encoder_rate,
        },
    ]
    return make_optimizers(model, groups, lr=settings.learning_rate, matrices=settings.matrices)


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 or name.endswith(".log_sharpness")
