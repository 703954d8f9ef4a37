"""Rows of the report's tables, names of systems, and formats of numbers, for page, card and terminal."""

from typing import NamedTuple

from bitllm.evaluation.categories import CATEGORY
from bitllm.evaluation.results import (
    WITHOUT_ALIGN,
    About,
    InputResult,
    Results,
    RetrievalResult,
    SystemResult,
)
from bitllm.evaluation.verdict import COMPARISONS, CONTROLS, REAL, in_order, label, lead
from bitllm.metrics.intervals import Estimate

MISSING = "–"
METRICS = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "SPICE", "BERTScore", "CLIP-S",
           "RefCLIP-S", CATEGORY)  # fmt: skip
ABLATION_METRICS = ("CIDEr", "BLEU-4", "ROUGE-L", "METEOR")
COMPARISON = "a comparison, not a control: it uses betas recorded for the same image"
SYSTEMS = {
    "rft": "all three stages: align, sft, rft",
    "sft": "two stages: align, sft",
    "instructed": "sft continued on captions and questions about the images",
    "poster_rft": "the poster's three stages: frozen encoder, composite reward",
    "poster": "the poster's two stages: align, sft with a frozen encoder",
    "prefix": "brain tokens prepended to the prompt by a linear projection",
    "prefix_mlp": "brain tokens prepended to the prompt by an MLP with as many parameters as the adapters",
    "no_align": "sft with an encoder that skipped the align stage",
}


class Row(NamedTuple):
    """One row of the table of scores; ``kind`` is system, single, control, comparison or ceiling."""

    kind: str
    label: str
    short: str
    scores: dict[str, Estimate]
    difference: Estimate | None = None
    n_distinct: int | None = None
    mean_length: float | None = None
    note: str = ""


class Group(NamedTuple):
    """A system with its controls; the last group, without a system, contains the human captions."""

    system: str
    rows: list[Row]


class RetrievalRow(NamedTuple):
    """Retrieval of the image from the brain embedding, under one input."""

    name: str
    label: str
    short: str
    found: RetrievalResult


class CategoryRow(NamedTuple):
    """How often one input, or the classifier, names the category of the image; in percent."""

    kind: str
    label: str
    share: Estimate
    difference: Estimate | None = None
    """Real − this input."""


class Poster(NamedTuple):
    """A row of the poster's tables: NSD, held-out subject 8, Llama-3.2-3B-Instruct."""

    name: str
    trainable: str
    scores: dict[str, float]


POSTER = {
    "prefix": Poster("prefix, projection only", "3.15M",
                     {"BLEU-4": 9.45, "ROUGE-L": 34.99, "METEOR": 15.12, "CIDEr": 24.80}),
    "prefix_mlp": Poster("prefix, matched MLP", "100.67M",
                         {"BLEU-4": 7.69, "ROUGE-L": 33.59, "METEOR": 14.58, "CIDEr": 23.98}),
    "sft": Poster("cross-attention", "103.82M",
                  {"BLEU-4": 9.57, "ROUGE-L": 35.96, "METEOR": 15.76, "CIDEr": 26.64}),
    "rft": Poster("cross-attention, after rft", "", {"BLEU-4": 15.1, "ROUGE-L": 40.42, "CIDEr": 34.9}),
}  # fmt: skip


class AblationRow(NamedTuple):
    """One interface in this run and in the poster."""

    system: SystemResult
    over_permuted: Estimate | None
    """Real − another image's betas, CIDEr."""
    sft_lead: Estimate | None
    """Cross-attention − this interface, CIDEr, paired."""
    poster: Poster


def metrics_of(results: Results) -> list[str]:
    """Names of all metrics in the results, CIDEr first."""
    known = {
        metric
        for one in results.systems.values()
        for found in one.averaged.values()
        for metric in found.scores
    }
    return [metric for metric in METRICS if metric in known]


def score_groups(results: Results) -> list[Group]:
    """Every system followed by its single trials and its controls; human captions last."""
    names, has_align = in_order(results.systems, SYSTEMS), results.encoder.embedding != WITHOUT_ALIGN
    notes = SYSTEMS if has_align else SYSTEMS | {"sft": "sft; no align stage in this run"}
    groups = [Group(name, _rows(name, results.systems[name], notes.get(name, ""))) for name in names]
    if results.human:
        scores = {metric: Estimate(value) for metric, value in results.human.items() if metric in METRICS}
        note = "each reference scored against the other references of its image"
        groups.append(Group("", [Row("ceiling", "human captions", "human captions", scores, note=note)]))
    return groups


def _rows(name: str, system: SystemResult, note: str) -> list[Row]:
    rows = [_row("system", (name, name), system.real, note)]
    if "real" in system.single:
        real, permuted = system.single["real"], system.single.get("permuted")
        own = None if permuted is None else permuted.real_minus_this.get("CIDEr")
        note = f"{real.n_captions:,} trials" + (
            "; difference from another image's single trials" if own else ""
        )
        rows.append(_row("single", REAL["single_trial"], real, note)._replace(difference=own))
    for control in in_order(system.controls, CONTROLS):
        kind, note = ("comparison", COMPARISON) if control in COMPARISONS else ("control", "")
        rows.append(
            _row(kind, (label(control), label(control, is_short=True)), system.controls[control], note)
        )
    return rows


def _row(kind: str, names: tuple[str, str], found: InputResult, note: str) -> Row:
    lead = found.real_minus_this.get("CIDEr")
    return Row(kind, *names, found.scores, lead, found.n_distinct, found.mean_length, note)


def retrieval_rows(results: Results) -> list[RetrievalRow]:
    """Retrieval from real betas, from single trials and from each control."""
    found = results.encoder.retrieval
    return [
        RetrievalRow(name, label(name), label(name, is_short=True), found[name])
        for name in in_order(found, [*REAL, *CONTROLS])
    ]


def category_rows(results: Results) -> list[CategoryRow]:
    """The category task: the final system under every input, the classifier, chance; empty without the task."""
    task = results.categories
    if task is None or not results.systems:
        return []
    system = results.systems[results.final]
    inputs = {"real": system.real, **system.controls}
    rows = [
        CategoryRow(
            "system" if name == "real" else "control",
            results.final if name == "real" else label(name, is_short=True),
            inputs[name].scores[CATEGORY],
            inputs[name].real_minus_this.get(CATEGORY),
        )
        for name in in_order(inputs, ["real", *CONTROLS])
        if CATEGORY in inputs[name].scores
    ]
    if task.classifier is not None:
        rows.append(CategoryRow("comparison", "nearest class mean, no LLM", task.classifier))
        permuted = f"its {task.n_permutations} label permutations"
        rows += [
            CategoryRow("control", f"{permuted}, {name}", Estimate(value))
            for name, value in (("mean", task.permuted_mean), ("best", task.permuted_best))
            if value is not None
        ]
    return [*rows, CategoryRow("control", "chance", Estimate(task.chance))]


def ablation_rows(results: Results) -> list[AblationRow]:
    """The interfaces of the run next to those of the poster; empty without a prefix to compare with."""
    own = {"sft": "poster", "rft": "poster_rft"} if "poster" in results.systems else {}
    found = {name: own.get(name, name) for name in POSTER if own.get(name, name) in results.systems}
    if not {"prefix", "prefix_mlp"} & found.keys():
        return []
    peer = own.get("sft", "sft")
    return [
        AblationRow(
            results.systems[system],
            lead(results.systems[system], "permuted"),
            results.between_systems.get(f"{peer} - {system}"),
            POSTER[name],
        )
        for name, system in found.items()
    ]


def facts(about: About) -> dict[str, str]:
    """Origin of the numbers; unknown facts are left out."""
    subject, images = subject_note(about), images_note(about)
    found = {
        "Data": about.data,
        "Strength of the simulated signal": "" if about.signal is None else f"{about.signal:g}",
        f"Subject, {subject}" if subject else "Subject": about.subject,
        f"Images, {images}" if images else "Images": f"{about.n_images:,} ({about.n_trials:,} trials)",
        "Design": about.design,
        "Adapted to the subject": _adapted_by(about) if about.n_adapting_trials else "",
        "License of the data": about.license,
        "Cite": about.citation,
        "Split": f"{about.split}, {about.part} part",
        "SHA-256 of the split": about.split_sha256,
        "SHA-256 of the references": about.references_sha256,
        "Tokenizer of the metrics": about.tokenizer,
        "Seed": str(about.seed),
        "Language model": about.llm,
        "Command": about.command,
        "Git revision": about.git_revision or "",
        "Peak memory": "" if about.peak_memory_gb is None else f"{about.peak_memory_gb:.1f} GB",
        "How settings were chosen": about.how_chosen,
    }
    return {name: value for name, value in found.items() if value}


def subject_note(about: About) -> str:
    """Whether the subject was in the training data; empty if that is unknown."""
    return {True: "in the training data", False: "not in the training data", None: ""}[
        about.is_subject_trained_on
    ]


def images_note(about: About) -> str:
    """Description of the test images; empty if that is unknown."""
    if not about.is_store_of_training:
        return "from a store or split that was not used for training"
    return {
        "test": "not in the training data",
        "validation": "of the validation part, used to choose settings",
    }.get(about.part, "")


def data_sentence(about: About) -> str:
    """Name of the data with design and license; for a simulated brain with a warning."""
    warning = "; these numbers say nothing about NSD" if about.is_simulated else ""
    license_name = f" ({about.license})" if about.license else ""
    design = f" {about.design[0].upper()}{about.design[1:]}." if about.design else ""
    adapted = (
        f" The encoder was adapted to {about.subject} {_adapted_by(about)}."
        if about.n_adapting_trials
        else ""
    )
    return f"Data: {about.data}{license_name}{warning}.{design}{adapted}"


def _adapted_by(about: About) -> str:
    return f"by the betas of {about.n_adapting_trials:,} trials of other images, without captions or pictures"


def group_name(kind: str, name: str) -> str:
    """Name of a group of images in words."""
    return f"{name} repetition{'' if name == '1' else 's'}" if kind == "repetitions" else name


def number(value: float | int | None, digits: int = 1, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash for None."""
    return MISSING if value is None else Estimate(float(value)).shown(digits, sign=sign)


def shown(found: Estimate | None, digits: int = 1, *, sign: bool = False) -> str:
    """A number with its interval; a dash for None."""
    return MISSING if found is None else found.shown(digits, sign=sign)


def interval(found: Estimate | None, digits: int = 1) -> str:
    """``[low, high]``; empty without an interval."""
    if found is None or not found.has_interval:
        return ""
    return f"[{number(found.low, digits)}, {number(found.high, digits)}]"


def p_value(p: float | None) -> str:
    """``p = 0.042`` or ``p < 0.001``; empty for None."""
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def duration(seconds: float) -> str:
    """Seconds in hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
