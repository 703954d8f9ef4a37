"""The terminal shows the numbers of the page, within 80 columns."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from bitllm.evaluation.results import InputResult, Results
from bitllm.evaluation.scoring.caption_scorer import METRICS
from bitllm.evaluation.scoring.score_file import score_file
from bitllm.evaluation.verdict import label
from bitllm.report import render_table
from bitllm.report.terminal import render_scores


def printed(results, render=render_table):
    console = Console(file=io.StringIO(), width=80)
    console.print(render(results))
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
    parts = ["Yes: CIDEr", "Captions: scores", "Bits by which", "Questions: accuracy",
             "Image retrieval", "Groups of test", "Regions:",
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
        ("presence ", "presence 300 81.4 +29.3 [25.3, 33.3] 50.4 50.0 52 +0.87"),
        ("visdial ", "visdial 500 31.0 +1.2 [−2.8, 5.2] – –"),
        ("all questions", "all questions 800 60.0 +18.0 [15.0, 21.0] – –"),
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


def test_scores_of_a_file_are_printed_with_floors_differences_and_the_verdict(tmp_path):
    captions = {"1": "a dog", "2": "boats", "3": ""}
    references = {"1": ["a dog runs"], "2": ["two boats", "boats on a lake"], "3": ["a red bus", "the bus"]}
    for name, content in (("a", captions), ("b", captions | {"3": "a bus"}), ("references", references)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = score_file(tmp_path / "a.json", tmp_path / "references.json", compare=tmp_path / "b.json")
    text = printed(found, render_scores)
    assert text.startswith("3 images, 3 distinct captions")
    for name in METRICS:
        shown = [f"{one[name]:.2f}" for one in (found.metrics, *found.floors.values())]
        row = next(line.split() for line in text.splitlines() if line.startswith(name))
        assert [row[1], *row[-2:]] == shown
    parts = ["constant permuted", "a.json − b.json", 'constant: "', "words per caption", "note: 1 of 3 captions",
             "not run: METEOR: left out", "No evidence that the captions of a.json"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 80
