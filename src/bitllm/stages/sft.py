"""Stage 2, sft: brain instruction fine-tuning.

Encoder and LLM are frozen; the interface (projection and adapters, or a prefix) learns causal language modelling on
the tokens of a caption and the end token, under a varied instruction in the LLM's chat template. Because the encoder
is frozen, brain tokens are computed once and kept. One of an image's captions is chosen by (seed, epoch, index).

As an option the encoder learns too, from the captions alone: brain tokens are then computed anew in every step.
Instead of an encoder the stage may start from a finished sft and go on, as where it is adapted to a new subject.

References
----------
The poster, "Stage 2: Brain Instruction Fine-Tuning". An encoder that learns together with the interface is MindLLM's
way (Qiu et al. 2025, arXiv 2502.15786); ours differs in the encoder (see `bitllm.model.encoder`) and in the data.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from bitllm.config import StrictConfig
from bitllm.data.batch import BrainInput
from bitllm.data.dataset import sealed_test, select_trials
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store
from bitllm.errors import CheckpointError
from bitllm.files import read_json, sha256_of_file
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
from bitllm.model.likelihood import token_log_probs
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.precision import Precision, base_dtype, computing, name_of
from bitllm.stages.examples import CaptionedTrials
from bitllm.training.callbacks import Choice
from bitllm.training.ranks import device, is_main, n_ranks
from bitllm.training.run import OptimizerConfig, make_trainer, train_to_the_end
from bitllm.training.sharding import whole_state
from bitllm.training.trainer import StageTrainer
from bitllm.training.workspace import Running, workspace

_BRAIN = (*BrainInput._fields, "brain_tokens")


class SftConfig(StrictConfig):
    """The sft stage."""

    interface: Interface = "cross_attention"
    """How brain tokens reach the LLM."""
    adapter_layers: tuple[int, ...] = (3, 7, 11, 15)
    """Decoder layers (0-based) followed by an adapter."""
    gate_start: float = 1.0
    """First value of the adapters' gates; 0 closes them, otherwise W_o starts at 0."""
    adapter_start: Literal["random", "self_attention"] = "random"
    """First values of the adapters: random, or copies of their layer's own self-attention."""
    prefix_hidden_width: int | None = Field(default=None, gt=0)
    """Hidden width of prefix_mlp; where it is not given, the one that matches cross_attention's parameters."""
    precision: Precision = "fp32"
    """Precision of the frozen LLM; auto is bf16 where that is faster."""
    gate_learning_rate: float | None = None
    """Learning rate of the gates; that of everything else where it is not given."""
    # the next two are recorded only where they are set: records of runs from before they were there stay valid
    encoder: Literal["frozen", "trained"] = Field(
        default="frozen", exclude_if=lambda encoder: encoder == "frozen"
    )
    """Whether the encoder stays as it is, or learns from the captions together with the interface."""
    encoder_learning_rate: float | None = Field(default=None, gt=0, exclude_if=lambda rate: rate is None)
    """Learning rate of an encoder that is trained; that of everything else where it is not given."""
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=300, batch_size=64, learning_rate=3e-3, weight_decay=0.01
    )
    """How it learns."""
    group_by_length: bool = False
    """Whether examples of like length come into one step, so that less is computed on padding."""
    validate_every: int = Field(default=50, gt=0)
    """Steps between two losses on validation images."""

    @field_validator("encoder_learning_rate")
    @classmethod
    def _has_an_encoder_to_train(cls, rate: float | None, info: Any) -> float | None:
        if rate is not None and info.data.get("encoder") == "frozen":
            raise ValueError("expected none beside a frozen encoder; set encoder to trained, or leave it out")
        return rate


class SftTrainer(StageTrainer):
    """Cross-entropy per answer token of the whole step, however its examples are shared out."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.model_accepts_loss_kwargs = True  # lets the Trainer count the answer tokens of all processes
        self._loss_shifts_labels = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with the groups of `make_optimizer`."""
        if self.optimizer is None:
            objective = self.plain_module()
            self.optimizer = make_optimizer(objective.model, objective.settings)
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This process's share of the mean negative log-likelihood per answer token."""
        mean = model(**inputs)["loss"]
        if num_items_in_batch is None:
            return mean
        own = (inputs["labels"][..., 1:] != -100).sum()
        return mean * own * n_ranks() / num_items_in_batch  # gradients are averaged over processes


class SftObjective(nn.Module):
    """What the Trainer calls: a batch → the loss of the model that it holds."""

    def __init__(self, model: BitLlmForCausalLM, config: SftConfig) -> None:
        super().__init__()
        self.model, self.settings = model, config

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Mean negative log-likelihood (nats) per answer token."""
        return {"loss": answer_loss(self.model, batch)}


def answer_loss(model: Any, inputs: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood (nats) per answer token under the brain tokens or betas of each input."""
    with computing(model):
        memory = model.model.brain_memory(**{name: inputs[name] for name in _BRAIN if name in inputs})
    log_probs, label_mask = token_log_probs(
        model,
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=inputs["labels"],
        brain_memory=memory,
    )
    return -log_probs.sum() / label_mask.sum()


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
    running: Running = Running(),  # noqa: B008 - frozen
) -> None:
    """Train the interface on the training trials of ``split``; write the checkpoint whole or not at all.

    Parameters
    ----------
    start
        What brain tokens are made by, of the align stage or untrained: it is copied, and learns where configured. Or
        the folder of a finished sft, whose interface goes on too.

    Raises
    ------
    CheckpointError
        If the sft to start from has another interface or encoder than the configuration, or another LLM.
    """
    check_split(store, split)
    base = load_llm(llm_path, dtype=base_dtype(config.precision))
    learnt_from = sft_learns_from(store, split, start=start, llm_sha256=base.sha256, config=config, seed=seed)
    choice = Choice("validation_loss", False, config.optimizer.keep, config.optimizer.patience)
    about = {**choice.about(split.train_subjects), "precision": name_of(base.llm.dtype)}
    encoder_learns = config.encoder == "trained"
    with sealed_test(), workspace(folder, learnt_from, about=about, settings=running.settings) as work:
        torch.manual_seed(seed)
        if isinstance(start, Path):
            model = _gone_on_from(start, base, encoder_arguments, atlases, config)
        else:
            model = _untrained(base, start, encoder_arguments, config)
        train_interface(model, with_encoder=encoder_learns)
        nn.Module.to(model, device())
        parts = {
            part: CaptionedTrials.of(
                select_trials(store, split, part, averaged=False),
                model,
                base.tokenizer,
                atlases=atlases,
                seed=seed,
                kept_in=running.settings.brain_tokens,
                encoder_learns=encoder_learns,
            )
            for part in ("train", "validation")
        }
        training = parts["train"]
        trainer = make_trainer(
            SftTrainer,
            SftObjective(model, config),
            config.optimizer,
            work.folder,
            n_examples=len(training.trials),
            collate=training.batch,
            seed=seed,
            what=f"sft ({config.interface})",
            progress=running.progress,
            settings=running.settings,
            micro_batch=running.settings.micro_batch,
            lengths=training.lengths if config.group_by_length else None,
            groups=training.trials.subject_index if encoder_learns else None,  # as in align
        )
        at_once = running.settings.micro_batch or config.optimizer.batch_size
        measure = partial(validation_loss, model, parts["validation"], at_once=at_once)
        train_to_the_end(trainer, work, every=config.validate_every, measure=measure, choice=choice)
        card = {"stage": "sft", "split": split.sha256, "seed": seed, "atlases": list(atlases)}
        card["n_trainable"] = n_trainable(model)
        state = whole_state(model, model.is_ours)
        if is_main():
            save_trained(model, work.folder, base=base, about=card, state=state)


def sft_learns_from(
    store: Store, split: Split, *, start: BrainEncoder | Path, llm_sha256: str, config: SftConfig, seed: int
) -> dict[str, Any]:
    """Everything that decides what the sft stage learns."""
    begun = (
        {"sft to start from": sha256_of_file(start / WEIGHTS)}
        if isinstance(start, Path)
        else {"encoder": weights_hash(start)}
    )
    return {
        "stage": "sft",
        "sft": config.model_dump(mode="json"),
        "seed": seed,
        "split": split.sha256,
        "store": store.sha256,
        **begun,
        "llm": llm_sha256,
    }


def _untrained(
    base: BaseLlm, encoder: BrainEncoder, encoder_arguments: dict[str, Any], config: SftConfig
) -> BitLlmForCausalLM:
    """The model before its first step: the encoder as given, an interface with first values, and what learns."""
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


def _gone_on_from(
    folder: Path,
    base: BaseLlm,
    encoder_arguments: dict[str, Any],
    atlases: tuple[str, ...],
    config: SftConfig,
) -> BitLlmForCausalLM:
    """The model of a finished sft, if it is what the configuration describes."""
    model = load_trained(folder, base, interface=config.interface)
    found: dict[str, Any] = {"encoder": model.config.encoder, "atlases": read_json(folder / CARD)["atlases"]}
    expected: dict[str, Any] = {"encoder": encoder_arguments, "atlases": list(atlases)}
    if config.interface == "cross_attention":
        found["adapter_layers"] = model.config.adapter_layers
        expected["adapter_layers"] = list(config.adapter_layers)
    for name, value in expected.items():
        if json.dumps(found[name], sort_keys=True) != json.dumps(value, sort_keys=True):
            raise CheckpointError(
                f"{folder}: expected an sft with the {name} of this configuration and store ({json.dumps(value)}), "
                f"found {json.dumps(found[name])}; set what it was trained with"
            )
    return model


@torch.no_grad()
def validation_loss(
    model: BitLlmForCausalLM, examples: CaptionedTrials, *, at_once: int = 64
) -> dict[str, float]:
    """Loss on fewer than 512 trials, evenly spread, always the same; ``at_once`` of them together."""
    n = len(examples.trials)
    chosen = [(0, index) for index in range(0, n, max(1, n // 256))]
    was_training = model.training
    model.eval()
    loss, n_tokens = 0.0, 0
    for start in range(0, len(chosen), at_once):
        batch = examples.batch(chosen[start : start + at_once])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        own = int((batch["labels"][:, 1:] != -100).sum())
        loss += float(answer_loss(model, batch)) * own
        n_tokens += own
    model.train(was_training)
    return {"validation_loss": loss / n_tokens}


def make_optimizer(model: BitLlmForCausalLM, config: SftConfig) -> torch.optim.Optimizer:
    """AdamW; gates, norms and biases do not decay, gates and an encoder may have learning rates of their own.

    Of an encoder that learns decays what decays in align: its matrices and its sharpness.
    """
    settings = config.optimizer
    every = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    learning = [(name, p) for name, p in every if not is_encoder_parameter(name)]
    of_encoder = [(name, p) for name, p in every if is_encoder_parameter(name)]
    of_its_own = {"lr": config.encoder_learning_rate or settings.learning_rate}
    groups = [
        {
            "params": [p for name, p in learning if name.endswith(".gate")],
            "weight_decay": 0.0,
            "lr": config.gate_learning_rate or settings.learning_rate,
        },
        {
            "params": [p for name, p in learning if p.ndim < 2 and not name.endswith(".gate")],
            "weight_decay": 0.0,
        },
        {"params": [p for _, p in learning if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in of_encoder if not _decays(name, p)], "weight_decay": 0.0, **of_its_own},
        {
            "params": [p for name, p in of_encoder if _decays(name, p)],
            "weight_decay": settings.weight_decay,
            **of_its_own,
        },
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 or name.endswith(".log_sharpness")
