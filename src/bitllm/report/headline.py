"""The first lines of the report: the verdict on the final system with its caveats, and the key numbers."""

from dataclasses import replace
from typing import NamedTuple

from bitllm.evaluation.results import Results
from bitllm.evaluation.verdict import Verdict, bits_of, label, verdict
from bitllm.metrics.intervals import Estimate
from bitllm.report.tables import data_sentence, interval, number


class KeyNumber(NamedTuple):
    """One number of the headline with the numbers to compare it with."""

    name: str
    value: str
    interval: str
    compare: list[tuple[str, str]]


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
