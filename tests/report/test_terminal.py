"""The terminal's table says the same as the page, within 80 columns."""

import io

import pytest
from rich.console import Console

from bitllm.report import render_table
from bitllm.report.wording import CONTROLS, RIVALS


def _printed(results, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(render_table(results))
    return console.file.getvalue()


def test_every_control_of_every_system_is_printed(results):
    printed = _printed(results)
    for control in CONTROLS.values():
        assert printed.count(f"  {control.short} ") >= len(results["controls"])
    for system in results["systems"]:
        assert f"\n{system} " in printed


def test_the_order_is_headline_systems_diagnostics(results):
    printed = _printed(results)
    places = [
        printed.index(said) for said in ("Yes, by 69.7", "Scores with", "retrieval", "cosine(", "rft − sft")
    ]
    assert places == sorted(places)
    assert "nothing about NSD" in " ".join(printed.replace("│", " ").split())


def test_numbers_are_neither_cut_nor_wrapped_in_80_columns(results):
    printed = _printed(results)
    assert "…" not in printed
    assert "rft                   74.9 [69.7, 80.1]" in printed
    row = next(line for line in printed.splitlines() if line.startswith("  zero betas"))
    assert " ".join(row.split()) == "zero betas 10.4 [9.7, 11.1] +64.5 [58.4, 70.6] 5.1 29.6 1"
    assert max(map(len, printed.splitlines())) <= 80


def test_a_rival_is_marked_and_said_to_be_no_control(results):
    printed = _printed(results)
    assert "  nearest caption * " in printed
    assert "\n* a rival, no control: it reads betas of the image too\n" in printed
    for controls in results["controls"].values():
        for rival in RIVALS:
            controls.pop(rival, None)
    assert "*" not in _printed(results)


def test_no_evidence_is_said_plainly(results):
    results["differences"]["rft"]["permuted"]["CIDEr"] = {"difference": 0.4, "low": -1.2, "high": 2.0}
    assert "There is no evidence that the captions of rft" in _printed(results)


def test_markup_of_rich_in_names_is_printed_as_it_is(results):
    results["controls"]["rft"]["[red]odd[/red]"] = {"CIDEr": 1.0}
    assert "[red]odd" in _printed(results)


@pytest.mark.parametrize("missing", ["systems", "controls", "differences", "retrieval", "bits", "intervals"])
def test_any_key_may_be_missing(results, missing):
    del results[missing]
    assert "Data: simulated brain" in " ".join(_printed(results).replace("│", "").split())


def test_empty_results_print_a_headline():
    assert "Undecided" in _printed({})
