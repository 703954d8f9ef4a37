"""Numbers taken out of ``results.json``, where any key may be missing, and the way they are written."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from bitllm.metrics.intervals import Estimate

MISSING = "–"
SIMULATED_WARNING = "these numbers say nothing about NSD"


def section(results: Any, *path: str) -> dict[str, Any]:
    """The mapping at ``path`` of nested mappings, or an empty one if anything on the way is missing."""
    found = results
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def number(results: Any, *path: str) -> float | None:
    """The finite number at ``path`` of nested mappings, or None."""
    *folders, last = path
    value = section(results, *folders).get(last)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return float(value) if math.isfinite(value) else None


def text(results: Any, key: str) -> str:
    """The value of ``key`` as text, empty if it is missing."""
    value = section(results).get(key)
    return "" if value is None else str(value)


def estimate(results: Any, *path: str, name: str = "value") -> Estimate | None:
    """The number called ``name`` in the mapping at ``path``, with ``low``, ``high`` and ``p`` beside it."""
    value = number(results, *path, name)
    if value is None:
        return None
    return Estimate(value, *(number(results, *path, key) for key in ("low", "high", "p")))


def difference(results: dict, system: str, control: str, metric: str = "CIDEr") -> Estimate | None:
    """The paired difference real − control of one metric, in points."""
    return estimate(results, "differences", system, control, metric, name="difference")


def score(results: dict, system: str, metric: str = "CIDEr") -> Estimate | None:
    """A system's metric with its interval over images, in points."""
    return _with_ends(results, ("systems", system), ("intervals", system), metric)


def control_score(results: dict, system: str, control: str, metric: str = "CIDEr") -> Estimate | None:
    """The metric of a system under a control, with its interval over images, in points."""
    row = (system, control)
    return _with_ends(results, ("controls", *row), ("control_intervals", *row), metric)


def single_trial_score(results: dict, system: str, metric: str = "CIDEr") -> Estimate | None:
    """A system's metric on single trials, with its interval over images, in points."""
    row = ("single_trial", system)
    return _with_ends(results, row, (*row, "intervals"), metric)


def _with_ends(
    results: dict, path: tuple[str, ...], interval_path: tuple[str, ...], metric: str
) -> Estimate | None:
    value = number(results, *path, metric)
    if value is None:
        return None
    return Estimate(value, *(number(results, *interval_path, metric, key) for key in ("low", "high")))


def data_sentence(results: dict) -> str:
    """The name of the data, and for a simulated brain what its numbers do not say."""
    name = text(results, "data") or "not named in the results"
    if "simulat" in name.lower():
        return f"Data: {name}: {SIMULATED_WARNING}."
    return f"Data: {name}."


def plain(value: float | None, digits: int = 1) -> str:
    """A number with a true minus sign; a dash if it is missing."""
    if value is None:
        return MISSING
    rounded = round(value, digits) + 0.0  # adding 0 turns −0 into 0
    return f"{rounded:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A number with its sign."""
    shown = plain(value, digits)
    return f"+{shown}" if value is not None and value > 0 else shown


def interval(found: Estimate | None, digits: int = 1) -> str:
    """``[low, high]``, or nothing if there is no interval."""
    if found is None or not found.has_interval:
        return ""
    return f"[{plain(found.low, digits)}, {plain(found.high, digits)}]"


def with_interval(found: Estimate | None, digits: int = 1, *, sign: bool = False) -> str:
    """A number followed by its interval."""
    if found is None:
        return MISSING
    shown = signed(found.value, digits) if sign else plain(found.value, digits)
    return f"{shown} {interval(found, digits)}".rstrip()


def p_value(p: float | None) -> str:
    """A p-value as it is reported; nothing if it is missing."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def whole(value: float | None) -> str:
    """A count with separators between thousands."""
    return plain(value, 0)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def subject_note(results: dict) -> str:
    """Whether the subject was trained on, in words; empty where it is not known."""
    is_trained_on = results.get("subject_is_trained_on")
    return "" if is_trained_on is None else "trained on" if is_trained_on else "never trained on"


def images_note(results: dict) -> str:
    """What part of the split the images are, in words; empty where it is not known."""
    if results.get("is_store_of_training") is False:
        return "of a store or split that it was not trained on"
    return {
        "test": "never trained on",
        "validation": "of the validation part, by which settings are chosen",
    }.get(text(results, "part"), "")
