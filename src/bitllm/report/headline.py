"""The first lines of the report: whether the captions depend on the betas, by how much, and the key numbers.

Only paired differences real − control with their intervals decide. They are in CIDEr, because one constant sentence
already reaches the BLEU and ROUGE-L of published decoders.
"""

from dataclasses import replace
from typing import NamedTuple

from bitllm.evaluation.results import Results, Verdict
from bitllm.metrics.intervals import Estimate
from bitllm.report.tables import (
    COMPARISONS,
    CONTROLS,
    bits_of,
    data_sentence,
    in_order,
    interval,
    label,
    lead,
    number,
)


class KeyNumber(NamedTuple):
    """One number of the headline with the numbers to compare it with."""

    name: str
    value: str
    interval: str
    compare: list[tuple[str, str]]


def verdict(results: Results, name: str) -> Verdict:
    """Judge one system by its paired differences.

    Evidence requires that the interval of every difference to a null control lies above 0. The difference to another
    image's betas alone shows whether the captions depend on the betas; the others show whether this makes them better
    than captions that need no betas.
    """
    system = results.systems.get(name)
    controls = (
        []
        if system is None
        else [one for one in in_order(system.controls, CONTROLS) if one not in COMPARISONS]
    )
    leads = {one: lead(system, one) for one in controls} if system is not None else {}
    found = {
        one: difference
        for one, difference in leads.items()
        if difference is not None and difference.has_interval
    }
    if not found:
        return Verdict(None, f"Undecided: no paired difference with an interval for {name or 'any system'}.")
    failed = {one: difference for one, difference in found.items() if not difference.is_above_zero}
    permuted = found.pop("permuted", None)
    if failed:
        if "permuted" in failed:  # the one that decides
            failed = {"permuted": failed["permuted"]}
        listed = "; ".join(
            f"{label(one)} {difference.shown(sign=True)}" for one, difference in failed.items()
        )
        if permuted is None or "permuted" in failed:
            return Verdict(
                False,
                f"No evidence that the captions of {name} depend on the betas: CIDEr real − control is not above 0 "
                f"({listed}).",
            )
        return Verdict(
            False,
            f"In part: the captions of {name} depend on the betas (CIDEr real − another image's betas "
            f"{permuted.shown(sign=True)}), but there is no evidence that they score higher than captions that need "
            f"no betas of the image ({listed}).",
        )
    if permuted is None:
        return Verdict(
            None, f"Undecided: {name} was not run with {label('permuted')}, the control that decides."
        )
    about = results.about
    sentence = (
        f"Yes: CIDEr of {name} is {permuted.shown()} points higher with the real betas than with another image's "
        f"betas ({about.subject}, {about.n_images:,} images)"
    )
    if found:
        least = min(found, key=lambda one: found[one].value)
        smallest = f"smallest difference {found[least].shown(sign=True)}, {label(least)}"
        sentence += f", and higher than under every other control ({smallest})"
    return Verdict(True, f"{sentence}.")


def headline(results: Results) -> Verdict:
    """The verdict on the final system, with caveats and the name of the data."""
    judged = verdict(results, results.final)
    parts = [judged.sentence]
    if results.about.signal == 0:
        parts.append("The simulated betas carry no signal (signal 0), so there is nothing to decode.")
    bits = bits_of(results.systems[results.final]) if results.systems else None
    if judged.is_evidence and bits is not None and bits.has_interval and not bits.is_above_zero:
        parts.append(
            f"But the references are not more probable given the real betas: {bits.shown(sign=True)} bits per caption."
        )
    return replace(judged, sentence=" ".join([*parts, data_sentence(results.about)]))


def key_numbers(results: Results) -> list[KeyNumber]:
    """CIDEr, R@10 and bits of the final system; a number without a comparison is left out."""
    found = []
    if results.systems:
        system = results.systems[results.final]
        compare = _compared({name: one.scores.get("CIDEr") for name, one in system.controls.items()},
                            ("permuted", "zero", "constant"))  # fmt: skip
        if compare and "CIDEr" in results.human:
            compare.append(("human captions", number(results.human["CIDEr"])))
        found.append(_key(f"CIDEr of {results.final}", system.real.scores.get("CIDEr"), compare))
    retrieval = results.encoder.retrieval
    if "real" in retrieval:
        compare = [("chance", number(retrieval["real"].chance_r_at_10, 3))]
        compare += _compared({name: one.r_at_10 for name, one in retrieval.items()},
                             ("permuted", "shuffle", "zero"), digits=3)  # fmt: skip
        found.append(
            _key("Right image among the first 10 (R@10)", retrieval["real"].r_at_10, compare, digits=3)
        )
    if results.systems and (bits := bits_of(results.systems[results.final])) is not None:
        compare = [("under another image's betas", "0 by definition")]
        name = f"Bits per reference from the real betas ({results.final})"
        found.append(_key(name, bits, compare)._replace(value=number(bits.value, sign=True)))
    return [one for one in found if one.value and one.compare]


def _key(name: str, found: Estimate | None, compare: list[tuple[str, str]], digits: int = 1) -> KeyNumber:
    value = "" if found is None else number(found.value, digits)
    return KeyNumber(name, value, interval(found, digits), compare)


def _compared(
    found: dict[str, Estimate | None], names: tuple[str, ...], digits: int = 1
) -> list[tuple[str, str]]:
    return [
        (label(name), number(one.value, digits)) for name in names if (one := found.get(name)) is not None
    ]
