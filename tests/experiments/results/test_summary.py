from bitllm.experiments.config import read_experiment
from bitllm.experiments.results.read import POSTER, read_questions
from bitllm.experiments.results.summary import HEADLINES, make_summary, title
from bitllm.experiments.results.wording import NOT_RUN


def rows_of(summary, name):
    return [line for line in summary.splitlines() if line.startswith(f"| [{title(name)}]")]


def test_all_five_questions_of_the_poster_stand_in_it_with_its_figures(experiments, questions):
    summary = make_summary(questions)
    assert {row.name for row in HEADLINES} == set(POSTER)
    for row in HEADLINES:
        claim = read_experiment(row.name, experiments).claims[row.claim]
        line = next(line for line in rows_of(summary, row.name) if row.question in line)
        assert claim.poster in line
        assert claim.poster != "not measured", "a headline is a claim of the poster"


def test_what_was_not_run_says_so_and_what_was_has_its_verdict_and_size(made_results):
    folder = made_results("interface", n_worlds=5)
    summary = make_summary(read_questions(folder))
    assert all(NOT_RUN in line for line in rows_of(summary, "alignment"))
    first = rows_of(summary, "interface")[0]
    assert "; 5 × 1 of 3 × 12 |" in first
    assert "**borne out**" in first
    assert NOT_RUN not in first


def test_every_other_question_stands_under_beyond_the_poster(made_results):
    summary = make_summary(read_questions(made_results("signal")))
    beyond = summary[summary.index("### Beyond the poster") :]
    line = rows_of(beyond, "signal")[0]
    assert "strength of the responses" in line
    assert "at 0.25" in line
    assert "(as it must be)" in line or "(it must not be)" in line
    assert not any(rows_of(beyond, name) for name in POSTER)


def test_what_it_says_is_the_first_sentence_of_the_written_verdict(made_results):
    folder = made_results("interface")
    assert "### What it says" not in make_summary(read_questions(folder)), "nothing was written yet"
    readme = folder / "interface" / "README.md"
    text = readme.read_text().replace(
        "**Verdict.** Not run yet.", "**Verdict.** Yes, by 5.2 points. The rest\nis luck."
    )
    readme.write_text(text)
    summary = make_summary(read_questions(folder))
    said = summary[summary.index("### What it says") : summary.index("### What it does not say")]
    assert "- Yes, by 5.2 points. ([Interface](#interface))" in said
    assert "luck" not in said


def test_a_verdict_without_results_is_not_told(made_results):
    """Written too early, or the results were withdrawn."""
    folder = made_results("interface")
    readme = folder / "alignment" / "README.md"
    readme.write_text(readme.read_text().replace("**Verdict.** Not run yet.", "**Verdict.** Yes."))
    assert "### What it says" not in make_summary(read_questions(folder))


def test_the_words_that_it_uses_are_explained(questions):
    summary = make_summary(questions)
    explained = summary[summary.index("**The words.**") : summary.index("### The poster's")]
    for word in (
        "CIDEr",
        "Bits per caption",
        "permuted control",
        "R@10",
        "BLEU-4",
        "Cosine",
        "encoder",
        "cross_attention",
    ):
        assert f"*{word}*" in explained
