"""A question about an amount as curves: CIDEr with the own and with another image's responses, and bits, along it."""

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from bitllm.experiments.results.drawing import BLUE, ORANGE, WIDTH, axes_at, brain_points, new_figure

_LEFT, _RIGHT = 0.62, 0.2  # inches
_ARMS = (
    ("real", "cider", "the image's own responses", BLUE, "D", "-"),
    ("permuted", "cider", "another image's responses (permuted)", ORANGE, "s", "--"),
    ("real", "bits", "bits per caption", BLUE, "D", "-"),
)


def draw_curves(rows: pd.DataFrame, along: dict[str, float], unit: str) -> Figure:
    """CIDEr above, bits below; means over brains with the t interval of their means, and a point for each brain."""
    label = unit if len(unit) < 56 else unit.replace(" (", "\n(", 1)
    figure = new_figure(4.15 + 0.17 * label.count("\n"))
    width = WIDTH - _LEFT - _RIGHT
    above = axes_at(figure, left=_LEFT, top=0.12, width=width, height=2.1)
    below = axes_at(figure, left=_LEFT, top=2.42, width=width, height=1.15)
    for control, measure, words, colour, marker, line in _ARMS:
        axes = above if measure == "cider" else below
        _draw_arm(
            axes,
            means_along(rows, along, control, measure),
            words,
            (colour, marker, line),
            f"{control} {measure}",
        )
    above.set_ylabel("CIDEr")
    above.set_ylim(bottom=min(0.0, above.get_ylim()[0]), top=above.get_ylim()[1] * 1.22)
    above.legend(loc="upper left", frameon=False, fontsize=9.5, borderaxespad=0.1, handlelength=2.4)
    below.set_ylabel("bits")
    below.axhline(0, color="#222222", linewidth=0.8, zorder=1)
    below.set_xlabel(label)
    for axes in (above, below):
        axes.set_xticks(sorted(along.values()), [f"{amount:g}" for amount in sorted(along.values())])
    above.tick_params(labelbottom=False)
    return figure


def means_along(
    rows: pd.DataFrame, along: dict[str, float], control: str, measure: str
) -> dict[float, Float[np.ndarray, " brains"]]:
    """Every brain's mean of a measure (over model seeds and images) at every amount, ascending."""
    found = {}
    for system, amount in sorted(along.items(), key=lambda one: one[1]):
        part = rows[(rows["system"] == system) & (rows["control"] == control)]
        found[amount] = part.groupby("simulator_seed")[measure].mean().to_numpy(np.float64)
    return found


def half_interval(values: Float[np.ndarray, " brains"]) -> float:
    """Half the 95 % interval of Student's t; 0 for one brain, which has none."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else 0.0


def _draw_arm(
    axes: Axes, means: dict[float, np.ndarray], label: str, look: tuple[str, str, str], name: str
) -> None:
    colour, marker, line = look
    amounts = list(means)
    shift = 0.012 * (amounts[-1] - amounts[0])
    axes.errorbar(
        amounts,
        [float(values.mean()) for values in means.values()],
        yerr=[half_interval(values) for values in means.values()],
        color=colour,
        marker=marker,
        markersize=5.5,
        linestyle=line,
        linewidth=1.6,
        capsize=3,
        label=label,
        zorder=2,
    )
    for amount, values in means.items():
        places = [amount + shift] * len(values)
        brain_points(axes, places, values, colour=colour, name=f"{name} {amount:g}")
