"""Stage 3, rft: reward fine-tuning with GRPO on LoRA parameters of the LLM.

For each brain input: sample G captions, score each with the composite reward, compute advantages within the group,
and update the LoRA parameters. The reference policy is the same model with LoRA switched off, so no second model is
needed.

Departures from GRPO as published (Shao et al. 2024), in addition to those listed in `bitllm.losses.policy`: one
optimizer step per rollout (on-policy, so the ratio is 1 and clipping has no effect); the reward of a caption without an
end token is 0 (a log-probability: its lowest value); temperature 1 without top-k or top-p, so that the sampled
log-probabilities are those of the policy.

References
----------
The poster, "Stage 3: Optimize generated captions with Neuro-Semantic RFT".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field, model_validator
from torch import Tensor, nn

from bitllm.config import StrictConfig
from bitllm.data.batch import TrialBetas
from bitllm.data.dataset import TrialSet, sealed_test, select_trials
from bitllm.data.prompt import INSTRUCTIONS, Prompt
from bitllm.data.splits import Split, check_split
from bitllm.data.store import Store
from bitllm.data.tasks.exchange import Question
from bitllm.data.tasks.mixture import CAPTIONS_ALONE, TaskMixture, TaskWeights, is_captions_alone
from bitllm.errors import ConfigError
from bitllm.files import read_record, sha256_of_file, write_json
from bitllm.losses.policy import (
    Baseline,
    LossType,
    group_advantages,
    is_flat,
    policy_loss,
    weighted_parts,
)
from bitllm.metrics.diversity import mean_length, n_distinct_captions
from bitllm.model.build import CARD, load_trained, n_trainable
from bitllm.model.captioner import Captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.checkpoint.weights import RFT_CARD, WEIGHTS, sft_of_rft
from bitllm.model.encoder import BrainEncoder
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.precision import Precision, base_dtype, name_of
from bitllm.model.rollout import MixedRollout, Rollout
from bitllm.stages.examples import checked_anatomies, frozen_brain_tokens, pooled_betas
from bitllm.stages.monitor import ValidationMonitor
from bitllm.stages.rewards import (
    Answers,
    Parts,
    Reward,
    RewardConfig,
    RewardError,
    RewardSource,
    checked_reward,
)
from bitllm.stages.workspace import workspace
from bitllm.training.distributed import (
    any_rank,
    device,
    full_state,
    is_main,
    is_sharded,
    sum_over_ranks,
    world_size,
)
from bitllm.training.loop import Loop, OptimizerConfig, RunContext, TrainingData, Validation, batch_shares

METRIC = "validation_cider"
_CAPTION = Prompt(INSTRUCTIONS[0])
# peft matches these patterns against full module names: plain names like q_proj would also select the adapters
_LLM_LAYERS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
_INTERFACE = r".*(\.adapter\.(q|o)_proj|interface\.memory\.(k|v)_proj\.\d+)"
LORA_TARGETS = {"llm": _LLM_LAYERS, "llm_and_interface": f"({_LLM_LAYERS}|{_INTERFACE})"}


class RftConfig(StrictConfig):
    """The rft stage."""

    n_captions: int = Field(default=8, ge=2)
    """G, number of captions sampled for each brain input."""
    max_new_tokens: int = Field(default=24, gt=0)
    """Longest caption, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of sampling."""
    kl_weight: float = Field(default=0.02, ge=0)
    """β of GRPO, weight of the KL to the sft policy."""
    clip: float = Field(default=0.2, gt=0)
    """ε of GRPO."""
    loss_type: LossType = "grpo"
    """How token losses are averaged. bnpo depends on micro-batches and processes; dapo allows no micro-batches."""
    lora_rank: int = Field(default=16, gt=0)
    """Rank of LoRA; its α is twice the rank."""
    lora_targets: Literal["llm", "llm_and_interface"] = "llm"
    """Which linear layers get LoRA."""
    precision: Precision = "fp32"
    """Precision of the frozen LLM; auto chooses bf16 if it is faster on this machine."""
    compile_layers: bool = Field(default=False, exclude_if=lambda compiles: not compiles)
    """Whether the LLM's layers are compiled for training: minutes at the start, faster steps, other rounding."""
    gradient_checkpointing: bool = False
    """Whether to recompute activations in the backward pass: a fifth of the memory for more time."""
    rewards: RewardConfig = RewardConfig()
    """Weights of the parts of the reward."""
    tasks: TaskWeights = Field(
        default_factory=lambda: dict(CAPTIONS_ALONE), exclude_if=lambda tasks: tasks == CAPTIONS_ALONE
    )
    """Weight of each task of the store, which sft should be trained on, and of `caption`. An input is either captioned
    or asked one question, of which the answers are rewarded by their accuracy."""
    reward_references: RewardSource = "own"
    """What a caption is rewarded by: its own image or, as a check, another image (permuted), the mean over training
    images that are the same for all captions (any), a random number (none)."""
    baseline: Baseline = "grpo"
    """What the reward of a caption is compared with: mean and standard deviation of its group (grpo), or the mean of
    the group's other captions (rloo)."""
    optimizer: OptimizerConfig = OptimizerConfig(
        steps=60, batch_size=24, learning_rate=1e-3, weight_decay=0.0, warmup_steps=5, log_every=1
    )
    """Steps, batch size (number of brain inputs) and learning rate."""
    validate_every: int = Field(default=20, gt=0)
    """Steps between two validations (greedy captions of validation images)."""

    @model_validator(mode="after")
    def _checks_captions_alone(self) -> "RftConfig":
        if self.reward_references != "own" and not is_captions_alone(self.tasks):
            raise ValueError(
                f"`reward_references`: expected own with questions among the tasks, found {self.reward_references}; "
                "the checks are for captions alone"
            )
        return self


class RftObjective(nn.Module):
    """Module for the training loop: sample, reward, compare within the group, and return the GRPO loss.

    Parameters
    ----------
    policy
        The model with LoRA; the reference policy is the same model with LoRA switched off.
    captioner
        Captioner of the same model; it samples.
    mixture
        Tasks of the inputs; None for captions alone.
    """

    def __init__(
        self,
        policy: PeftModel,
        captioner: Captioner,
        reward: Reward,
        config: RftConfig,
        *,
        seed: int,
        mixture: TaskMixture | None = None,
    ) -> None:
        super().__init__()
        self.policy, self.mixture = policy, mixture
        self.captioner, self.reward, self.settings, self.seed = captioner, reward, config, seed

    def forward(
        self,
        pooled: Float[Tensor, "B queries"],
        nsd_id: Int[np.ndarray, " B"],
        example: Int[np.ndarray, "B 2"],
    ) -> dict[str, Any]:
        """The GRPO loss of brain inputs with their (epoch, index) pairs ``example``, and values for the log."""
        config, model = self.settings, self.policy.get_base_model()
        encoder: BrainEncoder = model.model.encoder  # type: ignore[assignment, union-attr]
        brain_tokens = frozen_brain_tokens(encoder, pooled)
        questions = self._questions(nsd_id, example)
        rollout = self.captioner.sample(
            brain_tokens,
            n_captions=config.n_captions,
            instruction=[_CAPTION if one is None else one.prompt for one in questions] or INSTRUCTIONS[0],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seeds=[rollout_seed(self.seed, *pair) for pair in example.tolist()],
            synced_gpus=is_sharded(
                model
            ),  # other processes need the shards of one that has finished its captions
        )
        parts = self._rewards(nsd_id, example, questions, rollout)
        groups = {name: torch.from_numpy(part).view(-1, config.n_captions) for name, part in parts.items()}
        weights = {name: config.rewards.weights.get(name, 1.0) for name in parts}
        weighted = weighted_parts(groups, weights, scale=config.rewards.scale)
        rewards = torch.stack(list(weighted.values())).sum(dim=0)
        log_probs, label_mask = rollout.log_probs(model, temperature=config.temperature)
        advantages = group_advantages(rewards, baseline=config.baseline).flatten().float()
        ref_log_probs = None
        if config.kl_weight > 0:
            with torch.no_grad(), self.policy.disable_adapter():
                ref_log_probs = rollout.log_probs(model, temperature=config.temperature).log_probs
        result = policy_loss(
            log_probs,
            log_probs.detach(),  # the sampling policy is the current one, so the ratio is 1 but has a gradient
            advantages.to(log_probs.device),
            label_mask,
            ref_log_probs=ref_log_probs,
            kl_weight=config.kl_weight,
            clip=config.clip,
            loss_type=config.loss_type,
            max_length=config.max_new_tokens,
            n_tokens=sum_over_ranks(label_mask.sum()) / world_size() if config.loss_type == "dapo" else None,
        )
        return {
            "loss": result.loss,
            "reward": sum(weights[name] * float(part.mean()) for name, part in groups.items()),
            **{f"reward_{name}": float(part.mean()) for name, part in groups.items()},
            # what decides among the captions of an input; means, so that processes may be averaged
            **{f"spread_{name}": float(part.std(dim=1).mean()) for name, part in weighted.items()},
            "flat_groups": float(is_flat(rewards).float().mean()),
            "length": mean_length(rollout.captions),
            "distinct": n_distinct_captions(rollout.captions) / len(rollout.captions),
            "kl": result.kl,
            "ended": float(rollout.has_ended.float().mean()),
        }

    def _questions(
        self, nsd_id: Int[np.ndarray, " B"], example: Int[np.ndarray, "B 2"]
    ) -> list[Question | None]:
        """The question to each input, None to caption it; empty for captions alone."""
        if self.mixture is None:
            return []
        rows = zip(nsd_id.tolist(), *example.T.tolist(), strict=True)
        return [
            self.mixture.question(image, seed=self.seed, epoch=epoch, index=n) for image, epoch, n in rows
        ]

    def _rewards(
        self,
        nsd_id: Int[np.ndarray, " B"],
        example: Int[np.ndarray, "B 2"],
        questions: list[Question | None],
        rollout: Rollout | MixedRollout,
    ) -> Parts:
        """Rewards of sampled captions; if they fail in one process, all processes stop together."""
        parts, failure, n = None, None, self.settings.n_captions
        answers = Answers(
            np.repeat(example[:, 1], n).tolist(),
            np.repeat(nsd_id, n).tolist(),
            rollout.captions,
            rollout.has_ended.tolist(),
            [one for one in questions for _ in range(n)],
        )
        try:
            parts = checked_reward(self.reward, answers)
        except RewardError as error:
            failure = error
        if any_rank(failure is not None)[0] or parts is None:
            raise failure or RewardError(
                "reward: expected rewards in all processes, found an error in another process; see its message"
            )
        return parts


def rollout_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of the captions sampled for one brain input in one epoch."""
    return int(np.random.SeedSequence([seed, epoch, index, 3]).generate_state(1, np.uint64)[0] >> 1)


def train_rft(  # noqa: PLR0913 - the parts of the stage
    store: Store,
    split: Split,
    folder: Path,
    *,
    sft_folder: Path,
    llm_path: Path | str,
    make_reward: Callable[[TrialSet], Reward],
    config: RftConfig,
    seed: int,
    context: RunContext = RunContext(),  # noqa: B008 - frozen
) -> None:
    """Train LoRA parameters on the training trials of ``split``; the checkpoint appears only when it is complete.

    Parameters
    ----------
    sft_folder
        The sft checkpoint to start from.
    make_reward
        Builds the reward from the training trials.
    """
    check_split(store, split)
    micro_batch = context.settings.micro_batch
    _require_whole_steps(config, micro_batch)
    base = load_llm(llm_path, dtype=base_dtype(config.precision))
    model = load_trained(sft_folder, base)
    model.model.encoder.to(device())  # the loop moves the rest, shard by shard with fsdp
    atlases = tuple(read_record(sft_folder / CARD, "atlases")["atlases"])
    fingerprint = rft_fingerprint(store, split, sft=sft_folder, config=config, seed=seed)
    about = config.optimizer.selection(METRIC, split.train_subjects) | {"precision": name_of(base.llm.dtype)}
    with sealed_test(), workspace(folder, fingerprint, about=about, settings=context.settings) as work:
        torch.manual_seed(seed)
        policy = with_lora(model, config)
        if config.compile_layers:
            model.model.language_model.compile_layers()
        trials = select_trials(store, split, "train", averaged=False)
        anatomies = checked_anatomies(model.model.encoder, trials, atlases)
        captioner = Captioner.of(policy.get_base_model(), base.tokenizer)
        mixture = _mixture(store, trials, config, context)
        reward = make_reward(trials)
        monitor = ValidationMonitor(store, split, captioner, anatomies, max_new_tokens=config.max_new_tokens)
        betas = TrialBetas(trials, anatomies, device(), resident=False)
        pooled = pooled_betas(model.model.encoder, betas)
        loop = Loop(
            RftObjective(policy, captioner, reward, config, seed=seed, mixture=mixture),
            TrainingData(len(trials), collate_rft(trials, pooled)),
            config.optimizer,
            work.folder,
            seed,
            name="rft",
            context=context,
            micro_batch=micro_batch,
            validation=Validation(config.validate_every, monitor.measure, METRIC),
        )
        loop.fit()
        state = full_state(policy, lambda name: ".lora_" in name)
        card = {"stage": "rft", **sft_of_rft(sft_folder, folder), "split": split.sha256, "seed": seed}
        if is_main():
            policy.save_pretrained(str(work.folder), state_dict=state)
            write_json(work.folder / RFT_CARD, card | {"n_trainable": n_trainable(policy)})


def _mixture(store: Store, trials: TrialSet, config: RftConfig, context: RunContext) -> TaskMixture | None:
    """The tasks of the inputs; None for captions alone."""
    if is_captions_alone(config.tasks):
        return None
    if context.settings.parallel == "fsdp" and world_size() > 1:
        raise ConfigError(
            "rft.tasks: expected captions alone with trainer.parallel fsdp, found questions, with which "
            "processes would wait for each other's shards; use ddp"
        )
    mixture = TaskMixture.of(store, config.tasks, trials.nsd_id.tolist())
    for one in mixture.all():
        if one.trial is not None:
            raise ConfigError(
                f"rft.tasks.{one.task}: expected questions about images, found one about a single trial ({one.id}); "
                "set its weight to 0"
            )
        if one.answer_type == "text":
            raise ConfigError(
                f"rft.tasks.{one.task}: expected short answers, which can be compared with the accepted ones, found "
                f"sentences ({one.id}); set its weight to 0"
            )
    return mixture


def _require_whole_steps(config: RftConfig, micro_batch: int | None) -> None:
    """Refuse ``dapo`` with micro-batches: its divisor is known only when the whole step is sampled."""
    if config.loss_type == "dapo" and batch_shares(config.optimizer.batch_size, micro_batch)[1] > 1:
        raise ConfigError(
            f"rft.loss_type: expected grpo, dr_grpo or bnpo with micro_batch {micro_batch}, found dapo, which divides "
            "by the tokens of the whole step; leave micro_batch out, or choose another"
        )


def rft_fingerprint(store: Store, split: Split, *, sft: Path, config: RftConfig, seed: int) -> dict[str, Any]:
    """Everything that determines the result of the rft stage, except the models of its rewards."""
    return {
        "stage": "rft",
        "rft": config.model_dump(mode="json"),
        "seed": seed,
        "split": split.sha256,
        "store": store.sha256,
        "sft": sha256_of_file(sft / WEIGHTS),
        **({} if is_captions_alone(config.tasks) else {"tasks": store.tasks_sha256}),
    }


def collate_rft(
    trials: TrialSet, pooled: Float[Tensor, "n queries"]
) -> Callable[[list[tuple[int, int]]], dict[str, Any]]:
    """A function from (epoch, index) pairs to a batch; ids stay on the CPU, where rewards are computed."""

    def collate(pairs: list[tuple[int, int]]) -> dict[str, Any]:
        indices = [index for _, index in pairs]
        return {
            "pooled": pooled[torch.tensor(indices, device=pooled.device)],
            "nsd_id": trials.nsd_id[indices],
            "example": np.array(pairs),
        }

    return collate


def with_lora(model: BitLlmForCausalLM, config: RftConfig) -> PeftModel:
    """The policy: ``model`` with LoRA parameters; everything else is frozen."""
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS[config.lora_targets],
    )
    if config.gradient_checkpointing:
        # re-entrant checkpointing drops gradients of keyword arguments, and the brain memory is one
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return get_peft_model(model, lora)
