from collections.abc import Iterator

import numpy as np
import pytest

from bitllm.errors import BitLlmError, DataError
from bitllm.metrics.java import Meteor, meteor_from_statistics, why_no_meteor

needs_java = pytest.mark.skipif(why_no_meteor() is not None, reason=f"METEOR: {why_no_meteor()}")

CAPTIONS = ["a dog is running", "a man on a wave", "", "the", "café 犬", "a ||| b", "two red buses drive"]
REFERENCES = [
    ["a dog runs", "the dogs run"],
    ["a man on a wave", "a surfer"],
    ["a kitchen"],
    ["", "the"],
    ["café 犬"],
    ["a b"],
    ["a double decker bus drives down a road", "red busses"],
]


@pytest.fixture(scope="module")
def meteor() -> Iterator[Meteor]:
    with Meteor() as running:
        yield running


def evaluated_by_jar(running, rows):
    """Scores of each row and of their sum by the jar's own arithmetic."""
    line = "EVAL" + "".join(f" ||| {' '.join(str(number) for number in row)}" for row in rows)
    answers = [*running._ask([line]), *(running._process.stdout.readline() for _ in rows)]
    return [100 * float(answer) for answer in answers]


@needs_java
def test_our_arithmetic_is_that_of_the_jar_for_each_caption_and_for_a_corpus(meteor):
    rows = meteor.statistics(CAPTIONS, REFERENCES)
    *each, corpus = evaluated_by_jar(meteor, rows)
    assert [meteor_from_statistics(row) for row in rows] == pytest.approx(each, abs=1e-10)
    assert meteor_from_statistics(rows.sum(axis=0)) == pytest.approx(corpus, abs=1e-10)
    assert each[1] == pytest.approx(100)
    assert each[2] == 0


@needs_java
def test_scores_are_those_of_pycocoevalcap(meteor):
    theirs = pytest.importorskip("pycocoevalcap.meteor.meteor", reason="in the extra `eval`").Meteor()
    corpus, each = theirs.compute_score(dict(enumerate(REFERENCES)), {k: [c] for k, c in enumerate(CAPTIONS)})
    for pipe in (theirs.meteor_p.stdout, theirs.meteor_p.stderr):
        pipe.close()
    rows = meteor.statistics(CAPTIONS, REFERENCES)
    assert [meteor_from_statistics(row) / 100 for row in rows] == pytest.approx(each, abs=1e-12)
    assert meteor_from_statistics(rows.sum(axis=0)) / 100 == pytest.approx(corpus, abs=1e-12)


@needs_java
def test_one_process_answers_more_than_its_pipes_hold(meteor):
    first = meteor.statistics(CAPTIONS, REFERENCES)
    many = meteor.statistics(CAPTIONS * 300, REFERENCES * 300)
    assert np.array_equal(many, np.tile(first, (300, 1)))


@needs_java
@pytest.mark.parametrize("kind", ["caption", "reference"])
def test_a_text_too_long_for_the_jar_is_refused_with_its_number_of_words(meteor, kind):
    long = " ".join(["dog"] * 15_000)
    caption, reference = (long, "a dog") if kind == "caption" else ("a dog", long)
    with pytest.raises(BitLlmError, match=f"found {kind} of 15,000 words"):
        meteor.statistics(["a cat", caption], [["a cat"], ["a dog", reference]])
    assert meteor.statistics(["a cat"], [["a cat"]])[0, 0] == 2, "the process is still there"


@needs_java
def test_captions_without_references_are_refused(meteor):
    with pytest.raises(DataError, match="expected one set for each of 1 captions, found 0"):
        meteor.statistics(["a"], [])


def test_missing_java_is_said(no_java):
    with pytest.raises(BitLlmError, match="METEOR: expected Java on the path, found none"):
        Meteor()


def test_a_java_that_dies_is_an_error_with_its_last_words(fake_java):
    fake_java("echo Error: no memory >&2; exit 3")
    with (
        Meteor() as running,
        pytest.raises(BitLlmError, match=r"found none \(exit status 3: Error: no memory\); try `java"),
    ):
        running.statistics(["a"], [["b"]])


def test_a_java_that_babbles_is_an_error(fake_java):
    fake_java("read line; echo hello; exec sleep 30")
    with (
        Meteor() as running,
        pytest.raises(BitLlmError, match="expected 23 numbers for a caption from Java, found hello"),
    ):
        running.statistics(["a"], [["b"]])


def test_a_java_that_hangs_is_killed_with_what_it_started(fake_java):
    fake_java("sleep 30")  # a child of the script, which holds the pipe open
    with Meteor(timeout_s=0.2) as running, pytest.raises(BitLlmError, match="found none"):
        running.statistics(["a"], [["b"]])
    assert running._process.returncode is not None


def test_a_java_that_is_no_program_does_not_start(fake_java):
    fake_java("").write_text("nothing")
    with pytest.raises(BitLlmError, match=r"METEOR: .*Java does not start"):
        Meteor()


def test_the_process_ends_with_its_context(fake_java):
    fake_java("exec sleep 30")
    with Meteor() as running:
        assert running._process.poll() is None
    assert running._process.poll() is not None
