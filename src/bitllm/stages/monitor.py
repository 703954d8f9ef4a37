"""Validation during rft: do captions still depend on the brain, and how do they change?

Signs of reward hacking: CIDEr rises while the difference real − permuted falls; captions become longer, repetitive
or identical.
"""

from dataclasses import replace

import numpy as np

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.metrics.cider import cider_d
from bitllm.metrics.diversity import distinct_n, mean_length, n_distinct_captions
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.model.captioner import Captioner
from bitllm.model.embed import brain_tokens_of


class ValidationMonitor:
    """CIDEr of greedy captions of validation images, with the correct and with permuted betas."""

    def __init__(
        self,
        store: Store,
        split: Split,
        captioner: Captioner,
        anatomies: Anatomies,
        *,
        max_new_tokens: int,
        n_images: int = 96,
    ) -> None:
        trials = select_trials(store, split, "validation", averaged=True)
        chosen = np.unique(np.linspace(0, len(trials) - 1, n_images).astype(int))
        few = replace(
            trials,
            subject_index=trials.subject_index[chosen],
            rows=[trials.rows[index] for index in chosen],
            nsd_id=trials.nsd_id[chosen],
        )
        self.brain_tokens = brain_tokens_of(captioner.encoder, few, anatomies)
        self.references = [ptb_tokenize(store.captions[int(trials.nsd_id[index])]) for index in chosen]
        self.captioner, self.max_new_tokens = captioner, max_new_tokens

    def measure(self) -> dict[str, float]:
        """CIDEr with real betas, its difference from CIDEr with another image's betas, and caption statistics."""
        captions = self.captioner.greedy(self.brain_tokens, max_new_tokens=self.max_new_tokens)
        tokenized = ptb_tokenize(captions)
        real = float(cider_d(tokenized, self.references).mean())
        # A caption depends on the betas only: that of the next image is what the next image's betas give.
        permuted = float(cider_d(tokenized[1:] + tokenized[:1], self.references).mean())
        return {
            "validation_cider": real,
            "validation_real_minus_permuted": real - permuted,
            "validation_length": mean_length(captions),
            "validation_distinct": n_distinct_captions(captions) / len(captions),
            "validation_distinct_2": distinct_n(tokenized, 2),
            "validation_repetition": 1
            - float(np.mean([distinct_n([caption], 2) or 1 for caption in tokenized])),
        }
