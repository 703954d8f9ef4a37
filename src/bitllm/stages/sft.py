"""Stage 2, sft: brain instruction fine-tuning.

Encoder and LLM are frozen; the interface (projection and adapters, or a prefix) learns causal language modelling on
the tokens of a caption and the end token, under a varied instruction in the LLM's chat template. Because the encoder
is frozen, brain tokens are computed once and kept. One of an image's captions is chosen by (seed, epoch, index).

References
----------
The poster, "Stage 2: Brain Instruction Fine-Tuning".
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from bitllm.config import StrictConfig
from bitllm.data.batch import Anatomies
from bitllm.data.dataset import TrialSet, sealed_test, select_trials
from bitllm.data.prompt import INSTRUCTIONS, Prompter, choose, pad_answers, plain_caption
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store
from bitllm.model.build import build_bit_llm, n_trainable, save_trained, train_interface
from bitllm.model.checkpoint.base import load_llm, placeholder_token_id
from bitllm.model.encoder import BrainEncoder
from bitllm.model.interface import Interface, matched_prefix_width
from bitllm.model.likelihood import token_log_probs
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.precision import Precision, base_dtype, computing
from bitllm.training.embed import brain_tokens_of
from bitllm.training.run import EveryNSteps, OptimizerConfig, Progress, StageTrainer, make_trainer


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
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=300, batch_size=64, learning_rate=3e-3, weight_decay=0.01
    )
    """How it learns."""
    validate_every: int = Field(default=50, gt=0)
    """Steps between two losses on validation images."""


class SftTrainer(StageTrainer):
    """Cross-entropy of the answer, computed only where an answer token is due."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean negative log-likelihood per answer token."""
        return answer_loss(model, inputs)


def answer_loss(model: Any, inputs: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood (nats) per answer token under the brain tokens of each input."""
    with computing(model):
        memory = model.model.brain_memory(brain_tokens=inputs["brain_tokens"])
    log_probs, label_mask = token_log_probs(
        model,
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=inputs["labels"],
        brain_memory=memory,
    )
    return -log_probs.sum() / label_mask.sum()


def prompter_for(model: BitLlmForCausalLM, tokenizer: Any) -> Prompter:
    """Prompts with room for the brain tokens where the interface is a prefix."""
    if model.config.interface == "cross_attention":
        return Prompter(tokenizer)
    return Prompter(tokenizer, model.model.encoder.n_brain_tokens, model.config.brain_token_id)


def train_sft(  # noqa: PLR0913 - the parts of the stage
    store: Store,
    split: Split,
    folder: Path,
    *,
    encoder: BrainEncoder,
    encoder_arguments: dict[str, Any],
    atlases: tuple[str, ...],
    llm_path: Path | str,
    config: SftConfig,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Train the interface on the training trials of ``split``; write the checkpoint whole or not at all."""
    check_split(store, split)
    base = load_llm(llm_path, dtype=base_dtype(config.precision))
    torch.manual_seed(seed)
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
    train_interface(model)
    log_folder = folder.with_name(folder.name + ".log")
    shutil.rmtree(log_folder, ignore_errors=True)  # of a run that was killed
    with sealed_test():
        training = _Examples(store, split, "train", model, base.tokenizer, atlases=atlases, seed=seed)
        validation = _Examples(store, split, "validation", model, base.tokenizer, atlases=atlases, seed=seed)
        trainer = make_trainer(
            SftTrainer,
            model,
            config.optimizer,
            log_folder,
            n_examples=len(training.trials),
            collate=training.batch,
            seed=seed,
            what=f"sft ({config.interface})",
            progress=progress,
            optimizers=(make_optimizer(model, config), None),
        )
        trainer.add_callback(
            EveryNSteps(config.validate_every, lambda: validation.loss(model), log_folder / "log.jsonl")
        )
        trainer.train()
    about = {
        "stage": "sft",
        "split": split.sha256,
        "seed": seed,
        "atlases": list(atlases),
        "n_trainable": n_trainable(model),
    }
    save_trained(model.eval(), folder, base=base, about=about, log=log_folder)


class _Examples:
    """Trials with their brain tokens and captions, as batches."""

    def __init__(
        self,
        store: Store,
        split: Split,
        part: str,
        model: BitLlmForCausalLM,
        tokenizer: Any,
        *,
        atlases: tuple[str, ...],
        seed: int,
    ) -> None:
        self.trials: TrialSet = select_trials(store, split, part, averaged=False)
        anatomies = Anatomies.of(store, self.trials.subjects, atlases)
        self.brain_tokens = brain_tokens_of(model.model.encoder, self.trials, anatomies)
        self.captions = store.captions
        self.seed, self.tokenizer, self.prompter = seed, tokenizer, prompter_for(model, tokenizer)

    def batch(self, pairs: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Prompts, answers and brain tokens of (epoch, index) pairs."""
        prompts, answers = [], []
        for epoch, index in pairs:
            captions = self.captions[int(self.trials.nsd_id[index])]
            where = {"seed": self.seed, "epoch": epoch, "index": index}
            prompts.append(
                self.prompter.prompt_ids(INSTRUCTIONS[choose(len(INSTRUCTIONS), purpose="prompt", **where)])
            )
            answers.append(
                self.prompter.answer_ids(
                    plain_caption(captions[choose(len(captions), purpose="caption", **where)])
                )
            )
        return {
            **pad_answers(prompts, answers, self.tokenizer.pad_token_id),
            "brain_tokens": self.brain_tokens[[index for _, index in pairs]],
        }

    @torch.no_grad()
    def loss(self, model: BitLlmForCausalLM) -> dict[str, float]:
        """Loss on at most 256 trials, evenly spread, always the same."""
        indices = range(0, len(self.trials), max(1, len(self.trials) // 256))
        batch = {
            name: tensor.to(model.device) for name, tensor in self.batch([(0, i) for i in indices]).items()
        }
        was_training = model.training
        loss = answer_loss(model.eval(), batch)
        model.train(was_training)
        return {"validation_loss": float(loss)}


def make_optimizer(model: BitLlmForCausalLM, config: SftConfig) -> torch.optim.Optimizer:
    """AdamW; gates, norms and biases do not decay, gates may have a learning rate of their own."""
    settings = config.optimizer
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
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
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)
