"""One decode as the page shows it: the trial as it is, another image's betas, and the trial after a perturbation.

No caption is told without its control: the same system on another image's betas of the same subject. The words of
all three are weighed by the trial's own, unchanged betas: a strange input calls loudly for its own words, which is no
evidence. What a perturbation took away is told for the words of the unchanged caption.
"""

from collections import OrderedDict
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bitllm.evaluation.attention import adapter_readings
from bitllm.evaluation.bits import word_evidence
from bitllm.explore.jobs import Job
from bitllm.explore.perturbation import NEEDS_ROI, perturbed
from bitllm.explore.session import Session
from bitllm.model.captioner import Captioner

N_OTHERS = 8
"""Other images that a word's probability is compared with."""
MAX_NEW_TOKENS = 24
_KEPT = 64


class Decoder:
    """Makes the decodes of one session; what is the same for every perturbation of a trial is kept."""

    def __init__(self, session: Session, *, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.session, self.max_new_tokens = session, max_new_tokens
        self._kept: OrderedDict[tuple, dict[str, dict[str, Any]]] = OrderedDict()

    def __call__(self, job: Job) -> None:
        """Tell the panels ``real``, ``control`` and, where something was perturbed, ``perturbed``."""
        ask = job.ask
        trials = self.session.trials(ask.subject)
        real = trials.betas(ask.nsd_id, ask.repetition)
        roi = self.session.roi(ask.subject, ask.roi) if ask.perturbation in NEEDS_ROI and ask.roi else None
        changed = perturbed(real, ask.perturbation, roi=roi, factor=ask.factor, seed=ask.seed)
        shown = np.asarray(self.session.brain(ask.subject).shown)
        job.tell("betas", values=np.round(changed[shown].astype(np.float64), 2).tolist())
        job.tell("loading", system=ask.system)
        system = self.session.system(ask.system)
        others = trials.others(ask.nsd_id, n=N_OTHERS + 1, single=ask.repetition is not None, seed=0)
        tokens = self.session.brain_tokens(system, ask.subject, np.stack([real, changed, *others]))
        self._panels(job, system, tokens)

    def _panels(self, job: Job, system: Captioner, tokens: Float[Tensor, "n N width"]) -> None:
        ask = job.ask
        real, changed, control, others = tokens[:1], tokens[1:2], tokens[2:3], tokens[3:]
        key = (ask.system, ask.subject, ask.nsd_id, ask.repetition)
        if key in self._kept:
            self._kept.move_to_end(key)
            for panel in self._kept[key].values():
                job.tell("panel", **panel)
        else:
            # the trial's own betas speak for every caption: do they call for another image's words, too?
            self._kept[key] = {
                name: self._panel(job, system, name, reads, speaks=real, others=others)
                for name, reads in (("real", real), ("control", control))
            }
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        if ask.perturbation != "none":
            caption = self._kept[key]["real"]["caption"]
            lost = _bits(system, caption, real, changed)
            self._panel(job, system, "perturbed", changed, speaks=real, others=others, lost=lost)

    def _panel(
        self,
        job: Job,
        system: Captioner,
        name: str,
        reads: Float[Tensor, "1 N width"],
        *,
        speaks: Float[Tensor, "1 N width"],
        others: Float[Tensor, "k N width"],
        lost: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        (caption,) = system.greedy(
            reads,
            max_new_tokens=self.max_new_tokens,
            on_text=lambda text: job.tell("text", panel=name, text=text),
        )
        panel = {
            "panel": name,
            "caption": caption,
            "words": _bits(system, caption, speaks, others),
            "lost": lost,
            "adapters": [
                {
                    "layer": reading.layer,
                    "openness": round(reading.openness, 4),
                    "weights": np.round(reading.weights.numpy().astype(np.float64), 4).tolist(),
                }
                for reading in adapter_readings(system, caption, reads)
            ],
        }
        job.tell("panel", **panel)
        return panel


def _bits(
    system: Captioner, caption: str, speaks: Float[Tensor, "1 N width"], others: Float[Tensor, "k N width"]
) -> list[dict[str, Any]]:
    """Bits of each word, the mean over the other inputs: two passes of the model, whatever their number."""
    rows = word_evidence(system, [caption] * len(others), speaks.expand_as(others), [others])
    return [
        {"word": of_word[0].word, "bits": round(float(np.mean([word.bits for word in of_word])), 3)}
        for of_word in zip(*rows, strict=True)
    ]
