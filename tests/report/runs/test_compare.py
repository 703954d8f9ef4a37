"""Two runs on one page: their numbers beside each other, and a warning where they must not be compared."""

import copy
import json
import re

import pytest

from bitllm.cli import main
from bitllm.report.runs.compare import compare_rows, unique_names, why_not_comparable, write_comparison
from bitllm.report.runs.folder import RunFiles


@pytest.fixture
def runs(results, curves, gallery):
    other = copy.deepcopy(results)
    other["systems"]["rft"]["CIDEr"] = 60.0
    return [RunFiles("one", results, curves, gallery, None), RunFiles("two", other, curves, [], None)]


def test_numbers_of_both_stand_in_one_row(runs):
    rows = {row.label: row.values for row in compare_rows(runs)}
    assert [value for value, _ in rows["CIDEr"]] == ["74.9", "60.0"]
    assert rows["CIDEr under another image's betas"][0] == ("5.2", "[4.8, 5.6]")
    assert rows["CIDEr real − another image's betas"][0] == ("+69.7", "[63.6, 75.8]")


def test_what_one_run_lacks_is_a_dash_and_what_both_lack_is_no_row(runs, tmp_path):
    del runs[1].results["retrieval"]
    rows = {row.label: row.values for row in compare_rows(runs)}
    assert rows["R@10"][1] == ("", "")
    assert "METEOR" not in rows
    write_comparison(runs, tmp_path / "page.html")
    assert "–" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_runs_on_other_data_are_not_compared_in_silence(runs, tmp_path):
    assert why_not_comparable(runs) == []
    runs[1].results.update(n_images=100, data="nsd")
    assert why_not_comparable(runs) == ["another number of test images (CIDEr depends on it)", "other data"]
    write_comparison(runs, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "must not be compared" in html
    assert not re.search(r"https?://|<script|url\(", html)


def test_runs_of_one_name_are_numbered():
    assert unique_names(["demo", "other", "demo"]) == ["demo (1)", "other", "demo (2)"]


def test_the_command_writes_one_page_about_one_run_or_two(demo_folder, tmp_path, capsys):
    out = tmp_path / "report.html"
    main(["report", str(demo_folder), "--out", str(out)])
    assert out.read_bytes() == (demo_folder / "report.html").read_bytes()
    assert "MB" in capsys.readouterr().out
    main(["report", str(demo_folder), str(demo_folder), "--out", str(out), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [one["subject"] for one in printed] == ["subj08", "subj08"]
    assert "2 runs side by side" in out.read_text(encoding="utf-8")
