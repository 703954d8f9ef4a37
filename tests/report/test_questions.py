"""Questions on the page, in the terminal and in the model card: the same numbers, the source with its license."""

from dataclasses import replace

import pandas as pd
import pytest

from bitllm.evaluation.results import Results
from bitllm.evaluation.table import Evaluation
from bitllm.evaluation.verdict import judge_questions
from bitllm.metrics.intervals import Estimate
from bitllm.report.card import model_card
from bitllm.report.page import compare_rows, write_report
from bitllm.report.questions import input_rows, read_examples, sources, task_rows


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(run, out)
    return out.read_text(encoding="utf-8")


def test_the_page_has_a_section_for_every_task_with_its_source(page):
    section = page[page.index('id="questions"') : page.index('id="diagnostics"')]
    for name in ("presence", "visdial"):
        assert f"<h3>{name}, rft</h3>" in section
    assert section.count("license CC BY 4.0") == 2
    assert "300 questions of 500, drawn with the seed" in section
    assert "29.3" in section
    assert "Is there a dog?" in section
    assert section.count("the system&#39;s own earlier answers") == 2
    assert section.count("mean rank") == 1


def test_the_card_has_the_numbers_of_the_page_and_the_licenses(results):
    llm = {"name": "small", "revision": None, "sha256": "0" * 64}
    brain = {
        "betas": "b3",
        "coordinates": "mni",
        "atlases": [],
        "stage": "rft",
        "seed": 0,
        "split_sha256": "1",
    }
    about = {
        "brain": brain,
        "llm": llm,
        "license_name": "apache-2.0",
        "is_whole": True,
        "interface": "prefix",
    }
    card = model_card(results, system="rft", **about)
    assert "| presence | 300 | 81.4 [78.4, 84.4] | +29.3 [25.3, 33.3] | 50.4 | 50.0 | 52 |" in card
    assert "- visdial: 500 questions, about 90 images; source: derived, license CC BY 4.0" in card
    assert "### Questions" not in model_card(results, system="sft", **about)


def test_a_variant_that_alone_was_asked_has_the_section(results, run, tmp_path):
    moved = {name: replace(one, questions=None) for name, one in results.systems.items()}
    moved["prefix"] = replace(moved["prefix"], questions=results.systems["rft"].questions)
    alone = replace(results, systems=moved)
    assert (results.asked, alone.asked) == ("rft", "prefix")
    write_report(replace(run, results=alone), tmp_path / "report.html")
    assert "<h3>presence, prefix</h3>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [line.partition(":")[0] for line in sources(alone)] == ["presence", "visdial"]


def test_a_verdict_needs_an_interval_above_zero_and_names_the_tasks(results):
    found = judge_questions(results, "rft")
    assert found.is_evidence
    assert "above 0 for presence." in found.sentence
    assert judge_questions(results, "sft") is None
    assert not judge_questions(with_lead(results, Estimate(1.0, -1.0, 3.0)), "rft").is_evidence
    floored = with_lead(results, Estimate(9.0, 5.0, 12.0), most_frequent=Estimate(-2.0, -4.0, 1.0))
    assert "not better than" in judge_questions(floored, "rft").sentence


def with_lead(results: Results, permuted: Estimate, **more: Estimate) -> Results:
    system = results.systems["rft"]
    asked = replace(system.questions, micro_real_minus={"permuted": permuted, **more})
    return replace(results, systems=results.systems | {"rft": replace(system, questions=asked)})


def test_real_betas_come_first_and_own_history_last(results):
    found = results.systems["rft"].questions
    assert [row.kind for row in input_rows(found.tasks["presence"])] == ["system", *["control"] * 3]
    assert "own earlier answers" in input_rows(found.tasks["visdial"])[-1].label
    assert [row.name for row in task_rows(found)] == ["presence", "visdial", "all questions", "mean of tasks"]


def test_runs_are_compared_by_task(run):
    rows = {row.label: row.found for row in compare_rows([run, run])}
    assert rows["Questions, presence: accuracy (%)"] == [Estimate(81.4, 78.4, 84.4)] * 2


def test_examples_are_questions_of_the_final_system_under_real_and_permuted_betas():
    rows = [
        {"system": "rft", "task": task, "input": name, "history": "gold", "row": row, "nsd_id": row,
         "question": f"{task} {row}?", "accepted": "yes", "answer": f"{name} {row}", "score": 1.0}
        for task in ("caption", "presence")
        for name in ("real", "permuted")
        for row in range(9)
    ]  # fmt: skip
    found = read_examples(Evaluation(pd.DataFrame(rows), {}), "rft", seed=0)
    assert list(found) == ["presence"]
    assert len(found["presence"]) == 6
    for one in found["presence"]:
        assert (one.real, one.permuted) == (f"real {one.nsd_id}", f"permuted {one.nsd_id}")
