"""The notebook's cells run one after another on the output of the smallest demo, and are kept without outputs."""

import json
import os
from pathlib import Path

import matplotlib as mpl
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_it_runs_and_says_what_it_promises(notebook, demo_folder, monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "BITLLM_DEMO", str(demo_folder))
    mpl.use("Agg")
    names = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    said = capsys.readouterr().out
    for promised in (
        "subj08 systems: sft, rft",
        "another image's betas:",
        "zero betas:",
        "lost ",
        "streams:early:",
    ):
        assert promised in said
    assert len(names["captions"]) == 3
    assert len(names["readings"]) == 2


def test_it_is_kept_without_outputs_and_with_an_id_for_every_cell(notebook):
    assert [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert notebook["nbformat"] == 4
