"""The page holds everything inside itself, escapes what it shows, and copes with what is missing."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from bitllm.evaluation.results import EncoderResult, InputResult, Results, SystemResult
from bitllm.evaluation.verdict import CONTROLS
from bitllm.metrics.intervals import Estimate
from bitllm.report import write_comparison, write_report
from bitllm.report.gallery import Decoded, GalleryItem
from bitllm.report.page import compare_rows, unique_names, why_not_comparable

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Page(HTMLParser):
    """What the tests ask of a page: its elements in order, its ids, and whether its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.titled_charts = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.titled_charts += tag == "title" and bool(self.open) and self.open[-1] == "svg"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def section(html, start, end="</section>"):
    """Text of the page from ``start`` to ``end``."""
    found = html[html.index(start) :]
    return found[: found.index(end)]


@pytest.fixture(scope="module")
def html(run, tmp_path_factory):
    """The page of the whole run."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(run, out)
    return out.read_text(encoding="utf-8")


@pytest.fixture
def write(tmp_path, run):
    """The page of a run with few systems, no logs and no images, or with others: charts take their time."""
    rft = replace(run.results, systems={"rft": run.results.systems["rft"]})
    few = replace(run, results=rft, curves={}, gallery=[])

    def write_page(**changed):
        out = tmp_path / "report.html"
        write_report(replace(few, **changed), out)
        return out.read_text(encoding="utf-8")

    return write_page


def test_nothing_is_loaded_from_outside(html):
    page = _Page(html)
    sources = [
        attributes[key] for _, attributes in page.elements for key in ("src", "href") if key in attributes
    ]
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"https?://|url\(|@import|@font-face", html)
    assert not page.all("script")
    assert not page.all("link")


def test_tags_are_balanced_ids_are_unique_and_every_chart_has_a_title(html):
    page = _Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    charts = page.all("svg")
    assert len(charts) > 10
    assert page.titled_charts == len(charts)
    assert all(chart["role"] == "img" and chart["aria-labelledby"] for chart in charts)


def test_the_page_is_accessible(html):
    page = _Page(html)
    assert page.all("html")[0]["lang"] == "en"
    assert all(header.get("scope") for header in page.all("th"))
    assert all(picture["alt"] for picture in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_caption_with_markup_is_escaped(write, about):
    attack = "<script>alert(1)</script>"
    item = GalleryItem(
        1, np.zeros((4, 4, 3), np.uint8), (attack + '"',), (Decoded(attack, attack, 1.0, False),)
    )
    html = write(results=Results(about, {}), gallery=[item])
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 4
    assert _Page(html).open == []


def test_names_with_markup_are_escaped_in_tables_and_charts(write, about):
    odd = InputResult({"CIDEr": Estimate(1.0)}, 1, 0, 1.0, 1, {"CIDEr": Estimate(1.0, 0.5, 1.5)})
    results = Results(about, {"<i>x</i>": SystemResult({"real": odd, "<i>y</i>": odd})})
    html = write(results=results, curves={"<i>z</i>": [{"step": 1, "loss": 1.0}]})
    assert "<i>" not in html
    assert _Page(html).open == []


def test_sections_stand_in_the_order_of_the_questions(html):
    headings = ["scores", "controls", "ablation", "questions", "diagnostics", "curves", "gallery", "reading"]
    headings += ["provenance"]
    assert [one["id"] for one in _Page(html).all("h2")] == headings


def test_every_control_is_in_the_table_and_is_explained(html, results):
    html = unescape(html)
    table, reading = section(html, '<table class="scores"', 'id="controls"'), section(html, 'id="reading"')
    for name, control in CONTROLS.items():
        assert table.count(f">{control.label}") == sum(
            name in one.controls for one in results.systems.values()
        )
        assert control.sentence in reading
    assert "human captions" in table


@pytest.mark.parametrize(
    ("start", "shown"),
    [
        ('<table class="scores"', ["74.9", "[69.7, 80.1]", "[9.7, 11.1]", "+69.7", "[63.6, 75.8]", "p < 0.001"]),
        ('id="controls"', ["zero betas: 10.4 [9.7, 11.1]", "another image: +69.7 [63.6, 75.8]"]),
        ('id="ablation"', ["49,344", "+6.9", "[1.0, 12.0]", "26.64"]),
        ('id="diagnostics"', ["0.541", "[0.481, 0.601]", "109.5", "+10.77", "[9.47, 12.07]", "−0.012", "0.041",
                              "+70.0", "p = 0.030", "Java was not found"]),
        ('id="curves"', ["0.412", "0.538"]),
        ('id="gallery"', ["131.4", "two red dogs on a beach", "a pair of red dogs near the sea"]),
        ('id="provenance"', ["simulated brain (demo preset", "9f2c4be1d07a9f2c", "bitllm demo --seed 0",
                             "images of subj07", "0123abc", "4 min 42 s", "1,182,724", "every reference"]),
    ],
)  # fmt: skip
def test_a_section_shows_the_numbers_of_the_results(html, start, shown):
    text = section(unescape(html), start)
    for part in shown:
        assert part in text, part


def test_a_page_of_nothing_says_so(write, about):
    html = write(results=Results(about, {}), curves={}, gallery=[])
    assert _Page(html).open == []
    for part in ("Undecided", "no scores", "No controls", "No training log", "no captions for the gallery"):
        assert part in html


@pytest.mark.parametrize(
    "name", ["encoder", "between_systems", "human", "groups", "similarity_to_training", "reward"]
)
def test_every_part_of_the_results_may_be_empty(write, results, name):
    empty = {"encoder": EncoderResult(), "groups": (), "similarity_to_training": None}.get(name, {})
    part = replace(results, systems={"no_align": results.systems["no_align"]}, **{name: empty})
    assert _Page(write(results=part)).open == []


def test_a_page_of_photographs_stays_under_ten_megabytes(write, about, rng):
    noise = rng.integers(0, 255, (425, 425, 3), dtype=np.uint8)  # the worst case for any compression
    items = [GalleryItem(one, noise, ("a dog",), ()) for one in range(24)]
    assert len(write(results=Results(about, {}), gallery=items).encode()) < 10e6


def test_the_same_inputs_make_the_same_page(write):
    assert write() == write()


def test_a_system_without_evidence_is_named_under_its_chart(html):
    assert "No evidence that the captions of no_align depend on the betas" in html
    assert "Yes: CIDEr of rft is 69.7" in html


@pytest.mark.parametrize(
    ("trained_on", "note"), [(True, ", in the"), (False, ", not in the"), (None, "</p>")]
)
def test_the_page_says_of_the_subject_only_what_is_known(write, about, trained_on, note):
    known = Results(replace(about, is_subject_trained_on=trained_on), {})
    assert f"captions decoded from fMRI · subj08{note}" in write(results=known)


def test_numbers_of_two_runs_stand_in_one_row(run, with_lead):
    two = replace(run, results=with_lead(run.results, "permuted", Estimate(1.0, -2.0, 4.0)))
    rows = {row.label: row.found for row in compare_rows([run, two])}
    assert [one.value for one in rows["CIDEr"]] == [74.9, 74.9]
    assert rows["CIDEr, another image's betas"][0].shown() == "5.2 [4.8, 5.6]"
    assert [one.shown() for one in rows["CIDEr, real − another image's betas"]] == [
        "69.7 [63.6, 75.8]", "1.0 [−2.0, 4.0]"
    ]  # fmt: skip
    assert rows["R@10"][1].value == 0.541


def test_what_one_run_lacks_is_a_dash_and_what_both_lack_is_no_row(run, tmp_path):
    other = replace(run, name="two", results=replace(run.results, encoder=EncoderResult()))
    rows = {row.label: row.found for row in compare_rows([run, other])}
    assert rows["R@10"][1] is None
    assert "METEOR" not in rows
    write_comparison([run, other], tmp_path / "page.html")
    assert "<td>–" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_runs_on_other_data_are_compared_with_a_warning(run, tmp_path):
    assert why_not_comparable([run, run]) == []
    about = replace(run.results.about, n_images=100, data="nsd")
    run = replace(run, curves={})
    other = replace(run, results=replace(run.results, about=about))
    assert [reason.split(" (")[0] for reason in why_not_comparable([run, other])] == [
        "different numbers of test images", "different data"
    ]  # fmt: skip
    write_comparison([run, other], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Do not compare" in html
    assert not re.search(r"https?://|<script|url\(", html)


def test_runs_of_one_name_are_numbered():
    assert unique_names(["demo", "other", "demo"]) == ["demo (1)", "other", "demo (2)"]
