"""The Python of the docs runs, on the output of the smallest demo."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page for page in sorted((ROOT / "docs").glob("*.md")) if "```python\n" in page.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, demo_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "demo").symlink_to(demo_folder)
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        exec(compile(block, page.name, "exec"), {"__name__": "__main__"})
        assert bool(capsys.readouterr().out.strip()) == ("print(" in block)
