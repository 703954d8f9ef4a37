"""The first sentence of the report: is it decoding the brain, and by how much?

Only paired differences real − control with their intervals decide. CIDEr is the metric, since one constant
sentence already has the BLEU and ROUGE-L of published decoders.
"""

from typing import NamedTuple

from bitllm.metrics.intervals import Estimate
from bitllm.report.values import (
    data_sentence,
    difference,
    estimate,
    interval,
    number,
    plain,
    score,
    section,
    signed,
    text,
    with_interval,
)
from bitllm.report.wording import CONTROLS, FINAL_SYSTEMS, RIVALS, control_label, in_known_order

CLEANEST = "permuted"


class Verdict(NamedTuple):
    """What the differences of one system show; ``is_evidence`` is None if they cannot tell."""

    system: str
    is_evidence: bool | None
    sentence: str


class KeyNumber(NamedTuple):
    """One number of the headline, never without what it is to be compared with."""

    name: str
    value: str
    interval: str
    compare: tuple[tuple[str, str], ...]


def final_system(results: dict) -> str:
    """The system that the headline speaks of: rft, else sft, else the first one there is."""
    systems = section(results, "systems")
    return next((name for name in FINAL_SYSTEMS if name in systems), next(iter(systems), ""))


def null_differences(results: dict, system: str) -> dict[str, Estimate]:
    """Real − control in CIDEr, where an interval is known, for every control without brain evidence."""
    names = [name for name in section(results, "differences", system) if name not in RIVALS]
    found = {name: difference(results, system, name) for name in in_known_order(names, CONTROLS)}
    return {name: one for name, one in found.items() if one is not None and one.has_interval}


def verdict(results: dict, system: str) -> Verdict:
    """Judge one system by its paired differences.

    Evidence asks that the interval of every difference lies above 0. The one to another image's betas alone says
    whether the captions depend on the betas; the others, whether that makes them better than captions without.
    """
    found = null_differences(results, system)
    if not found:
        name = system or "any system"
        sentence = f"Undecided: there is no paired difference with an interval for {name}."
        return Verdict(system, None, sentence)
    failed = {name: one for name, one in found.items() if not one.is_above_zero}
    if failed:
        return Verdict(system, False, _no_evidence(system, found, failed))
    if CLEANEST not in found:
        sentence = (
            f"Undecided: {system} was not compared with {control_label(CLEANEST)}, "
            "the control that decides whether the captions follow the brain."
        )
        return Verdict(system, None, sentence)
    return Verdict(system, True, _evidence(results, system, found))


def headline(results: dict) -> Verdict:
    """The verdict on the final system, followed by the name of the data."""
    judged = verdict(results, final_system(results))
    parts = [judged.sentence, data_sentence(results)]
    bits = _bits(results, judged.system)
    if judged.is_evidence and bits is not None and bits.has_interval and not bits.is_above_zero:
        parts.insert(
            1,
            f"Yet the right betas do not make the references more probable: {with_interval(bits, sign=True)} "
            "bits per caption.",
        )
    if number(results, "signal") == 0:
        parts.insert(1, "The simulated betas carry no signal (signal 0): nothing is there to be decoded.")
    return judged._replace(sentence=" ".join(parts))


def key_numbers(results: dict) -> list[KeyNumber]:
    """The few numbers beside the headline; one without anything to compare it with is left out."""
    found = [_caption_number(results), _retrieval_number(results), _bits_number(results)]
    return [one for one in found if one is not None and one.compare]


def _evidence(results: dict, system: str, found: dict[str, Estimate]) -> str:
    lead = found[CLEANEST]
    subject = text(results, "subject") or "the test subject"
    images = number(results, "n_images")
    many = f"{plain(images, 0)} unseen images" if images else "unseen images"
    sentence = (
        f"Yes, by {plain(lead.value)} CIDEr points {interval(lead)}: {system} describes {subject}'s {many} "
        "better from their own betas than from another image's"
    )
    others = {name: one for name, one in found.items() if name != CLEANEST}
    if not others:
        return f"{sentence}."
    nearest = min(others, key=lambda name: others[name].value)
    return (
        f"{sentence}, and scores above every other control (smallest lead: "
        f"{with_interval(others[nearest], sign=True)} over {_described(nearest)})."
    )


def _no_evidence(system: str, found: dict[str, Estimate], failed: dict[str, Estimate]) -> str:
    listed = "; ".join(f"{_described(name)} {with_interval(one, sign=True)}" for name, one in failed.items())
    if CLEANEST in found and CLEANEST not in failed:
        return (
            f"In part: the captions of {system} depend on the betas, as they score above those from another image's "
            f"betas ({with_interval(found[CLEANEST], sign=True)} CIDEr points). But there is no evidence that they are "
            f"better than what needs no betas of the image ({listed})."
        )
    return (
        f"There is no evidence that the captions of {system} depend on the betas: its lead over a control "
        f"is not above 0 ({listed}; CIDEr points)."
    )


def _described(name: str) -> str:
    return {"llm_alone": "the language model alone"}.get(name, control_label(name))


def _caption_number(results: dict) -> KeyNumber | None:
    system = final_system(results)
    found = score(results, system)
    if found is None:
        return None
    compare = [
        (control_label(name), plain(number(results, "controls", system, name, "CIDEr")))
        for name in in_known_order(list(section(results, "controls", system)), CONTROLS)
        if name in (CLEANEST, "zero", "constant")
        and number(results, "controls", system, name, "CIDEr") is not None
    ]
    human = number(results, "ceiling", "human", "CIDEr")
    if compare and human is not None:
        compare.append(("a human caption", plain(human)))
    return KeyNumber(f"CIDEr of {system}", plain(found.value), interval(found), tuple(compare))


def _retrieval_number(results: dict) -> KeyNumber | None:
    found = estimate(results, "retrieval", "real", name="R@10")
    if found is None:
        return None
    chance = chance_r_at(results, "real", 10)
    compare = [("chance", plain(chance, 3))] if chance is not None else []
    for name in (CLEANEST, "shuffle", "zero"):
        value = number(results, "retrieval", name, "R@10")
        if value is not None:
            compare.append((control_label(name), plain(value, 3)))
    return KeyNumber(
        "Picture found among the first 10 (R@10)", plain(found.value, 3), interval(found, 3), tuple(compare)
    )


def _bits(results: dict, system: str) -> Estimate | None:
    return estimate(results, "bits", system, "per_caption", name="mean")


def _bits_number(results: dict) -> KeyNumber | None:
    system = final_system(results)
    found = _bits(results, system)
    if found is None:
        return None
    compare = (("given another image's betas", "0 by definition"),)
    return KeyNumber(
        f"Bits per reference from the right betas ({system})", signed(found.value), interval(found), compare
    )


def chance_r_at(results: dict, name: str, k: int) -> float | None:
    """Chance of finding the picture among the first ``k``: as written in the results, else k / N."""
    written = number(results, "retrieval", name, f"chance_R@{k}")
    n_pictures = number(results, "retrieval", name, "N")
    if written is not None or not n_pictures:
        return written
    return min(1.0, k / n_pictures)
