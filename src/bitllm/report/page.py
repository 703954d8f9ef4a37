"""One HTML page that holds a whole run: no network, no script, everything inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from bitllm.files import file_written_whole
from bitllm.metrics.intervals import Estimate
from bitllm.report import values
from bitllm.report.ablation import METRICS, ablation_rows
from bitllm.report.brain import BrainMaps
from bitllm.report.charts import retrieval_charts, stage_curves, system_charts
from bitllm.report.gallery import GalleryItem, card_groups
from bitllm.report.headline import headline, key_numbers
from bitllm.report.tables import (
    between_systems,
    metrics_of,
    retrieval_rows,
    score_groups,
)
from bitllm.report.values import estimate, number, section
from bitllm.report.wording import CONTROLS, control_label, in_known_order


class Bits(NamedTuple):
    """Brain evidence of one system, in bits."""

    system: str
    per_caption: Estimate | None
    per_token: Estimate | None


class Fact(NamedTuple):
    """One line of the provenance."""

    name: str
    value: str


def write_report(
    results: dict[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    gallery: Sequence[GalleryItem],
    out: Path,
    *,
    brain: BrainMaps | None = None,
) -> None:
    """Write the report of a run as one self-contained HTML file, whole or not at all.

    Parameters
    ----------
    results
        What ``results.json`` holds: scores in the COCO tools' points, controls, paired differences,
        retrieval, provenance. Any key may be missing.
    curves
        Stage or run name → rows of its log, each with ``step``.
    gallery
        Test images with their captions; may be empty.
    out
        The file to be written.
    brain
        Maps, where there are any.

    Raises
    ------
    OutputError
        If the disk is full or the place cannot be written.
    """
    page = render(
        "report.html",
        subject=values.text(results, "subject"),
        subject_note=values.subject_note(results),
        headline=headline(results),
        key_numbers=key_numbers(results),
        metrics=metrics_of(results),
        groups=score_groups(results),
        between=between_systems(results),
        system_charts=system_charts(results),
        ablation=ablation_rows(results),
        ablation_metrics=METRICS,
        retrieval=retrieval_rows(results),
        retrieval_charts=retrieval_charts(retrieval_rows(results), results.get("identification") or ()),
        cosine=section(results, "cosine_real_zero"),
        bits=_bits(results),
        brain=brain,
        reward=section(results, "rft_reward"),
        stages=stage_curves(curves),
        card_groups=card_groups(gallery, list(section(results, "systems"))),
        has_words=any(item.words for item in gallery),
        facts=facts(results),
        seconds=_known_numbers(results, "seconds"),
        versions=section(results, "versions"),
        parameters=_known_numbers(results, "parameters"),
        controls=_controls_explained(results),
    )
    with file_written_whole(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def render(template: str, **content: Any) -> str:
    """A page from one of the package's templates, which may use the functions of `bitllm.report.values` as ``n``."""
    environment = Environment(
        loader=PackageLoader("bitllm.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(n=values, **content)


def facts(results: dict[str, Any]) -> list[Fact]:
    """Where the numbers come from; what is not known is left out."""
    names = {
        "data": "Data",
        "signal": "Simulated signal strength",
        "subject": _with_note("Subject", values.subject_note(results)),
        "n_images": _with_note("Images", values.images_note(results)),
        "split": "Split",
        "split_hash": "Hash of the split",
        "seed": "Seed",
        "llm": "Language model",
        "command": "Command",
        "git_revision": "Revision of the code",
        "peak_memory_gb": "Peak memory (GB)",
        "sealed": "How choices were made",
    }
    return [
        Fact(label, values.text(results, key)) for key, label in names.items() if values.text(results, key)
    ]


def _with_note(name: str, note: str) -> str:
    return f"{name}, {note}" if note else name


def _bits(results: dict[str, Any]) -> list[Bits]:
    return [
        Bits(
            system,
            estimate(results, "bits", system, "per_caption", name="mean"),
            estimate(results, "bits", system, "per_token", name="mean"),
        )
        for system in section(results, "bits")
        if section(results, "bits", system)
    ]


def _known_numbers(results: dict[str, Any], key: str) -> dict[str, float]:
    found = {name: number(results, key, name) for name in section(results, key)}
    return {name: value for name, value in found.items() if value is not None}


def _controls_explained(results: dict[str, Any]) -> list[tuple[str, str]]:
    used = {name for controls in section(results, "controls").values() for name in section(controls)}
    return [
        (control_label(name), CONTROLS[name].sentence)
        for name in in_known_order(sorted(used), CONTROLS)
        if name in CONTROLS
    ]
