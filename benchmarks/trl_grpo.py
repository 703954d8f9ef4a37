"""TRL's `GRPOTrainer` on a BIT-LLM: the peer of our rft, by four overrides of its private methods.

TRL passes a fixed list of extra inputs to a model, so the brain input of each prompt is carried past it. Tied to
TRL 1.16, which is a development dependency alone: an oracle of the tests and the other side of ``rft_step.py``.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

Reward = Callable[[list[int], list[str]], list[float]]


class BrainGrpo(GRPOTrainer):
    """GRPO whose prompts each carry a brain input.

    Attributes
    ----------
    brain
        Brain inputs by name, one row for each example of the data set; each goes to the model under its name.
    shared
        Inputs that all examples have in common, such as the anatomy.
    prompt_ids
        The prompt of every example.
    """

    brain: dict[str, Tensor]
    shared: dict[str, Tensor]
    prompt_ids: list[int]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rows = torch.tensor([example["row"] for example in inputs])
        self._now = self._of(rows)
        return {**super()._generate_and_score_completions(inputs), "brain_rows": rows}

    def _of(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.brain.items()} | self.shared

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Tensor]]:
        return [self.prompt_ids] * len(prompts), None, dict(self._now)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._now = self._of(inputs["brain_rows"])
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **settings: Any) -> Any:
        with_brain = functools.partial(model, **self._now)
        return super()._get_per_token_logps_and_entropies(with_brain, *arguments, **settings)


def make_trainer(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    prompt_ids: list[int],
    brain: dict[str, Tensor],
    reward: Reward,
    n_examples: int,
    shared: dict[str, Tensor] | None = None,
    **settings: Any,
) -> BrainGrpo:
    """A trainer of DeepSeekMath's GRPO: one update for each sampling, KL without ratio.

    Parameters
    ----------
    reward
        Scores captions of examples.
    settings
        Of `trl.GRPOConfig`.
    """

    def score(completions: list[str], row: list[int], **_: Any) -> list[float]:
        return reward(row, completions)

    chosen = {
        "loss_type": "grpo",
        "use_bias_correction_kl": False,
        "beta": 0.02,
        "temperature": 1.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
    }
    data = Dataset.from_list([{"prompt": "what ?", "row": row} for row in range(n_examples)])
    trainer = BrainGrpo(
        model=model,
        reward_funcs=score,
        args=GRPOConfig(output_dir=str(folder), **{**chosen, **settings}),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.brain, trainer.shared, trainer.prompt_ids = brain, shared or {}, prompt_ids
    return trainer
