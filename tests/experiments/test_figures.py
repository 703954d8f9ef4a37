import re
from xml.etree import ElementTree

import pytest

from bitllm.experiments.figures import alt_text, half_interval, make_figure, means_along
from bitllm.experiments.question import read_question

SVG = "{http://www.w3.org/2000/svg}"


def groups_of_brains(svg):
    """Number of marks of every group of brains, by its id."""
    groups = ElementTree.fromstring(svg).iter(f"{SVG}g")
    found = {group.get("id"): len(list(group.iter(f"{SVG}use"))) for group in groups}
    return {name: n for name, n in found.items() if name and name.startswith("brains ")}


def words_of(svg):
    return " ".join(" ".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text"))


@pytest.mark.parametrize("name", ["interface", "signal"])
def test_a_figure_is_the_same_every_time_and_has_no_date(name, made_results):
    question = read_question(name, made_results(name))
    svg = make_figure(question)
    assert svg == make_figure(question)
    assert "dc:date" not in svg


def test_every_claim_has_one_mark_for_each_brain(made_results):
    question = read_question("interface", made_results("interface", n_worlds=5))
    assert groups_of_brains(make_figure(question)) == {f"brains claim {place}": 5 for place in range(3)}


def test_every_claim_is_written_with_its_verdict(made_results):
    question = read_question("alignment", made_results("alignment"))
    svg = make_figure(question)
    words = " ".join(words_of(svg).split())
    for claim in question.config.claims:
        assert claim.text in words
    assert re.search(r"\+6\.00 \[\S+ \S+\] · borne out", words)
    assert "· not borne out" in words, "four times the CIDEr"
    assert "first − 4 × second, CIDEr" in words, "it has its own axis"
    assert "difference, bits per caption" in words


def test_along_an_amount_every_brain_has_a_mark_at_every_step(made_results):
    question = read_question("signal", made_results("signal"))
    found = groups_of_brains(make_figure(question))
    arms = ("real cider", "permuted cider", "real bits")
    assert found == {f"brains {arm} {x}": 5 for arm in arms for x in ("0", "0.25", "0.5", "1", "2")}


def test_the_curve_is_made_of_the_brains_means(made_results):
    question = read_question("signal", made_results("signal"))
    rows = question.results.rows
    found = means_along(rows, question.config.along, "real", "cider")
    assert list(found) == [0.0, 0.25, 0.5, 1.0, 2.0]
    usual = rows[(rows["system"] == "usual") & (rows["control"] == "real")]
    for brain, mean in zip((11, 12, 13, 14, 15), found[1.0], strict=True):
        assert mean == pytest.approx(usual.loc[usual["simulator_seed"] == brain, "cider"].mean())


def test_the_interval_is_students_of_the_brains(rng):
    """The quantile of a table: 4.303 with two degrees of freedom."""
    values = rng.standard_normal(3)
    assert half_interval(values) == pytest.approx(4.303 * values.std(ddof=1) / 3**0.5, rel=1e-3)
    assert half_interval(values[:1]) == 0.0


@pytest.mark.parametrize("name", ["interface", "signal"])
def test_the_alternative_text_says_what_the_figure_shows(name, made_results):
    text = alt_text(read_question(name, made_results(name)))
    assert "5 brains" in text
    assert not set("[]|\n") & set(text), "it is written in brackets"
    assert ("× borne out" in text) or ("CIDEr with the own responses: " in text)
