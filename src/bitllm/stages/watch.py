"""What is watched while rewards are learnt: whether captions still follow the brain, and how they change.

A policy that learns to please the reward without the brain shows as real − permuted that falls while CIDEr rises, as
captions that grow, repeat themselves or become one.
"""

from typing import Any

import numpy as np

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import select_trials
from bitllm.data.prompt import Prompter
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.metrics.cider import cider_d
from bitllm.metrics.diversity import distinct_n, mean_length, n_distinct_captions
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.training.decode import greedy_captions
from bitllm.training.embed import brain_tokens_of


class RewardWatch:
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
            "validation_distinct_2": distinct_n(tokenised, 2),
            "validation_repetition": 1
            - float(np.mean([distinct_n([caption], 2) or 1 for caption in tokenised])),
        }
