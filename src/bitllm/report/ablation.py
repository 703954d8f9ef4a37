"""The interface ablation: the same encoder and recipe with each interface, and the poster's figures beside it."""

from typing import NamedTuple

from bitllm.metrics.intervals import Estimate
from bitllm.report.values import difference, estimate, number, score

METRICS = ("CIDEr", "BLEU-4", "ROUGE-L", "METEOR")


class Poster(NamedTuple):
    """A row of the poster's tables: NSD, held-out subject 8, Llama-3.2-3B-Instruct."""

    trainable: str
    scores: dict[str, float]


POSTER = {
    "prefix": Poster("3.15M", {"BLEU-4": 9.45, "ROUGE-L": 34.99, "METEOR": 15.12, "CIDEr": 24.80}),
    "prefix_mlp": Poster("100.67M", {"BLEU-4": 7.69, "ROUGE-L": 33.59, "METEOR": 14.58, "CIDEr": 23.98}),
    "sft": Poster("103.82M", {"BLEU-4": 9.57, "ROUGE-L": 35.96, "METEOR": 15.76, "CIDEr": 26.64}),
    "rft": Poster("", {"BLEU-4": 15.1, "ROUGE-L": 40.42, "CIDEr": 34.9}),
}
NAMES = {
    "prefix": "prefix, projection only",
    "prefix_mlp": "prefix, matched MLP",
    "sft": "cross-attention",
    "rft": "cross-attention, after rft",
}


class AblationRow(NamedTuple):
    """One interface in this run and on the poster."""

    name: str
    n_trainable: float | None
    scores: dict[str, Estimate]
    over_permuted: Estimate | None
    """Real − another image's betas, CIDEr."""
    sft_lead: Estimate | None
    """Cross-attention − this interface, CIDEr, paired."""
    poster: Poster


def ablation_rows(results: dict) -> list[AblationRow]:
    """The interfaces that the results hold; empty where there is only one."""
    rows = []
    for key, poster in POSTER.items():
        found = {metric: one for metric in METRICS if (one := score(results, key, metric)) is not None}
        if found:
            rows.append(
                AblationRow(
                    NAMES[key],
                    number(results, "parameters", key),
                    found,
                    difference(results, key, "permuted"),
                    estimate(results, "differences", f"sft - {key}", "CIDEr", name="difference"),
                    poster,
                )
            )
    has_prefix = any(row.name.startswith("prefix") for row in rows)
    return rows if has_prefix else []
