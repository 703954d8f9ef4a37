"""The terminal shows the numbers of the page, within 80 columns."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from bitllm.evaluation.results import InputResult, Results
from bitllm.report import render_table
from bitllm.report.tables import label


def printed(results, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(render_table(results))
    return console.file.getvalue()


def test_every_control_of_every_system_is_printed(results):
    text = printed(results)
    systems = results.systems
    assert all(f"\n{name} " in text for name in systems)
    for control in systems["rft"].controls:
        n = sum(control in one.controls for one in systems.values())
        assert text.count(f"  {label(control, is_short=True)} ") >= n


def test_the_order_is_verdict_scores_bits_encoder_groups_regions_and_what_was_not_run(results):
    text = printed(results)
    parts = ["Yes: CIDEr", "Captions: scores", "Bits by which", "Image retrieval", "Groups of test", "Regions:",
             "N-way identification: 2: 0.930 (chance 0.500)", "rft − sft", "not run: spice: Java",
             "note: every"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("start", "row"),
    [
        ("  zero betas", "zero betas 10.4 [9.7, 11.1] +64.5 [58.4, 70.6] 5.1 29.6 1"),
        ("rft − another image", "rft − another image +10.77 [9.47, 12.07] +1.200 [1.080, 1.320] < 0.001"),
        ("single trials", "single trials 0.392 [0.332, 0.452] 0.046 17.0 109.5 218"),
        ("3 repetitions", "3 repetitions 200 75.0 +70.0 [65.0, 75.0] +1.100 [1.000, 1.200]"),
        ("  early", "early 120 +0.200 [0.100, 0.300] +0.010 +1.0 +0.300"),
    ],
)
def test_rows_hold_the_numbers_of_the_results_neither_cut_nor_wrapped(results, start, row):
    lines = printed(results).splitlines()
    assert " ".join(next(line for line in lines if line.startswith(start)).split()) == row
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_only_a_comparison_is_marked(results):
    text = printed(results)
    assert "  nearest caption * " in text
    assert "\n* a comparison, not a control" in text
    assert "*" not in printed(replace(results, systems={"no_align": results.systems["no_align"]}))


def test_markup_of_rich_in_names_is_printed_as_it_is(results):
    rft = results.systems["rft"]
    odd = InputResult({}, 1, 0, 1.0, 1)
    changed = replace(rft, averaged=rft.averaged | {"[red]odd[/red]": odd})
    assert "[red]odd" in printed(replace(results, systems={"rft": changed}))


def test_empty_results_print_a_headline(about):
    assert "Undecided" in printed(Results(about, {}))
