"""The terminal's table of a grounding, within 80 columns."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 80

_NAMES = {"real": "real betas", "other_subject": "other subject", "llm_alone": "LLM alone"}


def render_grounding(content: dict[str, Any]) -> RenderableType:
    """Captions, bits, encoder, groups and ROIs, the verdict last."""
    parts: list[RenderableType] = [Text(_title(content["about"]), style="bold"), _captions(content)]
    parts += [_bits(content), *_encoder(content["encoder"]), *_groups(content["groups"])]
    if "rois" in content:
        parts += [_rois(content["rois"])]
    parts += [Text(f"not run: {name}: {reason}", style="dim") for name, reason in content["not_run"].items()]
    parts.append(Text(content["verdict"]["sentence"], style="bold"))
    return Group(*parts)


def print_grounding(content: dict[str, Any], console: Console) -> None:
    """Print the table no wider than 80 columns."""
    console.print(render_grounding(content), width=min(WIDTH, console.width))


def _title(about: dict[str, Any]) -> str:
    data = "SIMULATED brain" if about["data"] == "simulated" else f"data: {about['data']}"
    return (
        f"{about['run']} on {about['subject']} ({data}), {about['part']} of split {about['split']} "
        f"{about['split_sha256'][:8]}: {about['n_images']} images, {about['n_trials']} trials, seed "
        f"{about['seed']}"
    )


def _captions(content: dict[str, Any]) -> Table:
    table = _table("captions", ("distinct", "BLEU-4", "CIDEr", "real − control [95 %]", "p"))
    for trials, label in (("averaged", ""), ("single", "single trials: ")):
        for name, row in content["captions"][trials].items():
            if trials == "single" and name not in ("real", "permuted"):
                continue
            difference = row.get("real - control", {}).get("CIDEr")
            metrics = row["metrics"]
            cells = [str(row["distinct"]), f"{metrics['BLEU-4']:.1f}", f"{metrics['CIDEr']:.1f}"]
            empty = f" ({row['n_empty']} empty)" if row["n_empty"] else ""
            table.add_row(label + _NAMES.get(name, name) + empty, *cells, *_difference(difference, 1))
    human = content["captions"]["human"]
    if human is not None:
        drawn = f": {human['drawn']}" if "drawn" in human else ""
        table.add_row(f"human ceiling{drawn}", "", f"{human['BLEU-4']:.1f}", f"{human['CIDEr']:.1f}", "", "")
    return table


def _bits(content: dict[str, Any]) -> Table:
    table = _table("bits of the references", ("per word [95 %]", "per token [95 %]", "p"))
    for trials, label in (("averaged", ""), ("single", "single: ")):
        for name, row in content["bits"][trials].items():
            if trials == "single" and name != "permuted":
                continue
            cells = [_with_interval(row[unit], "mean", 3) for unit in ("per_word", "per_token")]
            shown = f"{label}real − {_NAMES.get(name, name)}"
            table.add_row(shown, *cells, _p(row["per_word"]["p"]))
    return table


def _encoder(encoder: dict[str, Any]) -> Iterable[RenderableType]:
    cosine = encoder["cosine_real_zero"]
    yield Text(
        f"encoder ({encoder['embedding']}): cosine(real, zero) {cosine['mean']:.3f} ± {cosine['sd']:.3f}, "
        f"N = {cosine['N']}"
    )
    if "averaged" not in encoder:
        return
    one = encoder["averaged"]["retrieval"]["real"]
    table = _table(f"retrieval among {one['N']}", ("R@1", "R@5", "R@10 [95 %]", "median rank"))
    rows = list(encoder["averaged"]["retrieval"].items())
    rows += [
        (f"single trials: {name}", encoder["single"]["retrieval"][name]) for name in ("real", "permuted")
    ]
    for name, row in rows:
        interval = f"{row['R@10']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        table.add_row(
            _NAMES.get(name, name), f"{row['R@1']:.3f}", f"{row['R@5']:.3f}", interval, f"{row['MedR']:g}"
        )
    chance = [f"{min(k, one['N']) / one['N']:.3f}" for k in (1, 5, 10)]
    table.add_row("chance", *chance, f"{one['chance_MedR']:g}")
    yield table
    curve = " · ".join(
        f"{row['ways']}: {row['correct']:.3f} (chance {row['chance']:.3f})"
        for row in encoder["averaged"]["identification"]
    )
    yield Text(f"N-way identification: {curve}")


def _groups(groups: dict[str, Any]) -> Iterable[RenderableType]:
    table = _table("groups of images", ("images", "CIDEr", "real − permuted [95 %]", "bits/word"))
    named = [(f"{row['n_repetitions']} repetition(s)", row) for row in groups["repetitions"]]
    named += [(row["category"], row) for row in groups.get("category", [])]
    if "similarity_to_training" in groups:
        thirds = groups["similarity_to_training"]["thirds"]
        named += [(f"{row['third']} to training", row) for row in thirds]
    for name, row in named:
        if "CIDEr" not in row:
            table.add_row(name, str(row["n_images"]), "", "too few images", "")
            continue
        difference, _ = _difference(row["CIDEr, real - permuted"], 1)
        bits = f"{row['bits_per_word']['mean']:+.3f}"
        table.add_row(name, str(row["n_images"]), f"{row['CIDEr']['mean']:.1f}", difference, bits)
    yield table


def _rois(rois: dict[str, Any]) -> Table:
    table = _table("ROI", ("voxels", "bits/word lost [95 %]", "same size", "CIDEr lost", "alone"))
    for row in rois["rows"]:
        lost = row["silenced"]["bits"]
        table.add_row(
            _roi_name(row["roi"]),
            str(row["n_voxels"]),
            _with_interval(lost, "mean", 3),
            f"{row['same_size']['bits']['mean']:+.3f}",
            f"{row['silenced']['CIDEr']['difference']:+.1f}",
            f"{row['alone']['bits']['mean']:+.3f}",
        )
    return table


def _roi_name(name: str) -> str:
    """A label alone, set in under its atlas, so that the line fits."""
    atlas, _, label = name.partition(":")
    return f"  {label}" if label else atlas


def _table(first: str, others: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), width=WIDTH)
    table.add_column(first, overflow="fold", ratio=1)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _difference(row: dict[str, float] | None, digits: int) -> tuple[str, str]:
    return ("", "") if row is None else (_with_interval(row, "difference", digits), _p(row["p"]))


def _with_interval(row: dict[str, float], key: str, digits: int) -> str:
    return f"{row[key]:+.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _p(p: float) -> str:
    return f"{p:.3f}"
