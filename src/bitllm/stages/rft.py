"""Stage 3, rft: reward fine-tuning with GRPO on LoRA parameters of the LLM.

For each brain input: sample G captions, score each with the composite reward, take advantages within the group, and
update the LoRA parameters. The reference policy is the same model with LoRA switched off, so there is no second one.

Departures from GRPO as published (Shao et al. 2024), besides those that `bitllm.objectives.policy` names: one
optimiser step per sampling (on-policy, so that the ratio is 1 and the clip idle); the reward of a caption without an
end token is 0; temperature 1 without top-k or top-p, so that the sampled log-probabilities are the policy's.

References
----------
The poster, "Stage 3: Optimize generated captions with Neuro-Semantic RFT".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import Tensor

from bitllm.config import StrictConfig
from bitllm.data.batch import Anatomies
from bitllm.data.dataset import sealed_test, select_trials
from bitllm.data.prompt import INSTRUCTIONS, Prompter
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store
from bitllm.files import folder_written_whole, read_json, write_json
from bitllm.metrics.cider import cider_d
from bitllm.metrics.diversity import mean_length, n_distinct_captions
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.model.build import load_trained, n_trainable
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.precision import Precision, base_dtype
from bitllm.objectives.policy import LossType, group_advantages, policy_loss
from bitllm.stages.rewards import CompositeReward, Rewards, RewardWeights
from bitllm.stages.rollout import sample_rollout
from bitllm.stages.sft import prompter_for
from bitllm.training.decode import greedy_captions
from bitllm.training.embed import brain_tokens_of
from bitllm.training.run import EveryNSteps, OptimizerConfig, Progress, StageTrainer, make_trainer

_LLM_LAYERS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
_INTERFACE = r".*(\.adapter\.(q|o)_proj|interface\.memory\.(k|v)_proj\.\d+)"
LORA_TARGETS = {"llm": _LLM_LAYERS, "llm_and_interface": f"({_LLM_LAYERS}|{_INTERFACE})"}


class RftConfig(StrictConfig):
    """The rft stage."""

    n_captions: int = Field(default=8, ge=2)
    """G, captions sampled for each brain input."""
    max_new_tokens: int = Field(default=24, gt=0)
    """Longest caption, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    kl_weight: float = Field(default=0.02, ge=0)
    """β of GRPO, weight of the KL to the sft policy."""
    clip: float = Field(default=0.2, gt=0)
    """ε of GRPO."""
    loss_type: LossType = "grpo"
    """How token losses are averaged."""
    lora_rank: int = Field(default=16, gt=0)
    """Rank of LoRA; its α is twice the rank."""
    lora_targets: Literal["llm", "llm_and_interface"] = "llm"
    """Which linear layers get LoRA."""
    precision: Precision = "fp32"
    """Precision of the frozen LLM; auto is bf16 where that is faster."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: a fifth of the memory for more time."""
    rewards: RewardWeights = RewardWeights()
    """α, β, γ of the composite reward."""
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=60, batch_size=24, learning_rate=1e-3, weight_decay=0.0, warmup_steps=5, log_every=1
    )
    """How it learns; the batch size counts brain inputs."""
    validate_every: int = Field(default=20, gt=0)
    """Steps between two greedy decodings of validation images."""


class RftTrainer(StageTrainer):
    """GRPO on `transformers.Trainer`: sample, score, compare within the group, update."""

    policy: Any
    prompter: Prompter
    reward: CompositeReward
    config: RftConfig

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The GRPO loss of one batch of brain inputs; its rewards go into the log."""
        config = self.config
        rollout = sample_rollout(
            self.policy,
            self.prompter,
            INSTRUCTIONS[0],
            inputs["brain_tokens"],
            n_captions=config.n_captions,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        nsd_ids = np.repeat(inputs["nsd_id"].cpu().numpy(), config.n_captions)
        rewards = self.reward(nsd_ids.tolist(), rollout.captions, rollout.has_ended.tolist())
        grouped = torch.from_numpy(rewards.total).float().view(-1, config.n_captions)
        advantages = group_advantages(grouped).flatten().to(rollout.input_ids.device)
        log_probs, label_mask = rollout.log_probs(self.policy, temperature=config.temperature)
        ref_log_probs = None
        if config.kl_weight > 0:
            with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
                ref_log_probs = rollout.log_probs(self.policy, temperature=config.temperature).log_probs
        result = policy_loss(
            log_probs,
            log_probs.detach(),
            advantages,
            label_mask,
            ref_log_probs=ref_log_probs,
            kl_weight=config.kl_weight,
            clip=config.clip,
            loss_type=config.loss_type,
            max_length=config.max_new_tokens,
        )
        self.log(
            {
                **_reward_row(rewards, rollout.captions),
                "kl": float(result.kl),
                "ended": float(rollout.has_ended.float().mean()),
            }
        )
        return result.loss


def _reward_row(rewards: Rewards, captions: list[str]) -> dict[str, float]:
    return {
        "reward": float(rewards.total.mean()),
        "reward_cider": float(rewards.cider.mean()),
        "reward_bertscore": float(rewards.bertscore.mean()),
        "reward_ip": float(rewards.ip.mean()),
        "length": mean_length(captions),
        "distinct": n_distinct_captions(captions) / len(captions),
    }


def train_rft(  # noqa: PLR0913 - the parts of the stage
    store: Store,
    split: Split,
    folder: Path,
    *,
    sft_folder: Path,
    llm_path: Path | str,
    make_reward: Callable[[list[int], RewardWeights], CompositeReward],
    config: RftConfig,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Fine-tune LoRA parameters on the training trials of ``split``; write them whole or not at all.

    Parameters
    ----------
    sft_folder
        Checkpoint to start from.
    make_reward
        Builds the reward from the training images and the weights.
    """
    check_split(store, split)
    base = load_llm(llm_path, dtype=base_dtype(config.precision))
    model = load_trained(sft_folder, base)
    atlases = tuple(read_json(sft_folder / "bitllm.json")["atlases"])
    torch.manual_seed(seed)
    peft_model = with_lora(model, config)
    with sealed_test(), folder_written_whole(folder, replace=True) as unfinished:
        trials = select_trials(store, split, "train", averaged=False)
        anatomies = Anatomies.of(store, trials.subjects, atlases)
        brain_tokens = brain_tokens_of(model.model.encoder, trials, anatomies)
        nsd_id = torch.from_numpy(trials.nsd_id)

        def collate(pairs: list[tuple[int, int]]) -> dict[str, Tensor]:
            indices = [index for _, index in pairs]
            return {"brain_tokens": brain_tokens[indices], "nsd_id": nsd_id[indices]}

        trainer = make_trainer(
            RftTrainer,
            peft_model,
            config.optimizer,
            unfinished,
            n_examples=len(trials),
            collate=collate,
            seed=seed,
            what="rft",
            progress=progress,
        )
        trainer.policy, trainer.config = model, config
        trainer.prompter = prompter_for(model, base.tokenizer)
        trainer.reward = make_reward(sorted(set(trials.nsd_id.tolist())), config.rewards)
        watch = _Validation(
            store, split, model, trainer.prompter, anatomies, max_new_tokens=config.max_new_tokens
        )
        trainer.add_callback(EveryNSteps(config.validate_every, watch.measure, unfinished / "log.jsonl"))
        trainer.train()
        peft_model.save_pretrained(str(unfinished))
        write_json(
            unfinished / "rft.json",
            {
                "stage": "rft",
                "sft": sft_folder.name,
                "split": split.sha256,
                "seed": seed,
                "n_trainable": n_trainable(peft_model),
            },
        )


def with_lora(model: BitLlmForCausalLM, config: RftConfig) -> PeftModel:
    """The policy: LoRA parameters put into ``model``, everything else frozen."""
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS[config.lora_targets],
    )
    if config.gradient_checkpointing:
        # the re-entrant kind gives no gradient to tensors passed by keyword, as the brain memory is
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return get_peft_model(model, lora)


class _Validation:
    """Greedy captions of validation images: CIDEr under real and under permuted betas, so that hacking shows."""

    def __init__(
        self,
        store: Store,
        split: Split,
        model: Any,
        prompter: Prompter,
        anatomies: Anatomies,
        *,
        max_new_tokens: int,
        n_images: int = 96,
    ) -> None:
        trials = select_trials(store, split, "validation", averaged=True)
        chosen = np.unique(np.linspace(0, len(trials) - 1, n_images).astype(int))
        self.brain_tokens = brain_tokens_of(model.model.encoder, trials, anatomies)[chosen]
        self.references = [ptb_tokenize(store.captions[int(trials.nsd_id[index])]) for index in chosen]
        self.model, self.prompter, self.max_new_tokens = model, prompter, max_new_tokens

    def measure(self) -> dict[str, float]:
        """Mean CIDEr of real betas, and its distance to that of another image's betas."""
        captions = greedy_captions(
            self.model, self.prompter, self.brain_tokens, max_new_tokens=self.max_new_tokens
        )
        tokenised = ptb_tokenize(captions)
        real = float(cider_d(tokenised, self.references).mean())
        permuted = float(cider_d(tokenised[1:] + tokenised[:1], self.references).mean())
        return {
            "validation_cider": real,
            "validation_real_minus_permuted": real - permuted,
            "validation_length": mean_length(captions),
            "validation_distinct": n_distinct_captions(captions) / len(captions),
        }
