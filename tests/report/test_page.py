"""The page holds everything inside itself, escapes what it shows, and copes with what is missing."""

import copy
import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from bitllm.report import GalleryItem, write_report
from bitllm.report.page import facts
from bitllm.report.wording import CONTROLS

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


@pytest.fixture
def write(tmp_path, results, curves, gallery):
    """Write a page, with whatever is given in place of the whole fixtures, and return its text."""

    def write_page(**changed):
        parts = {"results": results, "curves": curves, "gallery": gallery, **changed}
        out = tmp_path / "report.html"
        write_report(parts["results"], parts["curves"], parts["gallery"], out)
        return out.read_text(encoding="utf-8")

    return write_page


def test_nothing_is_loaded_from_outside(write):
    html = write()
    page = _Page(html)
    sources = [
        attributes[key] for _, attributes in page.elements for key in ("src", "href") if key in attributes
    ]
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"https?://|url\(|@import|@font-face", html)
    assert not page.all("script")
    assert not page.all("link")


def test_tags_are_balanced_and_ids_are_unique(write):
    page = _Page(write())
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [link["href"][1:] for link in page.all("a")]
    assert set(targets) <= set(ids)


def test_every_chart_has_a_title(write):
    page = _Page(write())
    charts = page.all("svg")
    assert len(charts) > 10
    assert page.titled_charts == len(charts)
    assert all(chart["role"] == "img" and chart["aria-labelledby"] for chart in charts)


def test_the_page_is_accessible(write):
    page = _Page(write())
    assert page.all("html")[0]["lang"] == "en"
    assert all(header.get("scope") for header in page.all("th"))
    assert all(picture["alt"] for picture in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_caption_with_markup_is_escaped(write):
    attack = "<script>alert(1)</script>"
    item = GalleryItem(1, np.zeros((4, 4, 3), np.uint8), (attack + '"',), {attack: attack}, {}, attack)
    html = write(gallery=[item])
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 4
    assert _Page(html).open == []


def test_keys_with_markup_are_escaped_in_tables_and_charts(write, results):
    results["systems"]["<i>x</i>"] = {"CIDEr": 1.0}
    results["controls"]["<i>x</i>"] = {"<i>y</i>": {"CIDEr": 1.0}}
    html = write(results=results, curves={"<i>z</i>": [{"step": 1, "loss": 1.0}]})
    assert "<i>" not in html
    assert _Page(html).open == []


def test_sections_stand_in_the_order_of_the_questions(write):
    headings = ["scores", "controls", "ablation", "diagnostics", "curves", "gallery", "reading", "provenance"]
    assert [one["id"] for one in _Page(write()).all("h2")] == headings


def test_every_control_is_in_the_table_and_is_explained(write, results):
    html = unescape(write())
    table = html[html.index('<table class="scores"') : html.index('id="controls"')]
    reading = html[html.index('id="reading"') : html.index('id="provenance"')]
    for label in (control.label for control in CONTROLS.values()):
        assert table.count(label) >= len(results["controls"])
        assert label in reading
    assert "human ceiling" in table


def test_the_intervals_of_controls_stand_in_the_table_and_in_the_chart(write):
    html = unescape(write())
    for part in (html[html.index('<table class="scores"') :], html[html.index('id="controls"') :]):
        assert "[9.7, 11.1]" in part[: part.index("</section>")], "all betas zero, CIDEr of rft"


def test_the_provenance_names_data_split_command_and_how_choices_were_made(write, results):
    html = write()
    provenance = html[html.index('id="provenance"') :]
    for key in ("data", "split_hash", "command", "sealed", "git_revision"):
        assert results[key] in provenance
    assert "4 min 42 s" in provenance
    assert "1,182,724" in provenance


def test_any_key_may_be_missing(write, results, gallery):
    for number, key in enumerate(results):
        changed = {**results, key: None}
        if number % 2:  # a page takes a second: half of the keys are None, half are missing
            del changed[key]
        assert _Page(write(results=changed, curves={}, gallery=gallery[:1])).open == []


def test_every_key_of_a_system_may_be_missing(write, results):
    for key in ("CIDEr", "BLEU-4", "distinct"):
        changed = copy.deepcopy(results)
        for record in [*changed["systems"].values(), *changed["controls"]["rft"].values()]:
            record.pop(key, None)
        assert _Page(write(results=changed)).open == []


def test_a_page_of_nothing_says_so(write):
    html = write(results={}, curves={}, gallery=[])
    assert _Page(html).open == []
    for said in ("Undecided", "no scores", "no controls", "No training log", "No image was chosen"):
        assert said in html


def test_unknown_keys_do_no_harm(write, results):
    results["something_new"] = {"deep": [1, 2, {"er": None}]}
    results["systems"]["rft"]["NewMetric"] = 3.0
    assert _Page(write(results=results)).open == []


def test_a_page_of_photographs_stays_under_ten_megabytes(write, rng):
    noise = rng.integers(0, 255, (425, 425, 3), dtype=np.uint8)  # the worst case for any compression
    items = [GalleryItem(one, noise, ("a dog",), {"rft": "a dog"}, {}, "random") for one in range(24)]
    assert len(write(gallery=items).encode()) < 10e6


def test_the_same_inputs_make_the_same_page(write):
    assert write() == write()


def test_a_system_without_evidence_is_named_under_its_chart(write, results):
    results["differences"]["sft"]["permuted"]["CIDEr"] = {"difference": 0.2, "low": -1.0, "high": 1.4}
    html = write(results=results)
    assert "no evidence that the captions of sft depend on the betas" in html
    assert "Yes, by 69.7" in html


@pytest.mark.parametrize(
    ("known", "subject", "images"),
    [
        (
            {"subject_is_trained_on": False, "part": "test"},
            "Subject, never trained on",
            "Images, never trained on",
        ),
        (
            {"subject_is_trained_on": True, "part": "validation"},
            "Subject, trained on",
            "Images, of the validation part, by which settings are chosen",
        ),
        (
            {"subject_is_trained_on": None, "part": "test", "is_store_of_training": False},
            "Subject",
            "Images, of a store or split that it was not trained on",
        ),
        ({"subject_is_trained_on": None, "part": None}, "Subject", "Images"),
    ],
)
def test_the_page_says_never_trained_on_only_where_it_is_so(results, tmp_path, known, subject, images):
    results |= known
    assert {fact.name for fact in facts(results)} >= {subject, images}
    write_report(results, {}, [], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert ("subj08, never trained on" in page) == (known["subject_is_trained_on"] is False)
