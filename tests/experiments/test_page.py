import json
from dataclasses import replace

import pytest

from bitllm.experiments.config import read_experiment
from bitllm.experiments.page import FIGURES, edge_of, make_page, make_summary, sentences, write_page
from bitllm.experiments.question import NOT_RUN, read_question, read_questions, read_summary, size, verdict
from bitllm.experiments.verdict import Arm, Claim, Effect
from bitllm.metrics.bleu import bleu_counts, bleu_from_counts
from bitllm.metrics.intervals import Estimate


def page_of(folder):
    return make_page(read_questions(folder), read_summary(folder))


def summary_of(folder):
    return make_summary(read_questions(folder), read_summary(folder))


def section_of(page, name):
    return page.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_the_page_and_the_figures_in_the_docs_are_what_the_results_give(experiments, tmp_path):
    docs = experiments.parent / "docs"
    write_page(experiments, tmp_path / "results.md")
    assert (docs / "results.md").read_text(encoding="utf-8") == (tmp_path / "results.md").read_text(
        encoding="utf-8"
    ), "run `make results`"
    made, committed = (
        {path.name: path.read_text(encoding="utf-8") for path in (at / FIGURES).glob("*.svg")}
        for at in (tmp_path, docs)
    )
    assert made == committed, "run `make results`"


def test_what_has_no_full_run_says_so_and_what_has_one_shows_its_figure(made_results, tmp_path):
    folder = made_results("interface", n_worlds=5)
    stale = tmp_path / "docs" / FIGURES / "alignment.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("a figure of withdrawn results")
    write_page(folder, tmp_path / "docs" / "results.md")
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"*{NOT_RUN}*" in section_of(page, "Alignment")
    interface = section_of(page, "Interface")
    assert NOT_RUN not in interface
    assert f"]({FIGURES}/interface.svg)" in interface
    assert "5 brains × 1 of 3 model seeds so far × 12 images" in interface
    assert [path.name for path in stale.parent.iterdir()] == ["interface.svg"]


def test_brains_with_fewer_images_are_told(made_results):
    question = read_question("interface", made_results("interface"))
    rows = question.results.rows
    fewer = rows[(rows["simulator_seed"] != 12) | (rows["nsd_id"] < 110)]
    uneven = replace(question, results=replace(question.results, rows=fewer))
    assert size(uneven) == "5 brains × 3 model seeds × 10 to 12 images"
    assert size(question, names=False) == "5 × 3 × 12"


def test_a_claim_stands_with_the_posters_figure_ours_the_effect_and_the_verdict(made_results):
    """The made-up rows have exactly 6 more for the first system than for the second, 12 more than for the third."""
    section = section_of(page_of(made_results("interface")), "Interface")
    row = next(line for line in section.splitlines() if "parameter-matched" in line)
    assert "26.64 / 23.98" in row
    assert "+12.00 [12.00, 12.00]" in row
    assert "**borne out**" in row


def test_the_systems_stand_with_all_their_measures(made_results):
    section = section_of(page_of(made_results("encoder")), "Encoder")
    row = next(line for line in section.splitlines() if line.startswith("| trained | real"))
    system = [cell.strip() for cell in row.strip("|").split("|")]
    captions = ["a red cat sits", "a cat on a mat", "a dog runs on the beach", "two birds in the old tree"]
    counts = bleu_counts(captions, [["a red cat sits on a mat"]] * 4).sum(axis=0) * 3
    assert system[3] == f"{bleu_from_counts(counts)[3]:.1f}", "BLEU-4 of the corpus"
    assert system[4:8] == ["40.0", "2.67", "4.0", "4"]
    assert system[8] == f"{15 / 63:.3f}", "different words of all words: 21 in each of three rounds"
    assert system[10:] == ["0.500", "0.300", "0.300"]
    control = next(line for line in section.splitlines() if line.startswith("| trained | noise"))
    assert "| – |" in control, "no bits"


def test_a_grid_of_one_learning_rate_is_not_called_a_choice(made_results):
    rates = {"cross_attention": {"chosen": 0.003, "the only one": True}}
    page = page_of(made_results("interface", learning_rates=rates))
    assert "Learning rates, set beforehand, no other tried in this run: cross_attention 0.003." in page
    assert "chosen on subj07" not in page


def test_a_learning_rate_at_the_edge_of_its_grid_is_told(made_results):
    folder = made_results("interface")
    assert "None lies at the edge of its grid." in page_of(folder)
    path = folder / "interface" / "results.json"
    record = json.loads(path.read_text())
    record["learning_rates"]["prefix"]["chosen"] = 0.01
    path.write_text(json.dumps(record))
    section = section_of(page_of(folder), "Interface")
    assert "prefix 0.01" in section
    assert (
        "At the edge of the grid, so that a rate beyond it might be better: prefix (the highest of 3)."
        in section
    )


@pytest.mark.parametrize(
    ("row", "edge"),
    [
        ({"chosen": 1.0, "CIDEr, validation": {"1": 3.0, "2": 2.0}}, "the lowest of 2"),
        ({"chosen": 2.0, "CIDEr, validation": {"1": 3.0, "2": 4.0, "3": 1.0}}, None),
        ({"chosen": 2.0, "taken from": "another"}, None),
        ({"chosen": 2.0, "the only one": True}, None),
    ],
)
def test_the_edge_of_a_grid(row, edge):
    assert edge_of(row) == edge


def test_the_written_verdict_stands_with_its_question(made_results):
    folder = made_results("interface")
    readme = folder / "interface" / "README.md"
    readme.write_text(readme.read_text().replace("**Verdict.** Not run yet.", "**Verdict.** Yes. By\nmuch."))
    assert "**Verdict.** Yes. By much." in section_of(page_of(folder), "Interface")


def test_a_check_that_must_not_be_borne_out_says_so(made_results):
    """In the made-up rows every system beats its permuted control, also where there is no signal."""
    folder = made_results("signal")
    lines = section_of(page_of(folder), "Signal").splitlines()
    row = next(line for line in lines if "without a signal cross_attention" in line)
    assert "**borne out (it must not be)**" in row
    record = json.loads((folder / "signal" / "results.json").read_text())
    said = sentences(folder / "signal", read_question("signal", folder).config, record)
    assert said[0].endswith("; it must not come out")
    assert not said[3].endswith("; it must not come out")


@pytest.mark.parametrize(
    ("low", "high", "n_brains", "poster", "words"),
    [
        (0.5, 1.2, 5, "not measured", "borne out (negligible in size)"),
        (0.5, 9.0, 5, "not measured", "borne out"),
        (0.5, 9.0, 2, "not measured", "undecided (2 brains)"),
        (0.5, 9.0, 1, "not measured (must not come out)", "undecided (1 brain)"),
        (0.5, 9.0, 5, "not measured (must not come out)", "borne out (it must not be)"),
        (-2.0, 0.5, 5, "not measured (must not come out)", "not borne out (as it must be)"),
        (-2.0, 2.5, 5, "not measured (must not come out)", "undecided (it must not be borne out)"),
    ],
)
def test_the_words_of_a_verdict(low, high, n_brains, poster, words):
    claim = Claim(text="a", more=Arm(system="a"), less=Arm(system="b"), negligible=1.0, poster=poster)
    effect = Effect(1.0, 0.0, Estimate((low + high) / 2, low, high, 0.01), n_brains, 1, 12)
    assert verdict(claim, effect) == words


def test_the_summary_lists_the_posters_questions_with_its_figures_and_explains_its_words(experiments):
    summary = read_summary(experiments)
    assert {row.name for row in summary.headlines} == set(summary.poster)
    page = (experiments.parent / "docs" / "results.md").read_text(encoding="utf-8")
    for row in summary.headlines:
        claim = read_experiment(row.name, experiments).claims[row.claim]
        line = next(line for line in page.splitlines() if row.question in line)
        assert claim.poster in line
        assert claim.poster != "not measured", "a headline is a claim of the poster"
    for word in (
        "CIDEr",
        "Bits per caption",
        "permuted control",
        "R@10",
        "BLEU-4",
        "encoder",
        "cross_attention",
    ):
        assert f"*{word}*" in summary.about


def test_the_summary_shows_what_was_run_and_the_first_sentence_of_its_verdict(made_results):
    folder = made_results("interface", n_worlds=5)
    made_results("signal")
    for name, text in (
        ("interface", "Yes, by 5.2 points. The rest\nis luck."),
        ("alignment", "Yes. Too early."),
    ):
        readme = folder / name / "README.md"
        readme.write_text(readme.read_text().replace("**Verdict.** Not run yet.", f"**Verdict.** {text}"))
    summary = summary_of(folder)
    lines = {title: line for line in reversed(summary.splitlines()) if (title := line[: line.find("]")])}
    assert NOT_RUN in lines["| [Alignment"]
    assert "; 5 × 1 of 3 × 12 | **borne out** |" in lines["| [Interface"]
    beyond = summary[summary.index("### Beyond the poster") :]
    assert "strength of the responses" in beyond
    assert "at 0.25" in beyond
    assert "[Interface]" not in beyond
    said = summary[summary.index("### What it says") : summary.index("### What it does not say")]
    assert "- Yes, by 5.2 points. ([Interface](#interface))" in said
    assert "luck" not in said
    assert "early" not in said, "there are no results"
