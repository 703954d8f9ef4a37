"""Which numbers of the training logs are drawn together, for every stage and run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitllm.report.charts import Series, line_chart
from bitllm.report.values import number

MAIN_STAGES = ("align", "sft", "rft")
STAGE_TITLES = {
    "align": "Stage 1, align: brain, picture and caption embeddings brought together",
    "sft": "Stage 2, sft: the interface learns to caption",
    "rft": "Stage 3, rft: reinforced on sampled captions",
    "clip": "The small CLIP: trained on training pictures and captions, no brain",
    "llm": "The small Llama: trained on training captions, no brain",
}


class Panel(NamedTuple):
    """A chart: its title and the log keys drawn in it with their names."""

    title: str
    keys: Mapping[str, str]


PANELS = (
    Panel("Loss", {"loss": "training", "validation_loss": "validation"}),
    Panel(
        "Validation retrieval, R@10",
        {
            "validation_R@10": "real betas",
            "validation_shuffle_R@10": "voxels shuffled",
            "validation_chance_R@10": "chance",
        },
    ),
    Panel("Validation retrieval, R@1 and R@5", {"validation_R@1": "R@1", "validation_R@5": "R@5"}),
    Panel(
        "Validation retrieval, median rank",
        {"validation_MedR": "real betas", "validation_chance_MedR": "chance"},
    ),
    Panel(
        "Sampled reward and its parts",
        {
            "reward": "reward",
            "reward_cider": "CIDEr",
            "reward_bertscore": "BERTScore",
            "reward_ip": "inner product",
        },
    ),
    Panel(
        "Greedy CIDEr on validation images",
        {"validation_cider": "real betas", "validation_real_minus_permuted": "real − other image's betas"},
    ),
    Panel("Distance to the reference model (KL)", {"kl": "KL"}),
    Panel("Words per sampled caption", {"length": "length"}),
    Panel("Distinct sampled captions", {"distinct": "distinct"}),
    Panel("Learning rate", {"lr": "learning rate", "learning_rate": "learning rate"}),
    Panel("Gradient norm", {"grad_norm": "norm"}),
    Panel("Temperature of the contrastive loss", {"temperature": "temperature"}),
)


class StageCurves(NamedTuple):
    """The charts of one stage or run."""

    name: str
    title: str
    charts: list[str]


def stage_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[StageCurves]:
    """Draw every known key of every stage's log; a stage without any is left out.

    Parameters
    ----------
    curves
        Stage or run name → its log rows, each with ``step`` and some numbers.
    """
    names = [name for name in MAIN_STAGES if name in curves]
    names += [name for name in curves if name not in MAIN_STAGES]
    found = []
    for name in names:
        charts = [chart for panel in PANELS if (chart := _chart(name, panel, curves[name]))]
        if charts:
            found.append(StageCurves(name, STAGE_TITLES.get(name, f"Baseline {name}"), charts))
    return found


def series_of(rows: Sequence[Mapping[str, Any]], key: str, name: str) -> Series | None:
    """The finite values of one key by step, or None if there is none."""
    points = {}
    for row in rows:
        step, value = number(row, "step"), number(row, key)
        if step is not None and value is not None:
            points[step] = value
    if not points:
        return None
    steps = tuple(sorted(points))
    return Series(name, steps, tuple(points[step] for step in steps))


def _chart(stage: str, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> str:
    series = [one for key, name in panel.keys.items() if (one := series_of(rows, key, name))]
    return line_chart(f"{stage}: {panel.title}", series) if series else ""
